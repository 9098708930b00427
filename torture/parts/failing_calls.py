"""The Nth statement of every public call fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

from sqlalchemy import Engine, create_engine, inspect, text

from eric_sse_sql import Database, SqlStorageEngine
from eric_sse_sql.models import TABLE_NAMES
from torture.calls import CALLS, Call
from torture.databases import Bench, Target
from torture.failures import FAILURES, Failure, Opener
from torture.journal import is_in_doubt
from torture.outcome import Outcome

# What a repeated call writes anew, or a read leaves behind.
VOLATILE = {
    "created_at",
    "updated_at",
    "seen_at",
    "cleared_at",
    "last_event_at",
    "set_aside_at",
    "leased_until",
    "epoch",
}
NUMBERED = {"sse_messages", "sse_set_aside_messages"}  # tables whose ids the database gives
MAX_FINDINGS = 20
UNREACHED = 10_000

Contents = dict[str, list[str]]


def run(bench: Bench) -> Iterator[Outcome]:
    """For every public call and every N: all or nothing, and the call works when it is repeated."""
    for target in bench.targets():
        outcome = Outcome(target.name, calls=0, faults=0, acknowledged=0)
        failures = FAILURES[target.name]
        for name, call in CALLS.items():
            _Trial(target, name, call, outcome).run(failures, bench.sizes.most_failing)
        for kind, opener in failures.items():
            _try_upgrade(bench, target.name, f"upgrade with {kind}", opener, outcome)
        outcome.load = f"{len(CALLS) + 1} calls, each with {' and '.join(failures)}"
        if len(outcome.findings) > MAX_FINDINGS:
            outcome.findings[MAX_FINDINGS:] = [f"{len(outcome.findings) - MAX_FINDINGS} more."]
        yield outcome


class _Trial:
    """One call, whose statements fail in turn."""

    def __init__(self, target: Target, name: str, call: Call, outcome: Outcome) -> None:
        self._target, self._name, self._call, self._outcome = target, name, call, outcome

    def run(self, failures: Mapping[str, Opener], most: int) -> None:
        """Let the first statement fail in each way, then a later one, until the call has none that could fail."""
        engine = create_engine(self._target.direct_url)
        try:
            _empty(engine)
            with Database(self._target.direct_url) as healthy:
                act = self._call.prepare(healthy)
                before = _contents(engine)
                act()
            after = _contents(engine)
            for kind, opener in failures.items():
                number, has_failed = 1, True
                while has_failed and number <= most:
                    _empty(engine)
                    with opener(self._target) as (database, failure):
                        has_failed = self._has_failed(kind, number, database, failure, engine, before, after)
                    number += max(1, number // 5)
        finally:
            engine.dispose()

    def _has_failed(
        self,
        kind: str,
        number: int,
        database: Database,
        failure: Failure,
        engine: Engine,
        before: Contents,
        after: Contents,
    ) -> bool:
        """Make the call. Whether one of its statements has failed."""
        act, what = self._call.prepare(database), f"{self._name} with {kind}, {number}"
        error, has_failed = attempt(act, number, failure)
        self._count(error, has_failed)
        found, is_atomic = _contents(engine), self._call.is_atomic
        if error is None:
            if is_atomic and found != after:
                self._report(f"{what}: it has returned, and has not done its work.")
            return has_failed
        if not isinstance(error, self._call.raises):
            self._report(f"{what}: it raises {type(error).__name__}: {error}.")
        if is_atomic and found not in (before, after):
            self._report(f"{what}: it has done a part of its work.")
        elif is_atomic and found == after != before and not is_in_doubt(error):
            self._report(f"{what}: it was done, and reports a failure.")
        if not is_atomic or found == before:
            error, _ = attempt(act, UNREACHED, failure)
            if error is not None:
                self._report(f"{what}: repeated, it raises {type(error).__name__}: {error}.")
            elif is_atomic and _contents(engine) != after:
                self._report(f"{what}: repeated, it has not done its work.")
        storage = SqlStorageEngine(database, "next")
        try:
            storage.upsert("key", number)
            if storage.fetch_one("key") != number:
                self._report(f"{what}: the next call reads another value.")
        except Exception as next_error:
            self._report(f"{what}: the next call raises {type(next_error).__name__}: {next_error}.")
        return has_failed

    def _count(self, error: Exception | None, has_failed: bool) -> None:
        outcome = self._outcome
        outcome.calls = (outcome.calls or 0) + 1
        outcome.faults = (outcome.faults or 0) + has_failed
        outcome.acknowledged = (outcome.acknowledged or 0) + (error is None)

    def _report(self, finding: str) -> None:
        self._outcome.findings.append(finding)


def attempt(act: Callable[[], object], number: int, failure: Failure) -> tuple[Exception | None, bool]:
    """Make a call whose statement of this number fails. Its exception, and whether there was such a statement."""
    error: Exception | None = None
    failure.arm(number)
    try:
        act()
    except Exception as raised:
        error = raised
    return error, failure.disarm()


def _try_upgrade(bench: Bench, kind: str, name: str, opener: Opener, outcome: Outcome) -> None:
    """The first upgrade of an empty database makes all tables or none."""
    number, has_failed = 1, True
    while has_failed and number <= bench.sizes.most_failing:
        with bench.target(kind, has_tables=False) as target, opener(target) as (database, failure):
            error, has_failed = attempt(database.upgrade, number, failure)
            outcome.calls = (outcome.calls or 0) + 1
            outcome.faults = (outcome.faults or 0) + has_failed
            outcome.acknowledged = (outcome.acknowledged or 0) + (error is None)
            engine = create_engine(target.direct_url)
            made = TABLE_NAMES & set(inspect(engine).get_table_names())
            engine.dispose()
            if made not in (set(), set(TABLE_NAMES)):
                outcome.findings.append(f"{name}, {number}: it has made {len(made)} tables.")
            try:
                database.upgrade()
                database.check()
            except Exception as next_error:
                outcome.findings.append(f"{name}, {number}: repeated, it raises {next_error}.")
        number += max(1, number // 3)


def _empty(engine: Engine) -> None:
    with engine.begin() as connection:
        for table in sorted(TABLE_NAMES):  # which have a few rows: a TRUNCATE takes ten times as long
            connection.execute(text(f"DELETE FROM {table}"))


def _contents(engine: Engine) -> Contents:
    """All rows of all tables, without the columns that differ from one run to the next."""
    contents = {}
    with engine.connect() as connection:
        for table in TABLE_NAMES:
            ignored = VOLATILE | ({"id"} if table in NUMBERED else set())
            rows = connection.execute(text(f"SELECT * FROM {table}")).mappings()
            contents[table] = sorted(str({name: row[name] for name in row if name not in ignored}) for row in rows)
    with suppress(KeyError):
        contents["kv_entries"] = [row for row in contents["kv_entries"] if "'next/" not in row]
    return contents
