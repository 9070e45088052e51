"""The parts of tools/benchmark.py: one file per subject of measurement."""
