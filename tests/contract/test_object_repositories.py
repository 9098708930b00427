"""What repositories of listeners and queues do on every storage engine, eric-sse's own included."""

from __future__ import annotations

from typing import Any

import pytest
from eric_sse.exception import NoMessagesException, RepositoryError
from eric_sse.listener import MessageQueueListener
from eric_sse.message import Message, MessageContract
from eric_sse.queues import Queue

from eric_sse_sql import ListenerRepository, QueueRepository
from eric_sse_sql.contract import ItemNotFound, KvStorageEngine


class Polite(MessageQueueListener):
    """A listener of an application."""

    def __init__(self, greeting: str) -> None:
        super().__init__()
        self.greeting = greeting


class Letterbox(Queue):
    """A queue of an application, which pickle can take with all its messages."""

    def __init__(self, box_id: str) -> None:
        self._id, self.letters = box_id, list[Any]()

    @property
    def id(self) -> str:
        return self._id

    def push(self, message: MessageContract) -> None:
        self.letters.append(message)

    def pop(self) -> MessageContract:
        if not self.letters:
            raise NoMessagesException
        return self.letters.pop(0)


class Anonymous(Queue):
    id: Any = None

    def push(self, message: MessageContract) -> None: ...

    def pop(self) -> MessageContract:
        raise NoMessagesException


def test_a_listener_comes_back_under_its_own_id(storage: KvStorageEngine) -> None:
    listeners, listener = ListenerRepository(storage), Polite("good morning")
    listener.start()
    listeners.persist(listener)
    loaded = listeners.load(listener.id)
    assert type(loaded) is Polite
    assert (loaded.id, loaded.greeting, loaded.is_running()) == (listener.id, "good morning", True)


def test_a_listener_is_replaced_when_it_is_persisted_again(storage: KvStorageEngine) -> None:
    listeners, listener = ListenerRepository(storage), Polite("good morning")
    listeners.persist(listener)
    listener.greeting = "good night"
    listeners.persist(listener)
    assert listeners.load(listener.id).greeting == "good night"  # type: ignore[attr-defined]


def test_a_queue_comes_back_under_its_own_id(storage: KvStorageEngine) -> None:
    queues, queue = QueueRepository(storage), Letterbox("box")
    queue.push(Message("letter", "dear all"))
    queues.persist(queue)
    assert queues.load("box").pop().payload == "dear all"


@pytest.mark.parametrize("repository", [ListenerRepository, QueueRepository])
def test_an_unknown_object_is_not_found_and_deleted_without_error(storage: KvStorageEngine, repository: Any) -> None:
    objects = repository(storage)
    objects.delete("unknown")
    with pytest.raises(ItemNotFound):
        objects.load("unknown")


def test_a_deleted_object_is_not_found(storage: KvStorageEngine) -> None:
    listeners, queues = ListenerRepository(storage), QueueRepository(storage)
    listener, queue = MessageQueueListener(), Letterbox("box")
    listeners.persist(listener)
    queues.persist(queue)
    listeners.delete(listener.id)
    queues.delete("box")
    for repository, key in ((listeners, listener.id), (queues, "box")):
        with pytest.raises(ItemNotFound):
            repository.load(key)


def test_a_queue_without_id_is_refused(storage: KvStorageEngine) -> None:
    with pytest.raises(RepositoryError, match="Anonymous has no id"):
        QueueRepository(storage).persist(Anonymous())
