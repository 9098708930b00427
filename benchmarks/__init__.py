"""What the storage engine costs over the raw driver: ``python -m benchmarks``, or ``make bench``."""
