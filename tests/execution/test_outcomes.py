"""A reply of Postgres that is lost: the error says that the outcome is unknown, where it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from eric_sse.exception import RepositoryError
from eric_sse.message import Message
from sqlalchemy import URL, Engine, event
from sqlalchemy.exc import DBAPIError

from eric_sse_sql import Database, OutcomeUnknown, SqlQueue, SqlStorageEngine
from support.cutting_proxy import COMMIT, CuttingProxy
from support.databases import application_engine, opened

OWN, WRAPPED = "own engine", "serializable and observed"
A, B = "queue-a", "queue-b"
KINDS = {
    "an application's": lambda url, stack: stack.enter_context(application_engine(url)),
    "an application's in autocommit": lambda url, stack: stack.enter_context(
        application_engine(url, isolation_level="AUTOCOMMIT")
    ),
    "an application's that is observed": lambda url, stack: observed(stack.enter_context(application_engine(url))),
    "an application's, serializable": lambda url, stack: stack.enter_context(
        application_engine(url, connect_args={"options": "-c default_transaction_isolation=serializable"})
    ),
    WRAPPED: lambda url, stack: observed(
        stack.enter_context(
            application_engine(url, connect_args={"options": "-c default_transaction_isolation=serializable"})
        )
    ),
    OWN: lambda url, stack: url,
}


def observed(engine: Engine) -> Engine:
    event.listen(engine, "before_cursor_execute", lambda *arguments: None)
    return engine


@pytest.fixture
def proxy(migrated_postgres: URL, request: pytest.FixtureRequest) -> Iterator[CuttingProxy]:
    with CuttingProxy(migrated_postgres) as made:
        yield made
    with Database(migrated_postgres) as direct:
        for name in (A, B):
            SqlQueue(direct, name).clear()
        SqlStorageEngine(direct).delete("k")


@pytest.fixture
def direct(migrated_postgres: URL) -> Iterator[Database]:
    with opened(migrated_postgres) as made:
        yield made


@pytest.fixture(params=KINDS)
def through(request: pytest.FixtureRequest, proxy: CuttingProxy) -> Iterator[Database]:
    """A database behind the proxy, on each kind of engine."""
    with ExitStack() as stack:
        made = stack.enter_context(opened(KINDS[request.param](proxy.url, stack)))
        assert len(SqlQueue(made, A)) == 0  # SQLAlchemy's first connection runs transactions of its own
        yield made


@pytest.fixture
def decisive(request: pytest.FixtureRequest) -> bytes:
    """A part of the request of a single statement on queue A that commits it."""
    return COMMIT if request.node.callspec.params["through"] == WRAPPED else A.encode()


def assert_unknown(proxy: CuttingProxy, call: Callable[[], Any], text: bytes) -> OutcomeUnknown:
    proxy.lose_reply_to(text)
    with pytest.raises(OutcomeUnknown, match=r"outcome is unknown: the call may have been done.*message_id") as raised:
        call()
    assert proxy.has_lost_reply
    assert type(raised.value.__cause__).__module__.startswith("psycopg")
    assert not isinstance(raised.value.__context__, DBAPIError)  # whose text quotes parameters
    return raised.value


def test_a_push_whose_reply_is_lost_has_an_unknown_outcome(
    proxy: CuttingProxy, direct: Database, through: Database, decisive: bytes
) -> None:
    queue = SqlQueue(through, A)
    error = assert_unknown(proxy, lambda: queue.push(Message("m", 1)), decisive)
    assert isinstance(error, RepositoryError)
    assert len(SqlQueue(direct, A)) == 1  # it was done
    queue.push(Message("m", 2))  # on another connection
    assert len(SqlQueue(direct, A)) == 2


def test_a_pop_and_many_pushes_whose_reply_is_lost_have_an_unknown_outcome(
    proxy: CuttingProxy, direct: Database, through: Database, decisive: bytes
) -> None:
    queue = SqlQueue(through, A)
    assert_unknown(proxy, lambda: queue.push_many(Message("m", n) for n in range(3)), COMMIT)
    assert len(SqlQueue(direct, A)) == 3
    assert_unknown(proxy, queue.pop, decisive)
    assert len(SqlQueue(direct, A)) == 2


def test_a_transaction_whose_commit_has_no_reply_has_an_unknown_outcome(
    proxy: CuttingProxy, direct: Database, through: Database
) -> None:
    def call() -> None:
        with through.transaction():
            SqlQueue(through, A).push(Message("m", 1))
            SqlStorageEngine(through).upsert("k", 2)

    assert_unknown(proxy, call, COMMIT)
    assert (len(SqlQueue(direct, A)), SqlStorageEngine(direct).fetch_one("k")) == (1, 2)


def test_a_read_whose_reply_is_lost_has_an_outcome(proxy: CuttingProxy, through: Database) -> None:
    queue = SqlQueue(through, A)
    proxy.lose_reply_to(A.encode())
    with pytest.raises(RepositoryError) as raised:
        len(queue)
    assert proxy.has_lost_reply
    assert not isinstance(raised.value, OutcomeUnknown)
    assert len(queue) == 0


def test_a_statement_of_a_transaction_whose_reply_is_lost_has_changed_nothing(
    proxy: CuttingProxy, direct: Database, through: Database
) -> None:
    proxy.lose_reply_to(B.encode())
    with pytest.raises(RepositoryError) as raised, through.transaction():
        SqlQueue(through, A).push(Message("m", 1))
        SqlQueue(through, B).push(Message("m", 1))
    assert proxy.has_lost_reply
    assert not isinstance(raised.value, OutcomeUnknown)
    assert (len(SqlQueue(direct, A)), len(SqlQueue(direct, B))) == (0, 0)


def test_a_statement_that_was_never_sent_has_an_outcome(proxy: CuttingProxy) -> None:
    with opened(proxy.url) as database:
        queue = SqlQueue(database, A)
        queue.push(Message("m", 1))
        proxy.__exit__()  # nothing can connect any more
        with pytest.raises(RepositoryError) as raised:
            queue.push(Message("m", 2))
        assert not isinstance(raised.value, OutcomeUnknown)
