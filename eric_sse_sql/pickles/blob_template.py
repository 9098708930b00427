"""Blobs of default objects, written and read without the pickle module.

The blobs of two new listeners differ only in the id. A channel of a thousand listeners stores two thousand listeners
and queues, and most of them have nothing but their id changed since they were created.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar
from uuid import uuid4

# Bytes in an id: from 16, so that a sample id occurs only once in its blob, to 255, the most that a pickle gives a
# length of one byte.
SHORTEST, LONGEST = 16, 255

T = TypeVar("T")


class BlobTemplate(Generic[T]):
    """The blob of a default object, with a slot for the id.

    The bytes written equal those of ``encode``. An object that is not a default object, or an id whose length the
    template does not support, gives None: the caller then uses the codec.

    :param make: creates a default object with the given id
    :param encode: returns the blob of an object
    :param state: returns everything in the blob of an object except its id
    """

    def __init__(self, make: Callable[[str], T], encode: Callable[[T], bytes], state: Callable[[T], object]) -> None:
        self._make = make
        self._encode = encode
        self._state = state
        sample = make(_sample_id(SHORTEST))
        self._type, self._default_state = type(sample), state(sample)
        self._parts: dict[int, tuple[bytes, bytes] | None] = {}  # bytes before and after the slot, by length of the id

    def write(self, value: object, object_id: str) -> bytes | None:
        """The blob of an object with this id, or None unless it is a default object."""
        if type(value) is self._type and self._state(value) == self._default_state:
            id_bytes = object_id.encode()
            parts = self._parts_for(len(id_bytes))
            if parts is not None:
                return parts[0] + id_bytes + parts[1]
        return None

    def read(self, blob: bytes, object_id: str) -> T | None:
        """The object of a blob, or None unless it is the blob of a default object with this id."""
        id_bytes = object_id.encode()
        parts = self._parts_for(len(id_bytes))
        if parts is not None and blob == parts[0] + id_bytes + parts[1]:
            return self._make(object_id)
        return None

    def _parts_for(self, size: int) -> tuple[bytes, bytes] | None:
        if size not in self._parts:
            self._parts[size] = self._split(size)
        return self._parts[size]

    def _split(self, size: int) -> tuple[bytes, bytes] | None:
        if not SHORTEST <= size <= LONGEST:
            return None
        sample = _sample_id(size)
        parts = self._encode(self._make(sample)).split(sample.encode())
        return (parts[0], parts[1]) if len(parts) == 2 else None


def _sample_id(size: int) -> str:
    """An id of the given length that occurs nowhere else."""
    return (uuid4().hex * 8)[:size]
