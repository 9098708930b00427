"""What the package costs over the raw drivers, and beside its peers: ``python -m benchmarks``, or ``make bench``."""
