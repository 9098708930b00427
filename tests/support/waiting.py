"""Waiting for what another thread or process does, within reason."""

from __future__ import annotations

import time
from collections.abc import Callable

DEADLINE = 30  # seconds, in which a thread of this process does what a test waits for
PATIENCE = 240  # seconds, after which a test fails that would otherwise wait without end


def until(condition: Callable[[], object], seconds: float = DEADLINE) -> None:
    """Wait until a condition holds.

    :raises TimeoutError: when it does not within the given time
    """
    give_up = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > give_up:
            raise TimeoutError(f"the condition did not hold within {seconds} seconds")
        time.sleep(0.002)
