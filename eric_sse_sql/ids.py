"""Ids of what is made here."""

from __future__ import annotations

import secrets
import time
import uuid


def new_id() -> str:
    """A UUID that begins with the time (RFC 9562, version 7), and ends with 62 bits that nobody can guess.

    What is made together stands together in every index, and so does what is deleted together: rows of a channel share
    a few pages, where those of random ids have a page each.
    """
    milliseconds, nanoseconds = divmod(time.time_ns(), 1_000_000)
    fraction = (nanoseconds << 12) // 1_000_000  # of the millisecond, so that ids of one process are in their order
    return str(uuid.UUID(int=milliseconds << 80 | 7 << 76 | fraction << 64 | 2 << 62 | secrets.randbits(62)))
