"""How much each part does in a full run, in a short one, and in that of the tests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """How much each part does.

    :param limit_seconds: after which the run is given up
    :param producers: processes that push; as many take messages in each of the three ways
    :param kill_calls: acknowledged calls that the processes make which are killed
    :param crashes: of the server
    :param failovers: to the standby
    :param network_faults: between the processes and the server
    :param max_load_seconds: of any part with processes, whatever it has reached
    :param fault_seconds: from one fault to the next, about
    :param most_failing: the highest number of the call that fails
    :param leak_calls: mixed calls in one process
    :param cycles: of a push and a pop, before the table is measured
    :param fuzz_seconds: for which pickles are mutated
    :param worker_requests: to the workers of gunicorn
    :param runs_contract_suite: whether the contract suite runs through PgBouncer
    :param has_other_releases: whether other releases of Postgres and of Python take part
    :param judges_times: whether a time that misses its goal is a failure: the machine has nothing else to do then
    """

    limit_seconds: int
    producers: int
    kill_calls: int
    crashes: int
    failovers: int
    network_faults: int
    max_load_seconds: float
    fault_seconds: float
    most_failing: int
    leak_calls: int
    cycles: int
    fuzz_seconds: float
    worker_requests: int
    runs_contract_suite: bool
    has_other_releases: bool
    judges_times: bool


SIZES = {
    "smoke": Sizes(
        limit_seconds=230,
        producers=1,
        kill_calls=600,
        crashes=1,
        failovers=0,
        network_faults=3,
        max_load_seconds=4,
        fault_seconds=0.4,
        most_failing=1,
        leak_calls=1_500,
        cycles=300,
        fuzz_seconds=1,
        worker_requests=0,
        runs_contract_suite=False,
        has_other_releases=False,
        judges_times=False,
    ),
    "short": Sizes(
        limit_seconds=900,
        producers=2,
        kill_calls=4_000,
        crashes=2,
        failovers=2,
        network_faults=6,
        max_load_seconds=15,
        fault_seconds=0.8,
        most_failing=3,
        leak_calls=3_000,
        cycles=3_000,
        fuzz_seconds=5,
        worker_requests=50,
        runs_contract_suite=False,
        has_other_releases=False,
        judges_times=False,
    ),
    "full": Sizes(
        limit_seconds=2_400,
        producers=2,
        kill_calls=60_000,
        crashes=12,
        failovers=4,
        network_faults=30,
        max_load_seconds=150,
        fault_seconds=2,
        most_failing=200,
        leak_calls=100_000,
        cycles=50_000,
        fuzz_seconds=60,
        worker_requests=500,
        runs_contract_suite=True,
        has_other_releases=True,
        judges_times=True,
    ),
}
