"""The other releases of Postgres."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torture.cluster import cluster, installed
from torture.databases import POSTGRES, Bench
from torture.outcome import Outcome
from torture.parts import crashes
from torture.suite import TESTS, run_suite

RELEASES = 15, 16, 18
CRASHES = 2  # of each server


def run(bench: Bench) -> Iterator[Outcome]:
    """On the releases of Postgres that the other parts do not use: crashes under load, and the whole contract suite."""
    if bench.cluster is None:
        return
    programs = installed()
    for release in RELEASES:
        name = f"{POSTGRES} {release}"
        if bench.cluster.version.startswith(f"{name}."):
            continue
        if not bench.sizes.has_other_releases:
            yield Outcome(name, skipped="a run of this size uses one release")
        elif release not in programs:
            yield Outcome(name, skipped="it is not installed")
        else:
            with cluster(programs[release]) as server:
                name = server.version.split(" (")[0]  # without the packager's own
                sizes = replace(bench.sizes, crashes=min(CRASHES, bench.sizes.crashes))
                for outcome in crashes.run(replace(bench, sizes=sizes, cluster=server)):
                    yield replace(outcome, database=name)
                if TESTS.exists():
                    outcome = Outcome(f"{name}, contract suite")
                    run_suite(f"postgresql://postgres@127.0.0.1:{server.port}/postgres", outcome)
                    yield outcome
