"""The operations of the fanout suite."""
