"""Work in processes of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Barrier
from typing import Any, TypeVar

Result = TypeVar("Result")

_context = multiprocessing.get_context("spawn")
_all_ready: Barrier
_done: Synchronized[int]


def apart(work: Callable[..., Result], *arguments: Any) -> Result:
    """What some work returns in a fresh process."""
    with _pool(1) as pool:
        return pool.submit(work, *arguments).result()


def together(tasks: Sequence[Callable[[], Result]]) -> list[Result]:
    """What each task returns in a process of its own. Each calls :func:`await_others` when it is ready."""
    with _pool(len(tasks)) as pool:
        return [future.result() for future in [pool.submit(task) for task in tasks]]


def await_others(seconds: float) -> None:
    """Wait until every process of :func:`together` is ready.

    :raises threading.BrokenBarrierError: when one is not in that time
    """
    _all_ready.wait(seconds)


def say_done() -> None:
    """Tell the others that this process is done."""
    with _done.get_lock():
        _done.value += 1


def are_done(count: int) -> bool:
    """Whether so many processes are."""
    return _done.value >= count


@contextmanager
def _pool(size: int) -> Iterator[ProcessPoolExecutor]:
    shared = _context.Barrier(size), _context.Value("i", 0)
    with ProcessPoolExecutor(size, _context, _remember, shared) as pool:
        yield pool


def _remember(all_ready: Barrier, done: Synchronized[int]) -> None:
    global _all_ready, _done
    _all_ready, _done = all_ready, done
