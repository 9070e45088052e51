"""The parts of tools/paint_demo.py: artists, genres and styles."""
