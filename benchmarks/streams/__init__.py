"""The operations of the streams suite."""
