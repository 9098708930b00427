"""Blobs that are written and read without pickle, because they are, byte for byte, what a new object is written as.

A channel of a thousand listeners has two thousand objects, nearly all as new but for their ids.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar
from uuid import uuid4

SHORTEST, LONGEST = 16, 255  # bytes: of ids that nothing else in a blob looks like, and that have a length of one byte

Made = TypeVar("Made")


class Stencil(Generic[Made]):
    """The blob of a new object, with a hole where its id is.

    :param make: makes a new object with an id
    :param encode: makes its blob
    :param state: all that the blob tells of an object, but for its id
    """

    def __init__(
        self, make: Callable[[str], Made], encode: Callable[[Made], bytes], state: Callable[[Made], object]
    ) -> None:
        self._make = make
        self._encode = encode
        self._state = state
        sample = make(_sample(SHORTEST))
        self._type, self._new_state = type(sample), state(sample)
        self._parts: dict[int, tuple[bytes, bytes] | None] = {}  # before and behind an id, by the length of the id

    def write(self, value: object, object_id: str) -> bytes | None:
        """The blob of an object that has the id, if it is as new."""
        if type(value) is self._type and self._state(value) == self._new_state:
            hole = object_id.encode()
            parts = self._around(len(hole))
            if parts is not None:
                return parts[0] + hole + parts[1]
        return None

    def read(self, blob: bytes, object_id: str) -> Made | None:
        """The object of a blob, if it is as new and has the id."""
        hole = object_id.encode()
        parts = self._around(len(hole))
        if parts is not None and blob == parts[0] + hole + parts[1]:
            return self._make(object_id)
        return None

    def _around(self, size: int) -> tuple[bytes, bytes] | None:
        if size not in self._parts:
            self._parts[size] = self._cut(size)
        return self._parts[size]

    def _cut(self, size: int) -> tuple[bytes, bytes] | None:
        if not SHORTEST <= size <= LONGEST:
            return None
        sample = _sample(size)
        parts = self._encode(self._make(sample)).split(sample.encode())
        return (parts[0], parts[1]) if len(parts) == 2 else None


def _sample(size: int) -> str:
    """An id that nothing else is."""
    return (uuid4().hex * 8)[:size]
