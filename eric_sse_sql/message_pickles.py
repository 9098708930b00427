"""Pickles of eric-sse's own ``Message``, which most messages are: a call of the class, around a pickle of its content.

Each half is a pickle by itself. That of the content names no class where the content is plain data, and is written and
read in less than half of the time that the message would take as any object.
"""

from __future__ import annotations

from typing import Any

from eric_sse.message import Message

_PROTOCOL, _STOP = b"\x80\x05", b"."
_NAMES = (name.encode() for name in (Message.__module__, Message.__qualname__))
_BEFORE = _PROTOCOL + b"".join(b"\x8c%c%b" % (len(name), name) for name in _NAMES) + b"\x93"  # the class, by its name
_BEHIND = b"R" + _STOP  # called with what is between


def content_of(value: object) -> tuple[Any, Any] | None:
    """What a ``Message`` is made of; None for any other object, and for a message that has been given more."""
    if type(value) is Message and len(vars(value)) == 2:
        return value.type, value.payload
    return None


def around(content: bytes) -> bytes:
    """The pickle of a message, from that of its content."""
    return _BEFORE + content[len(_PROTOCOL) : -len(_STOP)] + _BEHIND


def inside(pickled: bytes) -> bytes | None:
    """The pickle of a message's content, from that of the message; None for any other pickle."""
    if pickled.startswith(_BEFORE) and pickled.endswith(_BEHIND):
        return _PROTOCOL + pickled[len(_BEFORE) : -len(_BEHIND)] + _STOP
    return None
