"""The classes of an application, and the objects that are stored in the assets.

The program that made an asset stored what these functions return; a test makes the same objects anew and compares.
Stored blobs name this module and its classes.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from typing import Any, NamedTuple
from uuid import UUID

from eric_sse.entities import AbstractChannel
from eric_sse.exception import NoMessagesException
from eric_sse.listener import MessageQueueListener
from eric_sse.message import Message, MessageContract, SignedMessage, UniqueMessage
from eric_sse.queues import Queue

from eric_sse_sql import BlockingSqlQueue, Database, SqlQueue
from eric_sse_sql.contract import ObjectAsKeyValuePersistenceMixin

SIGNING_KEY = b"the signing key of the assets"
CENTURY = 100 * 365 * 24 * 3600.0  # seconds: a lease and a replay time that do not end
SETTINGS: dict[str, Any] = {"stream_delay_seconds": 0.01, "retry_timeout_milliseconds": 250}
REPLAY_SETTINGS: dict[str, Any] = {**SETTINGS, "replay_seconds": CENTURY}


class Size(Enum):
    SMALL = "small"
    LARGE = "large"


@dataclass(frozen=True)
class Address:
    """Neither plain data nor a class of eric-sse: the codec has to allow it."""

    street: str
    tags: list[str] = field(default_factory=list)


ALLOWED = (Address, Size)


class ByMixin(ObjectAsKeyValuePersistenceMixin):
    """An object that holds a function, which pickle can't take."""

    def __init__(self, name: str, parts: Any = ()) -> None:
        self.name, self.parts, self.act = name, parts, lambda: name

    @property
    def kv_key(self) -> str:
        return self.name

    @property
    def kv_constructor_params_as_dict(self) -> dict[str, Any]:
        return {"name": self.name}

    @property
    def kv_setup_values_as_dict(self) -> dict[str, Any]:
        return {"parts": self.parts}

    def kv_setup_by_dict(self, setup: dict[str, Any]) -> None:
        self.parts = setup["parts"]


class Machine(ByMixin):
    """An object of the mixin that stands inside other objects."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Machine) and (self.name, self.parts) == (other.name, other.parts)

    __hash__ = None  # type: ignore[assignment]


class Order(Message):
    """A message with attributes of its own."""

    def __init__(self, number: int, content: Any) -> None:
        super().__init__("order", {"number": number})
        self.number, self.content = number, content


class Clerk(MessageQueueListener):
    """A listener by pickle."""

    def __init__(self, listener_id: str, name: str) -> None:
        super().__init__()
        self.id, self.name, self.heard = listener_id, name, list[str]()

    def on_message(self, msg: MessageContract) -> None:
        self.heard.append(msg.type)


class Robot(ByMixin, MessageQueueListener):
    """A listener of the mixin."""

    def __init__(self, name: str) -> None:
        MessageQueueListener.__init__(self)
        ByMixin.__init__(self, name)
        self.id = name


class Letterbox(Queue):
    """A queue by pickle, which holds its messages itself."""

    def __init__(self, queue_id: str) -> None:
        self._queue_id, self.messages = queue_id, list[MessageContract]()

    @property
    def id(self) -> str:
        return self._queue_id

    def push(self, message: MessageContract) -> None:
        self.messages.append(message)

    def pop(self) -> MessageContract:
        if not self.messages:
            raise NoMessagesException
        return self.messages.pop(0)


class Pipe(ByMixin, Letterbox):
    """A queue of the mixin, whose messages are its set-up values."""

    def __init__(self, name: str) -> None:
        Letterbox.__init__(self, name)
        ByMixin.__init__(self, name)

    @property
    def kv_setup_values_as_dict(self) -> dict[str, Any]:
        return {"messages": self.messages}

    def kv_setup_by_dict(self, setup: dict[str, Any]) -> None:
        self.messages = setup["messages"]


class ShopQueue(SqlQueue):
    """A queue in the database, of a class of the application's."""


class Room(AbstractChannel):
    """A channel of the application's own: by pickle in eric-sse 2.0, by its repository in 2.1."""

    def __init__(self, topic: str, channel_id: str, **others: Any) -> None:
        super().__init__(channel_id=channel_id, **others)
        self.topic = topic

    def adapt(self, msg: MessageContract) -> Any:
        return self.topic, msg.payload


def values() -> dict[str, Any]:
    """What a storage engine holds, by key."""
    return {
        "address": Address("High Street", ["new"]),
        "date": [date(2024, 2, 29), datetime(2024, 2, 29, 12, 30, tzinfo=timezone.utc), timedelta(days=1, seconds=2)],
        "machine": Machine("press", {"small": Machine("gear"), "at": Address("Low Street"), "size": [Size.LARGE]}),
        "number": [0, -1, 2**70, 1.5, True, None, 1j, Decimal("1.10"), Fraction(1, 3), UUID(int=7)],
        "order/1": {"machines": [Machine("saw"), Machine("drill", (Machine("bit"),))]},
        "order/10": ("tuple", {"set"}, frozenset({1}), deque([1, 2]), OrderedDict(b=1, a=2)),
        "size": Size.SMALL,
        "text": {"text": "Größe \N{HOT BEVERAGE}", "bytes": b"\x00\xff", "long": "x" * 300},
    }


def messages() -> list[MessageContract]:
    """A message of each kind."""
    return [
        Message("plain", {"text": "Größe", "list": [1, 2.5, None], "date": date(2024, 2, 29)}),
        Message("empty"),
        UniqueMessage(message=Message("unique", [1]), sender_id="sender", message_id="id of the message"),
        SignedMessage("sender", "signed", "payload"),
        Order(7, {"machine": Machine("press", [Machine("gear")]), "at": Address("High Street"), "size": Size.LARGE}),
        Message("machine", {"inside": Machine("saw")}),
    ]


class Parts(NamedTuple):
    """What a connection is made of."""

    connection_id: str
    listener: MessageQueueListener
    queue: Queue


def plain_listener(listener_id: str) -> MessageQueueListener:
    """A listener of eric-sse's own class."""
    listener = MessageQueueListener()
    listener.id = listener_id
    return listener


def connections(database: Database, channel_id: str) -> list[Parts]:
    """The connections of a channel, ordered by their ids: a listener and a queue of each kind.

    Some ids are longer than 15 characters and some are not: both are stored in the same way, but written by other code.
    """
    running = Clerk(f"{channel_id} clerk", "Ada")
    running.start()
    letterbox, pipe = Letterbox(f"{channel_id} letterbox"), Pipe(f"{channel_id} pipe")
    for queue in (letterbox, pipe):
        queue.push(Order(1, Machine("saw")))
    return [
        Parts(
            f"{channel_id} 1",
            plain_listener(f"plain listener of {channel_id}"),
            SqlQueue(database, f"queue of {channel_id}"),
        ),
        Parts(
            f"{channel_id} 2",
            plain_listener(f"{channel_id} 2"),
            BlockingSqlQueue(database, f"blocking queue of {channel_id}"),
        ),
        Parts(f"{channel_id} 3", running, ShopQueue(database, f"{channel_id} 3")),
        Parts(f"{channel_id} 4", Robot(f"{channel_id} robot"), pipe),
        Parts(f"{channel_id} 5", plain_listener(f"{channel_id} 5"), letterbox),
    ]
