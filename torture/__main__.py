"""``python -m torture`` runs the package under faults, and fails where something was lost, doubled or leaked."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from benchmarks.harness.machine import describe_machine
from torture.cluster import cluster
from torture.databases import POSTGRES, SQLITE, Bench
from torture.outcome import Outcome
from torture.parts import (
    crashes,
    failing_calls,
    failover,
    fuzz,
    kills,
    leaks,
    network,
    pooler,
    preload,
    pythons,
    servers,
)
from torture.report import line, markdown
from torture.sizes import SIZES

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results" / "torture.md"
Part = Callable[[Bench], Iterator[Outcome]]
PARTS: dict[str, Part] = {
    "kills": kills.run,
    "crashes": crashes.run,
    "failover": failover.run,
    "network": network.run,
    "leaks": leaks.run,
    "failing-calls": failing_calls.run,
    "fuzz": fuzz.run,
    "preload": preload.run,
    "pooler": pooler.run,
    "servers": servers.run,
    "pythons": pythons.run,
}
DATABASES = {"sqlite": SQLITE, "postgres": POSTGRES}


def main() -> int:
    """Run the chosen parts, print a line for each, and write the report of a full run. The exit code."""
    parser = argparse.ArgumentParser(prog="python -m torture", description=__doc__)
    parser.add_argument("part", nargs="*", help=f"{', '.join(PARTS)}; by default all")
    parser.add_argument("--database", nargs="+", choices=DATABASES, default=list(DATABASES))
    sizes = parser.add_mutually_exclusive_group()
    for size, about in {
        "full": "about 15 minutes; the default. It alone fails for times that miss their goals",
        "short": "about two minutes",
        "smoke": "each part once, for the tests",
    }.items():
        sizes.add_argument(f"--{size}", dest="size", action="store_const", const=size, default="full", help=about)
    parser.add_argument("--results", type=Path, help="file to write the report to")
    options = parser.parse_args()
    for name in options.part:
        if name not in PARTS:
            parser.error(f"there is no part {name!r}; choose from {', '.join(PARTS)}")
    chosen = {name: part for name, part in PARTS.items() if name in (options.part or PARTS)}
    databases = tuple(DATABASES[name] for name in options.database)
    is_complete = len(chosen) == len(PARTS) and len(databases) == len(DATABASES) and options.size == "full"
    logging.getLogger("eric_sse_sql").setLevel(logging.ERROR)  # hides the warning of each fault
    signal.signal(signal.SIGALRM, _give_up)
    signal.signal(signal.SIGTERM, _give_up)
    signal.alarm(SIZES[options.size].limit_seconds)
    results = []
    with ExitStack() as stack:
        server = stack.enter_context(cluster()) if POSTGRES in databases else None
        versions = [server.version] if server is not None else []
        bench = Bench(SIZES[options.size], databases, server)
        for name, part in chosen.items():
            results.append((name, " ".join((part.__doc__ or "").split()), _outcomes(name, part, bench)))
    report = markdown(describe_machine(versions), results)
    path = options.results or (RESULTS if is_complete else None)
    if path is not None:
        path.write_text(report)
    return int(any(outcome.has_failed for _, _, outcomes in results for outcome in outcomes))


def _outcomes(name: str, part: Part, bench: Bench) -> list[Outcome]:
    outcomes: list[Outcome] = []
    began = time.monotonic()
    try:
        for outcome in part(bench):
            outcomes.append(outcome)
            print(f"{time.monotonic() - began:6.1f} s  {line(name, outcome)}", flush=True)
            began = time.monotonic()
    except Exception as error:
        traceback.print_exc()
        failed = Outcome("the part itself", findings=[f"it has failed: {type(error).__name__}: {error}"])
        print(line(name, failed), flush=True)
        outcomes.append(failed)
    return outcomes


def _give_up(number: int, frame: FrameType | None) -> None:
    raise SystemExit(f"given up after signal {number}")


if __name__ == "__main__":
    sys.exit(main())
