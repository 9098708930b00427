"""Blobs that are read without being unpickled, because they are, byte for byte, what a new object is written as.

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
    """

    def __init__(self, make: Callable[[str], Made], encode: Callable[[Made], bytes]) -> None:
        self._make = make
        self._encode = encode
        self._parts: dict[int, tuple[bytes, bytes] | None] = {}  # before and behind an id, by the length of the id

    def read(self, blob: bytes, object_id: str) -> Made | None:
        """The object of a blob, if it is as new and has the id."""
        hole = object_id.encode()
        size = len(hole)
        if size not in self._parts:
            self._parts[size] = self._cut(size)
        parts = self._parts[size]
        if parts is not None and blob == parts[0] + hole + parts[1]:
            return self._make(object_id)
        return None

    def _cut(self, size: int) -> tuple[bytes, bytes] | None:
        if not SHORTEST <= size <= LONGEST:
            return None
        sample = (uuid4().hex * 8)[:size]
        parts = self._encode(self._make(sample)).split(sample.encode())
        return (parts[0], parts[1]) if len(parts) == 2 else None
