"""Hostile pickles for the codec."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Iterator
from pathlib import Path

from torture import pickles
from torture.databases import Bench
from torture.outcome import Outcome

SEED = 1
EXTRA_SECONDS = 60


def run(bench: Bench) -> Iterator[Outcome]:
    """Mutated and random pickles: each is refused or builds what is allowed; none crashes, imports or calls."""
    outcome, seconds = Outcome("none"), bench.sizes.fuzz_seconds
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(prefix="essql-torture-") as folder:
        path = Path(folder) / "pickle"
        process = context.Process(target=pickles.fuzz, args=(path, seconds, SEED, sender.send), daemon=True)
        process.start()
        sender.close()
        process.join(seconds + EXTRA_SECONDS)
        if receiver.poll() and process.exitcode == 0:
            found = receiver.recv()
            outcome.bad_inputs, outcome.findings = found["tried"], found["findings"]
            outcome.figures["refused"] = f"{found['refused']:,}"
        else:
            process.kill()
            blob = pickles.shown_in(path)
            outcome.findings.append(f"the process has ended with {process.exitcode} at the pickle {blob[:200]!r}.")
    outcome.load = f"{seconds:g} s"
    yield outcome
