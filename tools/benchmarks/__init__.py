"""Parts of tools/benchmark.py: a file for each thing that it measures."""
