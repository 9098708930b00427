"""The registry of what must be prepared for a fork of the process, and put right after it."""

from __future__ import annotations

import itertools
import os
from typing import Protocol
from weakref import WeakValueDictionary


class ForkAware(Protocol):
    """Holds threads, locks or connections, which a forked child can't use."""

    def before_fork(self) -> None:
        """Prepare for a fork, in the parent."""

    def after_fork_in_parent(self) -> None:
        """Undo :meth:`before_fork`."""

    def after_fork_in_child(self) -> None:
        """Replace whatever belongs to the parent: locks that its threads may hold, its threads, its connections."""


_parts: WeakValueDictionary[int, ForkAware] = WeakValueDictionary()
_numbers = itertools.count()
_abandoned: list[object] = []  # kept from the collector, which would close them for the parent, too


def register(part: ForkAware) -> None:
    """Call the three methods of an object at each fork, for as long as the object lives."""
    _parts[next(_numbers)] = part


def abandon(connections: object) -> None:
    """In a forked child: neither use nor close connections of the parent."""
    _abandoned.append(connections)


def _living() -> list[ForkAware]:
    """The registered objects. The references are copied in one step, since threads register others meanwhile."""
    return [part for reference in _parts.valuerefs() if (part := reference()) is not None]


def _before() -> None:
    for part in _living():
        part.before_fork()


def _after_in_parent() -> None:
    for part in _living():
        part.after_fork_in_parent()


def _after_in_child() -> None:
    for part in _living():
        part.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
