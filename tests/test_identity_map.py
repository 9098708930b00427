"""``IdentityMap``: what a channel object holds, how it forgets, and what of it is written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
from sqlalchemy import URL, event

from eric_sse_sql.contract import ERIC_SSE_2_0
from support.catalog import table_counts
from support.statements import Record

if ERIC_SSE_2_0:
    pytest.skip("the live channel needs eric-sse 2.1", allow_module_level=True)

from eric_sse.exception import InvalidListenerException
from eric_sse.listener import MessageQueueListener
from eric_sse.message import Message

from eric_sse_sql import Database, PickleCodec, SqlConnectionsFactory, SqlSSEChannel, SqlSSEChannelRepository
from eric_sse_sql import identity_map as module


class CountingCodec(PickleCodec):
    """A codec that counts the objects that it pickles."""

    pickles = 0

    def pickled(self, value: object, database: Any = None) -> bytes:
        self.pickles += 1
        return super().pickled(value, database)


class Person(MessageQueueListener):
    """A listener with an attribute of the application."""

    name = ""
    tags: Any = ()


class Slow(MessageQueueListener):
    """A listener whose pickling, or unpickling, takes as long as a call of another thread, the first time."""

    meanwhile: ClassVar[Callable[[], object] | None] = None

    @classmethod
    def wait(cls) -> None:
        act, cls.meanwhile = cls.meanwhile, None
        if act is not None:
            thread = threading.Thread(target=act)
            thread.start()
            thread.join()

    def __getstate__(self) -> dict[str, Any]:
        self.wait()
        return vars(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.wait()
        vars(self).update(state)


@pytest.fixture
def codec() -> CountingCodec:
    return CountingCodec()


@pytest.fixture
def counted(shared_url: Any, codec: CountingCodec) -> Iterator[SqlSSEChannelRepository]:
    with Database(shared_url, codec=codec) as database:
        yield SqlSSEChannelRepository(database)


def test_a_persist_pickles_only_what_may_have_changed(counted: SqlSSEChannelRepository, codec: CountingCodec) -> None:
    channel = counted.create({"channel_id": "c"})
    listeners = [channel.add_listener() for _ in range(50)]
    counted.persist(channel)
    codec.pickles = 0
    channel.add_listener()
    counted.persist(channel)
    assert codec.pickles <= 3  # the channel, and the new connection unless a template has both of its objects
    codec.pickles = 0
    listeners[7].start()
    counted.persist(channel)
    assert codec.pickles <= 3
    assert counted.load_one("c").get_listener(listeners[7].id).is_running()
    assert not counted.load_one("c").get_listener(listeners[8].id).is_running()


def test_a_change_inside_an_attribute_of_a_listener_is_persisted(counted: SqlSSEChannelRepository) -> None:
    channel = counted.create({"channel_id": "c"})
    person = Person()
    person.tags = ["a"]
    channel.register_listener(person)
    plain = channel.add_listener()
    counted.persist(channel)
    person.tags.append("b")
    plain.notes = {"of": "the application"}  # type: ignore[attr-defined]
    counted.persist(channel)
    plain.notes["more"] = 1  # type: ignore[attr-defined]
    counted.persist(channel)
    loaded: Any = counted.load_one("c")
    assert loaded.get_listener(person.id).tags == ["a", "b"]
    assert loaded.get_listener(plain.id).notes == {"of": "the application", "more": 1}


def test_a_channel_object_forgets_listeners_that_other_processes_have_deleted(
    database: Database, statements: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SWEEP_AT", 10)
    repository = SqlSSEChannelRepository(database)
    made = repository.create({"channel_id": "c"})
    listeners = [made.add_listener() for _ in range(40)]
    repository.persist(made)
    channel = repository.load_one("c")
    assert isinstance(channel, SqlSSEChannel)
    for listener in listeners[:9]:
        channel.get_listener(listener.id)
    for listener in listeners[:8]:
        made.remove_listener(listener.id)
    repository.persist(made)
    seen = statements(database)
    channel.get_listener(listeners[9].id)
    assert len(seen) == 2  # the lookup, and the one that finds the deleted ones
    assert [each.connection.listener.id for each in channel.identity_map.held()] == [
        listener.id for listener in listeners[8:10]
    ]
    del seen[:]
    for listener in listeners[10:17]:
        channel.get_listener(listener.id)
    assert len(seen) == 7


def test_a_listener_is_the_same_object_for_as_long_as_the_channel_lives(database: Database) -> None:
    repository = SqlSSEChannelRepository(database)
    made = repository.create({"channel_id": "c"})
    listener = made.add_listener()
    repository.persist(made)
    assert made.get_listener(listener.id) is listener
    channel = repository.load_one("c")
    found = channel.get_listener(listener.id)
    assert found is not listener
    assert [each.listener for each in channel.get_connections()] == [found]
    assert channel.get_listener(listener.id) is found


def test_a_channel_sees_what_another_object_stores_and_deletes(database: Database) -> None:
    repository = SqlSSEChannelRepository(database)
    repository.persist(repository.create({"channel_id": "c"}))
    one, other = repository.load_one("c"), repository.load_one("c")
    listener = one.add_listener()
    with pytest.raises(InvalidListenerException):
        other.get_listener(listener.id)
    repository.persist(one)
    assert other.get_listener(listener.id).id == listener.id
    one.remove_listener(listener.id)
    other.dispatch(listener.id, Message("m", 1))
    repository.persist(one)
    with pytest.raises(InvalidListenerException):
        other.dispatch(listener.id, Message("m", 2))
    with pytest.raises(InvalidListenerException):
        other.get_listener(listener.id)


def test_a_changed_listener_that_another_object_has_deleted_stays_deleted(database: Database) -> None:
    repository = SqlSSEChannelRepository(database)
    made = repository.create({"channel_id": "c"})
    gone, kept = made.add_listener(), made.add_listener()
    repository.persist(made)
    channel = repository.load_one("c")
    for listener in (gone, kept):
        channel.get_listener(listener.id).start()
    made.remove_listener(gone.id)
    repository.persist(made)
    repository.persist(channel)
    assert repository.load_one("c").get_listener(kept.id).is_running()
    for each in (channel, repository.load_one("c")):
        with pytest.raises(InvalidListenerException):
            each.get_listener(gone.id)


@pytest.mark.parametrize("is_stored", [False, True])
def test_a_listener_that_a_thread_removes_while_another_one_persists_is_deleted(
    database: Database, is_stored: bool
) -> None:
    repository = SqlSSEChannelRepository(database)
    channel = repository.create({"channel_id": "c"})
    kept, removed = channel.add_listener(), Slow()
    channel.register_listener(removed)
    if is_stored:
        repository.persist(channel)
        removed.start()

    def remove() -> None:
        channel.remove_listener(removed.id)
        repository.persist(channel)

    Slow.meanwhile = remove
    repository.persist(channel)
    assert [each.listener.id for each in repository.load_one("c").get_connections()] == [kept.id]
    assert table_counts(database)["kv_entries"] == 3  # of the channel, and of the listener and the queue that are left


def test_a_listener_that_a_thread_persists_while_another_one_lists_all_stays_held(database: Database) -> None:
    repository = SqlSSEChannelRepository(database)
    made = repository.create({"channel_id": "c"})
    made.register_listener(Slow())
    repository.persist(made)
    channel = repository.load_one("c")
    added = channel.add_listener()
    Slow.meanwhile = lambda: repository.persist(channel)
    assert added in [each.listener for each in channel.get_connections()]
    assert channel.get_listener(added.id) is added


def test_a_changed_listener_that_is_deleted_while_it_is_persisted_stays_deleted(shared_url: URL) -> None:
    with Database(shared_url) as database, Database(shared_url) as other_database:
        repository, other = SqlSSEChannelRepository(database), SqlSSEChannelRepository(other_database)
        made = repository.create({"channel_id": "c"})
        listener = made.add_listener()
        repository.persist(made)
        deleting = other.load_one("c")
        deleting.remove_listener(listener.id)
        thread = threading.Thread(target=other.persist, args=[deleting])

        @event.listens_for(database.engine, "before_cursor_execute")
        def delete_meanwhile(connection: Any, cursor: Any, statement: str, *others: object) -> None:
            if statement.startswith("INSERT") and thread.ident is None:
                thread.start()
                thread.join(0.5)  # on SQLite, it waits until this transaction ends

        listener.start()
        repository.persist(made)
        thread.join()
        assert list(repository.load_one("c").get_connections()) == []


def test_a_new_channel_works_before_it_is_persisted(database: Database) -> None:
    channel = SqlSSEChannel(connections_factory=SqlConnectionsFactory(database))
    listener = channel.add_listener()
    listener.start()
    channel.dispatch(listener.id, Message("m", 1))
    channel.broadcast(Message("m", 2))
    assert [channel.deliver_next(listener.id).payload for _ in range(2)] == [1, 2]
    channel.remove_listener(listener.id)
    with pytest.raises(InvalidListenerException):
        channel.dispatch(listener.id, Message("m", 3))


@pytest.mark.parametrize("listener_id", ["", "nul\0", "\ud800", "x" * 1025, 5, None, ["a"]])
def test_an_id_that_no_listener_can_have_is_that_of_no_listener(database: Database, listener_id: Any) -> None:
    repository = SqlSSEChannelRepository(database)
    repository.persist(repository.create({"channel_id": "c"}))
    for channel in (repository.load_one("c"), repository.create({"channel_id": "new"})):
        for call in (
            channel.get_listener,
            channel.remove_listener,
            channel.deliver_next,
            lambda each, channel=channel: channel.dispatch(each, Message("m", 1)),
        ):
            with pytest.raises(InvalidListenerException):
                call(listener_id)
