"""Where processes run: servers on the last core, and what is timed on the others.

A round trip to a server takes twice as long, or half, depending on where the scheduler has put its two ends, and it may
leave each contender's where it is for a whole run. A server with a core of its own is also what applications have.

Many processes at once use every core, and so does their server.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

Placement = Callable[[], AbstractContextManager[None]]

_movable = hasattr(os, "sched_setaffinity")  # on Linux
_cores = sorted(os.sched_getaffinity(0)) if _movable else []


def keep_off_last_core() -> None:
    """Leave the last core to the servers, where there are at least two."""
    if len(_cores) > 1:
        os.sched_setaffinity(0, _cores[:-1])


@contextmanager
def on_last_core() -> Iterator[None]:
    """What is started inside stays on the last core."""
    with _on(_cores[-1:]):
        yield


@contextmanager
def on_any_core() -> Iterator[None]:
    """What is started inside runs wherever the scheduler puts it."""
    with _on(_cores):
        yield


@contextmanager
def _on(cores: Sequence[int]) -> Iterator[None]:
    if len(_cores) < 2:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
