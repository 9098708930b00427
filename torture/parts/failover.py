"""The primary is killed, and its synchronous standby becomes the primary."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import psycopg

from eric_sse_sql import Database
from torture import roles
from torture.cluster import Cluster
from torture.databases import POSTGRES, Bench, Target
from torture.journal import DONE, lines
from torture.load import account, load, recovery_seconds
from torture.outcome import Outcome
from torture.parts.crashes import PROBE_SECONDS, report_recovery

MAX_RATIO = 1.2  # of the standstill of the package's pushes to that of psycopg's inserts
FAILOVER_SECONDS = 20  # within which a failover is over
PACKAGE, DRIVER = "push", "insert"  # the processes that are compared


def run(bench: Bench) -> Iterator[Outcome]:
    """Failovers under load, with a URL of both hosts; each time, the dead primary's port gets a new standby."""
    if POSTGRES not in bench.databases:
        return
    if not bench.sizes.failovers:
        yield Outcome(POSTGRES, skipped="a run of this size has no failover")
        return
    with tempfile.TemporaryDirectory(prefix="essql-torture-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        folder.chmod(0o777)  # the server runs as another user than root
        primary = Cluster(folder)
        clusters = [primary]
        try:
            primary.initialize()
            primary.start()
            clusters.append(primary.standby("standby-0"))
            yield _measured(bench, folder, clusters)
        finally:
            for cluster in clusters:
                cluster.stop()


def _measured(bench: Bench, folder: Path, clusters: list[Cluster]) -> Outcome:
    sizes, outcome = bench.sizes, Outcome(POSTGRES)
    hosts = "&".join(f"host=127.0.0.1:{cluster.port}" for cluster in clusters)
    database = clusters[0].new_database()
    url = f"postgresql+psycopg://postgres@/{database}?{hosts}&target_session_attrs=read-write"
    own = folder / "journals"
    own.mkdir()
    target = Target(url, POSTGRES, own)
    with Database(url) as opened:
        opened.upgrade()
    target.execute("CREATE TABLE raw_rows (id bigint GENERATED ALWAYS AS IDENTITY, content text)")
    times: list[float | None] = []
    killed: list[float] = []
    with load(target, url, sizes.producers, int(sizes.max_load_seconds + sizes.failovers * 40 + 120)) as made:
        made.start(PACKAGE, roles.push_steadily)
        made.start(DRIVER, roles.insert_steadily)
        for number in range(1, sizes.failovers + 1):
            time.sleep(sizes.fault_seconds + 1)
            primary, standby = clusters[-2:]
            killed.append(time.monotonic())
            primary.stop("immediate")
            standby.promote()
            times.append(recovery_seconds(made, _back_at(url)))
            if number < sizes.failovers:
                clusters.append(standby.standby(f"standby-{number}", primary.port))
        time.sleep(sizes.fault_seconds)
        account(made, outcome)
    outcome.faults = sizes.failovers
    report_recovery(outcome, times, is_judged=sizes.judges_times)
    ours, theirs = (sum(_standstill(own / f"{name}-0.journal", at) for at in killed) for name in (PACKAGE, DRIVER))
    outcome.figures["standstill"] = (
        f"{ours / len(killed):.2f} s, {ours / theirs:.2f} times that of psycopg alone ({theirs / len(killed):.2f} s)"
    )
    if sizes.judges_times and ours > MAX_RATIO * theirs:
        outcome.findings.append(f"the standstill is {ours / theirs:.2f} times that of psycopg, not {MAX_RATIO:g}.")
    return outcome


def _back_at(url: str) -> float:
    conninfo = roles.psycopg_conninfo(url)
    while True:
        with suppress(psycopg.Error), psycopg.connect(conninfo) as connection:
            connection.execute("SELECT 1")
            return time.monotonic()
        time.sleep(PROBE_SECONDS)


def _standstill(path: Path, at: float) -> float:
    """The longest time between two successes after the server was told to stop."""
    times = [line.seconds for line in lines(path) if line.what == DONE and at < line.seconds < at + FAILOVER_SECONDS]
    return max((later - earlier for earlier, later in pairwise(times)), default=FAILOVER_SECONDS)
