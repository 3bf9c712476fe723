"""Measurements; each module runs by itself with `python -m benchmarks.NAME` and prints lines for RESULTS.md."""
