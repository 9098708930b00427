"""Processes are killed while they call; then all of them at once."""

from __future__ import annotations

import time
from collections.abc import Iterator

from torture.databases import SQLITE, Bench, Target
from torture.load import account, load
from torture.outcome import Outcome

KILL_SECONDS = 0.15, 0.4  # from one kill to the next


def run(bench: Bench) -> Iterator[Outcome]:
    """SIGKILL processes that push, pop, receive, relay, persist and broadcast, at random."""
    sizes = bench.sizes
    for target in bench.targets():
        outcome = Outcome(target.name)
        life = int(sizes.max_load_seconds + 120)
        with load(target, target.url, sizes.producers, life) as made:
            give_up = made.began + sizes.max_load_seconds
            while made.acknowledged() < sizes.kill_calls and time.monotonic() < give_up:
                time.sleep(made.rng.uniform(*KILL_SECONDS))
                made.kill_one()
                if made.rng.random() < 0.05:
                    made.kill_all()
            made.kill_all()
            account(made, outcome)
            outcome.faults = made.kills
        _check_file(target, outcome)
        yield outcome


def _check_file(target: Target, outcome: Outcome) -> None:
    if target.name == SQLITE:
        ((answer,),) = target.rows("PRAGMA integrity_check")
        if answer != "ok":
            outcome.findings.append(f"the file is damaged: {answer}.")
