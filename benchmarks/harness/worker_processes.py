"""Runs functions in processes of their own, which can start together and count how many of them are done."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Barrier
from typing import Any, TypeVar

from benchmarks.harness import cpu_affinity

Result = TypeVar("Result")

# A process is forked from a server that has imported the benchmarks and opened nothing: as new as a spawned one, which
# takes most of a second to import them.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["benchmarks.__main__", "alembic.config", "sqlalchemy.dialects.postgresql.psycopg"])
_all_ready: Barrier
_done: Synchronized[int]


def run_in_process(work: Callable[..., Result], *arguments: Any) -> Result:
    """Run a function in a fresh process and return its result."""
    with _pool(1) as pool:
        return pool.submit(work, *arguments).result()


def run_in_processes(tasks: Sequence[Callable[[], Result]]) -> list[Result]:
    """Run each task in a process of its own and return the results. Each task calls :func:`wait_until_all_ready`."""
    with _pool(len(tasks)) as pool:
        return [future.result() for future in [pool.submit(task) for task in tasks]]


def wait_until_all_ready(seconds: float) -> None:
    """Wait until every task of :func:`run_in_processes` has called this function.

    :raises threading.BrokenBarrierError: when one has not within that time
    """
    _all_ready.wait(seconds)


def mark_done() -> None:
    """Count this process as done."""
    with _done.get_lock():
        _done.value += 1


def are_all_done(count: int) -> bool:
    """Whether at least this many processes are done."""
    return _done.value >= count


@contextmanager
def _pool(size: int) -> Iterator[ProcessPoolExecutor]:
    shared = _context.Barrier(size), _context.Value("i", 0), cpu_affinity.cores()
    with ProcessPoolExecutor(size, _context, _initialize, shared) as pool:
        yield pool


def _initialize(all_ready: Barrier, done: Synchronized[int], cores: Collection[int]) -> None:
    global _all_ready, _done
    cpu_affinity.use(cores)  # of the process that has asked for this one, which the server may not share
    _all_ready, _done = all_ready, done
