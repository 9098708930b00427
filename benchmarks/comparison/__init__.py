"""Compares two installations of eric_sse_sql: ``python -m benchmarks compare``."""
