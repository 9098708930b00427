"""What several test modules share: databases, processes, recorders, and the classes of an application."""
