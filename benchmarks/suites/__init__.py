"""The suites: storage, queues, channels and streams."""
