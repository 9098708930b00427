"""``python -m benchmarks`` runs the suites; ``python -m benchmarks compare`` compares two installations."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from benchmarks.comparison.coordinator import Comparison
from benchmarks.comparison.measures import SUITES as COMPARED
from benchmarks.comparison.report import ComparisonReport
from benchmarks.harness.backends import BACKENDS
from benchmarks.harness.cpu_affinity import keep_off_last_core
from benchmarks.harness.machine import describe_machine
from benchmarks.harness.report import Report
from benchmarks.harness.runner import SuiteRun
from benchmarks.suites import channels_suite, fanout_suite, queues_suite, storage_suite, streams_suite

RESULTS = Path(__file__).parent / "results"
SUITES = {
    module.SUITE.name: module.SUITE
    for module in (storage_suite, queues_suite, channels_suite, streams_suite, fanout_suite)
}
OPERATIONS = [operation for suite in SUITES.values() for operation in suite.operations]


def main() -> None:
    arguments = sys.argv[1:]
    if arguments[:1] == ["compare"]:
        compare(arguments[1:])
    else:
        run(arguments)


def run(arguments: Sequence[str]) -> None:
    """Run suites, print their reports, and write the reports of complete runs to ``benchmarks/results``."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure eric_sse_sql against the raw drivers and similar packages.",
        epilog="`python -m benchmarks compare --help` tells how to compare two installations of eric_sse_sql.",
    )
    parser.add_argument("suite", nargs="*", help=f"{', '.join(SUITES)}; by default all")
    parser.add_argument("--operation", nargs="+", choices=OPERATIONS, default=OPERATIONS)
    parser.add_argument(
        "--without",
        nargs="+",
        default=[],
        metavar="PEER",
        help="leave out the peers whose names begin so, such as diskcache or Redis; `all` leaves out all",
    )
    _add_common_options(parser)
    options = parser.parse_args(arguments)
    suites = _chosen(parser, options.suite, SUITES)
    without = ("",) if "all" in options.without else tuple(name.lower() for name in options.without)
    runs = [
        SuiteRun(suite, suite.sizes[options.size], operations, without)
        for suite in (SUITES[name] for name in suites)
        if (operations := [name for name in suite.operations if name in options.operation])
    ]
    keep_off_last_core()
    versions: list[str] = []
    for name in options.database:
        with BACKENDS[name]() as backend:
            versions.append(backend.version)
            for each in runs:
                if name in each.suite.databases:
                    each.measure(backend)
    machine = describe_machine(versions)
    for each in runs:
        report = Report(each.suite, each.figures, machine, each.sizes, each.remarks)
        print(report.markdown())
        folder = options.results or (RESULTS if each.is_complete and options.database == list(BACKENDS) else None)
        if folder:
            report.write(folder)


def compare(arguments: Sequence[str]) -> None:
    """Compare two installations, and print the ratios of their medians."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks compare",
        description="Measure two installations of eric_sse_sql in turns, with the benchmarks of this checkout.",
        epilog="TMPDIR=/dev/shm keeps the databases in memory: the noise of the disk is then no part of the ratios.",
    )
    parser.add_argument("suite", nargs="*", help=f"{', '.join(COMPARED)}; by default all")
    parser.add_argument(
        "--before", type=Path, required=True, help="the Python interpreter that has the installation to compare with"
    )
    parser.add_argument(
        "--after", type=Path, default=Path(sys.executable), help="that of the other one; by default this interpreter"
    )
    _add_common_options(parser)
    options = parser.parse_args(arguments)
    suites = _chosen(parser, options.suite, COMPARED)
    keep_off_last_core()
    comparison = Comparison(options.before, options.after, suites, options.database, options.size)
    report = ComparisonReport(comparison.run(), comparison.installations)
    print(report.markdown())
    if options.results:
        report.write(options.results)


def _add_common_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--database", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument(
        "--quick", dest="size", action="store_const", const="quick", default="full", help="fewer samples, on less data"
    )
    sizes.add_argument(
        "--smoke",
        dest="size",
        action="store_const",
        const="smoke",
        help="run everything once, for the tests",
    )
    parser.add_argument("--results", type=Path, help="folder to write the report to")


def _chosen(parser: argparse.ArgumentParser, names: Sequence[str], known: Collection[str]) -> list[str]:
    """The names of the chosen suites, or all. argparse would apply ``choices`` to the empty default, too."""
    for name in names:
        if name not in known:
            parser.error(f"there is no suite {name!r}; choose from {', '.join(known)}")
    return list(names or known)


if __name__ == "__main__":
    main()
