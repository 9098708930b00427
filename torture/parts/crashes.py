"""The server crashes in the middle of everything."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress

import psycopg

from torture.cluster import Cluster
from torture.databases import POSTGRES, Bench, Target
from torture.load import account, load, recovery_seconds
from torture.outcome import Outcome

MAX_RECOVERY_SECONDS = 1.0
PROBE_SECONDS = 0.002


def run(bench: Bench) -> Iterator[Outcome]:
    """A server process is SIGKILLed, or the whole server is stopped as by a crash and started again."""
    sizes = bench.sizes
    for target in bench.targets(POSTGRES):
        assert target.cluster is not None
        outcome, times = Outcome(target.name, faults=0), []
        life = int(sizes.max_load_seconds + sizes.crashes * 20 + 120)
        with load(target, target.url, sizes.producers, life) as made:
            for number in range(sizes.crashes):
                time.sleep(sizes.fault_seconds)
                (Cluster.kill_backend, _restart)[number % 2](target.cluster)
                times.append(recovery_seconds(made, back_at(target)))
            time.sleep(sizes.fault_seconds)
            account(made, outcome)
        outcome.faults = sizes.crashes
        report_recovery(outcome, times, is_judged=sizes.judges_times)
        yield outcome


def _restart(cluster: Cluster) -> None:
    cluster.stop("immediate")
    cluster.start()


def back_at(target: Target) -> float:
    """When the server accepts statements, on the clock of time.monotonic()."""
    assert target.cluster is not None
    while True:
        with suppress(psycopg.Error), target.cluster.connect(target.database) as connection:
            connection.execute("SELECT 1")
            return time.monotonic()
        time.sleep(PROBE_SECONDS)


def report_recovery(outcome: Outcome, times: list[float | None], *, is_judged: bool) -> None:
    """Compare the times in which the streams went on with the goal."""
    known = [each for each in times if each is not None]
    if len(known) < len(times):
        outcome.findings.append(f"after {len(times) - len(known)} faults, a stream did not go on.")
    if known:
        outcome.figures["streams go on after"] = f"{max(known):.2f} s at the longest"
        if is_judged and max(known) > MAX_RECOVERY_SECONDS:
            outcome.findings.append(
                f"a stream went on {max(known):.2f} s after the server was back, not {MAX_RECOVERY_SECONDS:g} s."
            )
