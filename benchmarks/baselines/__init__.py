"""The reference implementations: the same durable work, written by hand over the raw drivers."""
