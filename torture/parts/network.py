"""The network between the processes and the server fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from torture.databases import POSTGRES, Bench
from torture.load import Load, account, load, recovery_seconds
from torture.outcome import Outcome
from torture.parts.crashes import report_recovery
from torture.proxy import Proxy

DELAY_SECONDS = 0.02
PIECE_BYTES = 3


def run(bench: Bench) -> Iterator[Outcome]:
    """A proxy cuts all connections, or one within a reply; delays, splits and freezes what it forwards."""
    sizes = bench.sizes
    for target in bench.targets(POSTGRES):
        assert target.cluster is not None
        outcome, times = Outcome(target.name), []
        proxy = Proxy(target.cluster.port)
        life = int(sizes.max_load_seconds + sizes.network_faults * 20 + 120)
        try:
            with load(target, target.cluster.url(target.database, port=proxy.port), sizes.producers, life) as made:
                for number in range(sizes.network_faults):
                    time.sleep(made.rng.uniform(0.5, 1) * sizes.fault_seconds / 2)
                    fault = FAULTS[number % len(FAULTS)]
                    fault(proxy, made, sizes.fault_seconds)
                    if fault in (_cut, _freeze_and_cut):
                        times.append(recovery_seconds(made, time.monotonic()))
                account(made, outcome)
        finally:
            proxy.close()
        outcome.faults = sizes.network_faults
        report_recovery(outcome, times, is_judged=sizes.judges_times)
        yield outcome


def _cut(proxy: Proxy, made: Load, seconds: float) -> None:
    proxy.cut()


def _cut_in_reply(proxy: Proxy, made: Load, seconds: float) -> None:
    for _ in range(10):
        proxy.cut_in_reply()
        time.sleep(seconds / 10)


def _lose_reply(proxy: Proxy, made: Load, seconds: float) -> None:
    for _ in range(10):
        proxy.fail_request(made.rng.randint(1, 20), loses_reply=True)
        time.sleep(seconds / 10)
    proxy.has_failed()


def _delay_and_split(proxy: Proxy, made: Load, seconds: float) -> None:
    proxy.delay_seconds, proxy.piece_bytes = DELAY_SECONDS, PIECE_BYTES
    time.sleep(seconds)
    proxy.delay_seconds, proxy.piece_bytes = 0.0, 0


def _freeze(proxy: Proxy, made: Load, seconds: float) -> None:
    proxy.flows.clear()
    time.sleep(seconds)
    proxy.flows.set()


def _freeze_and_cut(proxy: Proxy, made: Load, seconds: float) -> None:
    proxy.flows.clear()
    time.sleep(seconds)
    proxy.cut()
    proxy.flows.set()


FAULTS: list[Callable[[Proxy, Load, float], None]] = [
    _cut,
    _lose_reply,
    _cut_in_reply,
    _delay_and_split,
    _freeze,
    _freeze_and_cut,
]
