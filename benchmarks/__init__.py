"""Measures what eric_sse_sql costs compared with the raw drivers and with similar packages.

Run it with ``python -m benchmarks``, or ``make bench``. ``python -m benchmarks compare`` measures two installations of
eric_sse_sql side by side.
"""
