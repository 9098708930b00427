"""Every statement of the package is READ COMMITTED, whatever the default of the engine, the database or the role is."""

from __future__ import annotations

import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise, product
from typing import Any, NamedTuple

import pytest
from eric_sse.exception import NoMessagesException
from eric_sse.message import Message
from sqlalchemy import URL, create_engine, event, func, select, text

from eric_sse_sql import Database, SqlQueue, SqlStorageEngine
from eric_sse_sql.execution.statement import Statement

LEVELS = ("serializable", "repeatable read")
DEFAULTS = {
    "database": "ALTER DATABASE {database} SET default_transaction_isolation = '{level}'",
    "role": "ALTER ROLE CURRENT_USER IN DATABASE {database} SET default_transaction_isolation = '{level}'",
    "engine": "",  # isolation_level= of the application's engine
}
LEVEL = Statement(lambda sql: select(func.current_setting("transaction_isolation")))
EXECUTIONS = 12  # more than after which psycopg has prepared a statement


class Defaults(NamedTuple):
    """A database, and where its default isolation level is set."""

    url: URL
    of: str
    level: str

    @contextmanager
    def database(self, own_engine: bool, is_observed: bool = False) -> Iterator[Database]:
        """The database, on an engine of the package or of the application."""
        options = {"isolation_level": self.level.upper()} if self.of == "engine" else {}
        engine = create_engine(self.url, **options)
        with Database(engine if own_engine else self.url) as database:
            if is_observed:
                event.listen(database.engine, "before_cursor_execute", lambda *arguments: None)
            yield database
        engine.dispose()


@pytest.fixture(scope="module")
def defaults(new_postgres: Callable[[], URL]) -> dict[tuple[str, str], Defaults]:
    """A database with the tables for each default and level."""
    made = {}
    for of, level in product(DEFAULTS, LEVELS):
        url = new_postgres()
        with Database(url) as database:
            database.upgrade()
            if DEFAULTS[of]:
                with database.transaction():
                    statement = DEFAULTS[of].format(database=url.database, level=level)
                    database.connection().execute(text(statement))
        made[of, level] = Defaults(url, of, level)
    return made


# The engine's own level is one of the application's engine.
CASES = [(of, level, own) for of, level, own in product(DEFAULTS, LEVELS, (False, True)) if own or of != "engine"]
each_default = pytest.mark.parametrize(("of", "level", "own_engine"), CASES)


@each_default
@pytest.mark.parametrize("is_observed", [False, True])
def test_each_statement_is_read_committed(
    of: str, level: str, own_engine: bool, is_observed: bool, defaults: dict[Any, Defaults]
) -> None:
    with defaults[of, level].database(own_engine, is_observed) as database:
        seen = Counter(database.executor.run(LEVEL)[0][0] for _ in range(EXECUTIONS))
        with database.transaction():
            seen.update(database.executor.run(LEVEL)[0][0] for _ in range(EXECUTIONS))
            with database.transaction():
                seen.update([database.executor.run(LEVEL)[0][0]])
        seen.update([database.executor.run(LEVEL)[0][0]])
        assert seen == {"read committed": 2 * EXECUTIONS + 2}


@pytest.mark.parametrize("of", DEFAULTS)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("is_observed", [False, True])
def test_the_transactions_of_the_application_keep_their_level(
    of: str, level: str, is_observed: bool, defaults: dict[Any, Defaults]
) -> None:
    with defaults[of, level].database(own_engine=True, is_observed=is_observed) as database:
        for _ in range(2):
            database.executor.run(LEVEL)
            with database.transaction():
                database.executor.run(LEVEL)
            with database.engine.begin() as connection:
                assert connection.scalar(text("SHOW transaction_isolation")) == level
                assert not connection.connection.driver_connection.autocommit
            with database.engine.begin() as connection, database.join(connection):
                assert database.executor.run(LEVEL)[0][0] == level
        with database.engine.begin() as connection:
            assert connection.scalar(text("SHOW default_transaction_isolation")) == (
                "read committed" if of == "engine" else level
            )


PRODUCERS, CONSUMERS, MESSAGES = 2, 4, 60


