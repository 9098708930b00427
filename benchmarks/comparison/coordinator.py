"""Measures two installations of eric_sse_sql in turns.

Each installation runs in a process of its own interpreter. Their rounds are short and alternate: before, after, after,
before, and so on. Both processes are started anew several times, since the speed of a process depends on its memory
layout, too.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import benchmarks
from benchmarks.comparison.measures import SIZES, SUITES
from benchmarks.harness.backends import BACKENDS, Backend
from benchmarks.harness.locations import Location

WORKER = "benchmarks.comparison.worker"


@dataclass(frozen=True)
class Times:
    """The times of the steps of one measure, in nanoseconds: by repetition, then by round."""

    before: list[list[list[int]]] = field(default_factory=list)
    after: list[list[list[int]]] = field(default_factory=list)


#: The measures of each database: database, engine and name of the measure.
Results = dict[tuple[str, str, str], Times]


class WorkerProcess:
    """A worker in another interpreter. Its methods are those of :class:`benchmarks.comparison.worker.Worker`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the worker and return its result.

        :raises RuntimeError: when the worker has ended
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps([method, arguments]), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker {self._process.args!r} has ended in {method}{arguments}")
        return json.loads(line)


@contextmanager
def worker_process(interpreter: Path, hash_seed: int) -> Iterator[WorkerProcess]:
    """Start a worker that finds the benchmarks of this checkout, but not its ``eric_sse_sql``.

    :param hash_seed: of Python's hashes, which affect the speed of a process
    """
    with tempfile.TemporaryDirectory(prefix="essql-") as folder:
        (Path(folder) / "benchmarks").symlink_to(Path(benchmarks.__path__[0]).resolve())
        environment = {**os.environ, "PYTHONPATH": folder, "PYTHONHASHSEED": str(hash_seed)}
        process = subprocess.Popen(
            [interpreter.absolute(), "-m", WORKER],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with process:
            try:
                yield WorkerProcess(process)
            except BaseException:
                process.kill()
                raise


class Comparison:
    """A run that compares two installations.

    :param before: the interpreter of one installation
    :param after: the interpreter of the other
    :param suites: the names of the suites whose measures are compared
    :param databases: the names of the backends
    :param size: of the run: full, quick or smoke
    """

    def __init__(self, before: Path, after: Path, suites: Sequence[str], databases: Sequence[str], size: str) -> None:
        self._interpreters = (before, after)
        self._suites = suites
        self._databases = databases
        self._size = size
        self.installations: list[dict[str, str]] = []

    def run(self) -> Results:
        """Measure both, and return the times of each measure."""
        results: Results = {}
        began, sizes, took = time.monotonic(), SIZES[self._size], 0.0
        with ExitStack() as stack:
            backends = [stack.enter_context(BACKENDS[name]()) for name in self._databases]
            for repetition in itertools.count():
                elapsed = time.monotonic() - began
                if repetition >= sizes.repetitions and elapsed + took > sizes.seconds:
                    break
                for backend in backends:
                    self._repeat(backend, repetition, results)
                took = time.monotonic() - began - elapsed
                print(f"repetition {repetition + 1} took {took:.0f} s", file=sys.stderr, flush=True)
        return results

    def _repeat(self, backend: Backend, repetition: int, results: Results) -> None:
        """Run all measures once, with new processes and databases."""
        with ExitStack() as stack:
            workers = [stack.enter_context(worker_process(each, 1 + repetition)) for each in self._interpreters]
            self.installations = [worker.call("describe") for worker in workers]
            for worker in workers:
                worker.call("upgrade", *_as_json(backend.create_empty()), self._size)
            for suite in self._suites:
                for engine in SUITES[suite].engines:
                    names, _ = (worker.call("open", suite, engine) for worker in workers)
                    for name in names:
                        times = results.setdefault((backend.name, engine, name), Times())
                        self._measure(workers, name, repetition, times)
                    for worker in workers:
                        worker.call("close")

    def _measure(self, workers: Sequence[WorkerProcess], name: str, repetition: int, times: Times) -> None:
        taken: list[list[list[int]]] = [[], []]
        for worker in workers:
            worker.call("prepare", name)
        for number in range(SIZES[self._size].all_rounds):
            order = (0, 1) if (number + repetition) % 2 else (1, 0)
            for index in order:
                in_round = workers[index].call("time", name, number)
                if number:  # the first round warms up
                    taken[index].append(in_round)
        times.before.append(taken[0])
        times.after.append(taken[1])


def _as_json(location: Location) -> tuple[str, Sequence[str]]:
    return location.url.render_as_string(hide_password=False), location.pragmas
