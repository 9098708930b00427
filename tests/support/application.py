"""The classes of an application, as the tests store them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, Flag, IntEnum
from typing import Any

from eric_sse.entities import AbstractChannel
from eric_sse.exception import NoMessagesException
from eric_sse.listener import MessageQueueListener
from eric_sse.message import Message, MessageContract
from eric_sse.queues import Queue

from eric_sse_sql.contract import ObjectAsKeyValuePersistenceMixin

touched: list[Any] = []  # stays empty unless a pickle ran something


def touch(*arguments: Any) -> None:
    """What no pickle may call."""
    touched.append(arguments)


class ApplicationError(Exception):
    """An error of the application's own."""


class Order(Message):
    """A message by pickle."""

    def __init__(self, number: int, items: Any = ()) -> None:
        super().__init__("order", {"number": number})
        self.number, self.items = number, items


class Slotted(Message):
    """A message whose own attribute is a slot."""

    __slots__ = ("weight",)

    def __init__(self, weight: float) -> None:
        super().__init__("slotted")
        self.weight = weight


class Versioned(Message):
    """A message with a say in its own state."""

    def __getstate__(self) -> tuple[int, str]:
        return 2, self.type

    def __setstate__(self, state: tuple[int, str]) -> None:
        self.version, self._type = state
        self._payload = None


class Basket(list[Any], MessageContract):
    """A message that is a list, with attributes of its own."""

    type = "basket"

    @property
    def payload(self) -> list[Any]:
        return list(self)


class Clerk(MessageQueueListener):
    """A listener by pickle."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.seen = name, list[str]()


class ListQueue(Queue):
    """A queue by pickle: its messages are in it."""

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


class Room(AbstractChannel):
    """A channel by pickle."""

    def __init__(self, topic: str, channel_id: str) -> None:
        super().__init__(channel_id=channel_id)
        self.topic = topic

    def adapt(self, msg: MessageContract) -> Any:
        return msg.payload


class ByMixin(ObjectAsKeyValuePersistenceMixin):
    """An object with something in it that pickle can't take."""

    def __init__(self, key: str) -> None:
        self.key, self.act = key, lambda: key
        self.friend: Any = None

    @property
    def kv_key(self) -> str:
        return self.key

    @property
    def kv_constructor_params_as_dict(self) -> dict[str, Any]:
        return {"key": self.key}

    @property
    def kv_setup_values_as_dict(self) -> dict[str, Any]:
        return {"friend": self.friend}

    def kv_setup_by_dict(self, setup: dict[str, Any]) -> None:
        self.friend = setup["friend"]


class Robot(ByMixin, MessageQueueListener):
    """A listener by the mixin."""

    def __init__(self, key: str) -> None:
        MessageQueueListener.__init__(self)
        self.id = key
        ByMixin.__init__(self, key)


class Pipe(ByMixin, ListQueue):
    """A queue by the mixin."""

    def __init__(self, key: str) -> None:
        ListQueue.__init__(self, key)
        ByMixin.__init__(self, key)


class Hall(ByMixin, Room):
    """A channel by the mixin."""

    def __init__(self, key: str) -> None:
        Room.__init__(self, "hall", key)
        ByMixin.__init__(self, key)


class Misplaced(ByMixin):
    """An object of the mixin whose class path leads to nothing."""

    @property
    def kv_class_absolute_path(self) -> str:
        return "support.application.Nowhere"


class Disguised(ByMixin):
    """An object of the mixin whose class path leads to a class that is not of the mixin."""

    @property
    def kv_class_absolute_path(self) -> str:
        return "support.application.Order"


class Colour(Enum):
    RED = "red"
    GREEN = "green"


class Level(IntEnum):
    LOW = 1
    HIGH = 2

    @property
    def value(self) -> str:  # for its users; pickle needs the real one
        return self.name.lower()


class Right(Flag):
    READ = 1
    WRITE = 2


@dataclass
class Address:
    street: str
    tags: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Point:
    x: int
    y: int


@dataclass(frozen=True, slots=True)
class Stamp:
    country: str


class Pixel:
    """A plain class with slots alone."""

    __slots__ = ("x", "y")

    def __init__(self, x: int, y: int) -> None:
        self.x, self.y = x, y


class Drawer:
    """A plain class, which notes whatever is done to it."""

    def __init__(self, *content: Any) -> None:
        touch("made", content)

    def __setstate__(self, state: Any) -> None:
        touch("set", state)

    class Inner(Message):
        """A message class inside another class."""


class Notebook:
    """A plain class that is harmless."""

    def __init__(self, text: str = "") -> None:
        self.text = text
