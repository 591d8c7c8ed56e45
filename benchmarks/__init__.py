"""Benchmarks: each prints a table and writes `benchmarks/results/<name>.json`; none is asserted on in a test."""
