"""CPU affinity: servers run on the last core, and the timed code on the others.

A round trip to a server takes up to twice as long when the scheduler puts client and server on different cores, and it
may keep each contender's placement for a whole run. A server on a core of its own is also what applications have.

Operations with many processes use every core, and so does their server.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

Placement = Callable[[], AbstractContextManager[None]]

_is_supported = hasattr(os, "sched_setaffinity")  # on Linux
_cores = sorted(os.sched_getaffinity(0)) if _is_supported else []


def keep_off_last_core() -> None:
    """Leave the last core to the servers, where there are at least two."""
    if len(_cores) > 1:
        os.sched_setaffinity(0, _cores[:-1])


def cores() -> Collection[int]:
    """The cores that this process may use; none where this system does not tell."""
    return os.sched_getaffinity(0) if _is_supported else ()


def use(cores: Collection[int]) -> None:
    """Run this process on some cores, which :func:`cores` of another process has returned."""
    if cores:
        os.sched_setaffinity(0, cores)


@contextmanager
def on_last_core() -> Iterator[None]:
    """Processes that are started inside the block stay on the last core."""
    with _on(_cores[-1:]):
        yield


@contextmanager
def on_any_core() -> Iterator[None]:
    """Processes that are started inside the block run on any core."""
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
