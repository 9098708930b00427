"""Runs the package under real faults on real databases, and counts what was lost, doubled or leaked."""
