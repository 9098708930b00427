"""Blobs of eric-sse's own ``Message``, the class of most messages.

The blob is a pickle that calls ``Message(type, payload)``. The opcodes around the pair ``(type, payload)`` never
change, so the codec pickles the pair alone and this module adds the rest. If type and payload are plain data, the pair
names no class and is unpickled without the guard; writing and reading then take less than half the time that pickling
the ``Message`` object takes.
"""

from __future__ import annotations

from typing import Any

from eric_sse.message import Message

_PROTOCOL, _STOP = b"\x80\x05", b"."
_NAMES = (name.encode() for name in (Message.__module__, Message.__qualname__))
_PREFIX = _PROTOCOL + b"".join(b"\x8c%c%b" % (len(name), name) for name in _NAMES) + b"\x93"  # pushes the class
_SUFFIX = b"R" + _STOP  # REDUCE: calls the class with the pair


def content_of(value: object) -> tuple[Any, Any] | None:
    """Type and payload of a ``Message``; None for other classes and for a message with further attributes."""
    if type(value) is Message and len(vars(value)) == 2:
        return value.type, value.payload
    return None


def wrap(content: bytes) -> bytes:
    """The pickle of a message, from the pickle of its type and payload."""
    return _PREFIX + content[len(_PROTOCOL) : -len(_STOP)] + _SUFFIX


def unwrap(pickled: bytes) -> bytes | None:
    """The pickle of a message's type and payload; None if the pickle was not made by :func:`wrap`."""
    if pickled.startswith(_PREFIX) and pickled.endswith(_SUFFIX):
        return _PROTOCOL + pickled[len(_PREFIX) : -len(_SUFFIX)] + _STOP
    return None
