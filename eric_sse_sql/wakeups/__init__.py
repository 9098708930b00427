"""News of pushes: from this process and from others to what waits in this one, and from this one to others."""
