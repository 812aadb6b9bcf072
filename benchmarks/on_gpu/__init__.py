"""Benchmarks on GPUs: `PYTHONPATH=.:tests/support python3 -m gpu bench`, or `make bench-gpu`."""
