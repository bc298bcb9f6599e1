"""Benchmarks: `make bench`. Nothing here is a test; `bench.json` has the figures, and the machine they are of."""
