"""Measures, prints a table, and keeps the figures of a full run in ``benchmarks/results``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from benchmarks.databases import Backend, postgres_server, sqlite_files
from benchmarks.goals import Figure
from benchmarks.peers import installed_peers
from benchmarks.placement import keep_off_last_core
from benchmarks.report import Report, facts
from benchmarks.storage import QUICK, Sizes, StorageBenchmark

RESULTS = Path(__file__).parent / "results"

DATABASES: dict[str, Callable[[], AbstractContextManager[Backend]]] = {
    "sqlite-normal": lambda: sqlite_files("NORMAL"),
    "sqlite-full": lambda: sqlite_files("FULL"),
    "postgres": postgres_server,
}
OPERATIONS = {
    "one-key": StorageBenchmark.one_key,
    "prefix-page": StorageBenchmark.prefix_page,
    "fetch-all": StorageBenchmark.fetch_all,
}


def main() -> None:
    options = _options()
    keep_off_last_core()
    sizes = QUICK if options.quick else Sizes()
    figures: list[Figure] = []
    versions: list[str] = []
    for database in options.database:
        with ExitStack() as stack:
            backend = stack.enter_context(DATABASES[database]())
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="essql-")))
            peers, remarks = stack.enter_context(installed_peers(folder))
            versions.append(backend.version)
            benchmark = StorageBenchmark(backend, sizes, peers)
            for operation in options.operation:
                print(f"{backend.name}: {operation}", file=sys.stderr, flush=True)
                figures += OPERATIONS[operation](benchmark)
    report = Report(figures, facts(versions), sizes, remarks)
    print(report.markdown())
    if options.results:
        report.write(options.results)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer samples, and 100,000 keys instead of 1,000,000")
    parser.add_argument("--database", nargs="+", choices=DATABASES, default=list(DATABASES))
    parser.add_argument("--operation", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    parser.add_argument("--results", type=Path, help="folder for the figures; by default those of full runs are kept")
    options = parser.parse_args()
    everything = options.database == list(DATABASES) and options.operation == list(OPERATIONS)
    if options.results is None and everything and not options.quick:
        options.results = RESULTS
    return options


if __name__ == "__main__":
    main()