@each_default
@pytest.mark.parametrize("is_observed", [False, True])
def test_concurrent_calls_never_fail_and_each_message_is_delivered_once(
    of: str, level: str, own_engine: bool, is_observed: bool, defaults: dict[Any, Defaults]
) -> None:
    errors: list[BaseException] = []
    delivered: list[tuple[int, int]] = []
    is_over = threading.Event()

    def produce(number: int) -> None:
        with defaults[of, level].database(own_engine, is_observed) as database:
            queue, storage = SqlQueue(database, "queue"), SqlStorageEngine(database)
            for n in range(MESSAGES):
                if n % 2:
                    queue.push(Message("m", (number, n)))
                    storage.upsert("the same key", n)
                    continue
                with database.transaction():
                    storage.upsert("the same key", n)
                    queue.push(Message("m", (number, n)))

    def consume(number: int) -> None:
        with defaults[of, level].database(own_engine, is_observed) as database:
            queue = SqlQueue(database, "queue")
            while True:
                was_over = is_over.is_set()
                try:
                    delivered.append(next(TAKE[number % len(TAKE)](queue)))
                except NoMessagesException:
                    if was_over:
                        return
                    time.sleep(0.002)

    def noting_errors(life: Callable[[int], None], number: int) -> None:
        try:
            life(number)
        except BaseException as error:
            errors.append(error)

    def started(life: Callable[[int], None], count: int) -> list[threading.Thread]:
        threads = [threading.Thread(target=noting_errors, args=(life, number)) for number in range(count)]
        for thread in threads:
            thread.start()
        return threads

    consumers, producers = started(consume, CONSUMERS), started(produce, PRODUCERS)
    for thread in producers:
        thread.join(60)
    is_over.set()
    for thread in consumers:
        thread.join(60)
    assert errors == []
    assert sorted(delivered) == sorted(product(range(PRODUCERS), range(MESSAGES)))


def pop(queue: SqlQueue) -> Iterator[Any]:
    yield queue.pop().payload


def receive(queue: SqlQueue) -> Iterator[Any]:
    with queue.receive() as delivery:
        payload = delivery.payload
    yield payload


def pop_in_a_transaction(queue: SqlQueue) -> Iterator[Any]:
    with queue.database.transaction():
        payload = queue.pop().payload
    yield payload


TAKE = (pop, receive, pop_in_a_transaction)


class RoundTrips:
    """How often the connections of an engine wait for the server, as libpq traces its messages."""

    def __init__(self, database: Database) -> None:
        self._connections: list[Any] = []
        event.listen(database.engine.pool, "connect", lambda driver, record: self._connections.append(driver.pgconn))

    def of(self, call: Callable[[], object]) -> int:
        with tempfile.TemporaryFile(mode="w+") as file:
            for connection in self._connections:
                connection.trace(file.fileno())
            call()
            for connection in self._connections:
                connection.untrace()
            file.seek(0)
            # The second word of a line is F for a message to the server, and B for one from it.
            directions = [line.split("\t")[1] for line in file if "\t" in line]
        return sum(pair == ("F", "B") for pair in pairwise(directions))


CALLS: dict[str, Callable[[Database], object]] = {
    "push": lambda database: SqlQueue(database, "trips").push(Message("m")),
    "pop": lambda database: SqlQueue(database, "trips").pop(),
    "upsert": lambda database: SqlStorageEngine(database).upsert("key", 1),
    "fetch_one": lambda database: SqlStorageEngine(database).fetch_one("key"),
    "two statements": lambda database: in_one_transaction(database),
}


def in_one_transaction(database: Database) -> None:
    with database.transaction():
        SqlQueue(database, "trips").push(Message("m"))
        SqlQueue(database, "trips").pop()


def round_trips(database: Database) -> dict[str, int]:
    """Of each call, once its statements are prepared and the connection is known."""
    trips = RoundTrips(database)
    for call in CALLS.values():
        for _ in range(EXECUTIONS):
            call(database)
    return {name: trips.of(lambda call=call: call(database)) for name, call in CALLS.items()}


@each_default
@pytest.mark.usefixtures("without_notifier")  # whose thread uses another connection
def test_a_call_takes_no_more_round_trips_than_with_the_usual_default(
    of: str, level: str, own_engine: bool, defaults: dict[Any, Defaults], migrated_postgres: URL
) -> None:
    with Defaults(migrated_postgres, "database", "").database(own_engine) as database:
        usual = round_trips(database)
        SqlStorageEngine(database).delete("key")
    assert usual == {"push": 1, "pop": 1, "upsert": 1, "fetch_one": 1, "two statements": 4}
    with defaults[of, level].database(own_engine) as database:
        assert round_trips(database) == usual
