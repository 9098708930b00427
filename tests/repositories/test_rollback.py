"""Persisting a channel again after a rollback: what was removed and added meanwhile is stored by the next commit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from eric_sse.listener import MessageQueueListener
from eric_sse.prefabs import SSEChannel
from sqlalchemy import URL, create_engine

from eric_sse_sql import ChannelRepository, Database, SqlQueue, SqlStorageEngine
from eric_sse_sql.contract import ERIC_SSE_2_0, make_connection, register, registered_connections
from eric_sse_sql.keys import new_id


class Rollback(Exception):
    """Of the application."""


@pytest.fixture
def database(shared_url: URL) -> Iterator[Database]:
    with Database(shared_url) as made:
        yield made


@pytest.fixture(params=["eric-sse 2.0"] if ERIC_SSE_2_0 else ["eric-sse 2.0", "eric-sse 2.1"])
def repository(request: pytest.FixtureRequest, database: Database) -> Any:
    """The repository of channels, as either eric-sse asks for it."""
    if request.param == "eric-sse 2.0":
        return ChannelRepository(SqlStorageEngine(database))
    from eric_sse_sql import SqlSSEChannelRepository

    return SqlSSEChannelRepository(database)


def add(channel: Any, database: Database) -> str:
    """Register a connection. The id of its listener."""
    listener = MessageQueueListener()
    register(channel, make_connection(listener, SqlQueue(database), new_id()))
    return listener.id


@contextmanager
def rolled_back(database: Database) -> Iterator[None]:
    with suppress(Rollback), database.transaction():
        yield
        raise Rollback


@contextmanager
def savepoint_rolled_back(database: Database) -> Iterator[None]:
    with database.transaction(), rolled_back(database):
        yield


@contextmanager
def outer_transaction_rolled_back(database: Database) -> Iterator[None]:
    with rolled_back(database), database.transaction():
        yield


@contextmanager
def joined_and_rolled_back(database: Database) -> Iterator[None]:
    engine = create_engine(database.engine.url)
    with engine.connect() as connection:
        with database.join(connection):
            yield
        connection.rollback()
    engine.dispose()


@contextmanager
def savepoint_in_joined_rolled_back(database: Database) -> Iterator[None]:
    engine = create_engine(database.engine.url)
    with engine.begin() as connection, database.join(connection), rolled_back(database):
        yield
    engine.dispose()


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(
    "undone",
    [
        rolled_back,
        savepoint_rolled_back,
        outer_transaction_rolled_back,
        joined_and_rolled_back,
        savepoint_in_joined_rolled_back,
    ],
)
def test_what_a_rollback_undid_is_persisted_by_the_next_persist(
    undone: Callable[[Database], Any], times: int, repository: Any, database: Database
) -> None:
    channel = SSEChannel(channel_id="news")
    if not isinstance(repository, ChannelRepository):
        channel = repository.create({"channel_id": "news"})
    first, second = add(channel, database), add(channel, database)
    repository.persist(channel)

    def stored() -> set[str]:
        return {listener.id for _, listener, _ in registered_connections(repository.load_one("news"))}

    channel.remove_listener(first)
    added = {second}
    for _ in range(times):
        added.add(add(channel, database))
        with undone(database):
            repository.persist(channel)
            assert stored() == added
        assert stored() == {first, second}
    repository.persist(channel)
    assert stored() == added
    repository.persist(channel)
    assert stored() == added


def test_what_a_joined_transaction_has_committed_is_known_to_the_next_persist(
    repository: Any, database: Database
) -> None:
    channel = SSEChannel(channel_id="news")
    if not isinstance(repository, ChannelRepository):
        channel = repository.create({"channel_id": "news"})
    first = add(channel, database)
    engine = create_engine(database.engine.url)
    with engine.begin() as connection, database.join(connection):
        repository.persist(channel)
    channel.remove_listener(first)
    with engine.begin() as connection, database.join(connection):
        repository.persist(channel)
    engine.dispose()
    assert registered_connections(repository.load_one("news")) == []
