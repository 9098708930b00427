"""Measures, prints tables, and keeps the figures of full runs in ``benchmarks/results``."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import channels, queues, storage, streams
from benchmarks.databases import Backend, postgres_server, sqlite_files
from benchmarks.figures import Figure
from benchmarks.machine import facts, flush_seconds
from benchmarks.peers import installed
from benchmarks.placement import keep_off_last_core
from benchmarks.report import Report
from benchmarks.suite import Bench, Suite

RESULTS = Path(__file__).parent / "results"

DATABASES: dict[str, Callable[[], AbstractContextManager[Backend]]] = {
    "sqlite-normal": lambda: sqlite_files("NORMAL"),
    "sqlite-full": lambda: sqlite_files("FULL"),
    "postgres": postgres_server,
}
SUITES = (storage.SUITE, queues.SUITE, channels.SUITE, streams.SUITE)
OPERATIONS = [operation for suite in SUITES for operation in suite.operations]


@dataclass
class Run:
    """A suite and what is found of it.

    :param operations: those to measure
    """

    suite: Suite
    sizes: Any
    operations: Sequence[str]
    figures: list[Figure] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def measure(self, backend: Backend) -> None:
        """Measure the operations on one database."""
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="essql-")))
            peers, remarks = stack.enter_context(installed(self.suite.peers(backend), folder))
            self.remarks += [remark for remark in remarks if remark not in self.remarks]
            bench = Bench(backend, self.sizes, peers, folder)
            for operation in self.operations:
                began = time.monotonic()
                self.figures += self.suite.operations[operation](bench)
                took = time.monotonic() - began
                print(f"{backend.name}: {operation} took {took:.0f} s", file=sys.stderr, flush=True)


def main() -> None:
    options = _options()
    keep_off_last_core()
    flush = flush_seconds()
    versions: list[str] = []
    runs = [
        Run(suite, suite.quick if options.quick else suite.sizes, operations)
        for suite in SUITES
        if (operations := [name for name in suite.operations if name in options.operation])
    ]
    for database in options.database:
        with DATABASES[database]() as backend:
            versions.append(backend.version)
            for run in runs:
                run.measure(backend)
    for run in runs:
        report = Report(run.suite, run.figures, facts(versions, flush), run.sizes, run.remarks)
        print(report.markdown())
        folder = options.results or (RESULTS if _is_whole(run, options) else None)
        if folder:
            report.write(folder)


def _is_whole(run: Run, options: argparse.Namespace) -> bool:
    """Whether nothing of a suite was left out."""
    return options.database == list(DATABASES) and list(run.suite.operations) == run.operations and not options.quick


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer samples, on less")
    parser.add_argument("--database", nargs="+", choices=DATABASES, default=list(DATABASES))
    parser.add_argument("--operation", nargs="+", choices=OPERATIONS, default=OPERATIONS)
    parser.add_argument(
        "--results", type=Path, help="folder for the figures; by default those of suites that were run in full are kept"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
