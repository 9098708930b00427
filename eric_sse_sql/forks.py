"""What a forked child inherits from its parent and must leave alone."""

from __future__ import annotations

_inherited: list[object] = []


def leave_alone(connections: object) -> None:
    """In a forked child: neither use nor close connections of the parent, nor let the collector close them."""
    _inherited.append(connections)
