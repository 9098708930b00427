"""Ids for the rows of the baselines."""

from __future__ import annotations

import os
import time
import uuid


def time_ordered_id() -> str:
    """A UUID that begins with the time, as version 7 does: rows created together are adjacent in every index."""
    return str(uuid.UUID(bytes=time.time_ns().to_bytes(8, "big") + os.urandom(8)))
