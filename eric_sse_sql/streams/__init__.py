"""Delivery of messages on an event loop."""
