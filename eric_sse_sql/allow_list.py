"""The classes that a blob may name."""

from __future__ import annotations

import collections
import datetime
import decimal
import fractions
import sys
import uuid
import zoneinfo
from collections.abc import Iterable
from types import ModuleType
from typing import cast

from eric_sse.connection import Connection
from eric_sse.entities import AbstractChannel
from eric_sse.exception import RepositoryError
from eric_sse.listener import MessageQueueListener
from eric_sse.message import Message, MessageContract, SignedMessage, UniqueMessage
from eric_sse.prefabs import SSEChannel
from eric_sse.queues import Queue

from eric_sse_sql.contract import ObjectAsKeyValuePersistenceMixin

# Excluded because a forged blob could call them with harmful arguments: range, bytes and bytearray allocate as much
# memory as a number says; str imports the module of an encoding. Values of the last three need no call.
PLAIN_CLASSES: tuple[type, ...] = (
    bool,
    complex,
    dict,
    float,
    frozenset,
    int,
    list,
    object,
    set,
    tuple,
    collections.Counter,
    collections.OrderedDict,
    collections.defaultdict,
    collections.deque,
    datetime.date,
    datetime.datetime,
    datetime.time,
    datetime.timedelta,
    datetime.timezone,
    decimal.Decimal,
    fractions.Fraction,
    uuid.UUID,
    zoneinfo.ZoneInfo,
)

# The most common classes of eric-sse, listed to save the look-up in sys.modules.
ERIC_SSE_CLASSES: tuple[type, ...] = (
    Connection,
    Message,
    MessageQueueListener,
    SignedMessage,
    SSEChannel,
    UniqueMessage,
)

ERIC_SSE_BASES = frozenset(
    (MessageContract, MessageQueueListener, Queue, AbstractChannel, Connection, ObjectAsKeyValuePersistenceMixin)
)


class AllowList:
    """Finds the classes that a blob names, and refuses those that it may not name.

    Allowed are the plain classes above, classes of eric-sse, classes of imported modules that derive from eric-sse's
    bases, and the classes given here. A look-up imports no module, except with ``unrestricted``.

    ``listed_ids`` holds the ``id()`` of each listed class: for these, a caller need not call :meth:`check`.

    :param allow: further classes
    :param unrestricted: allow every class and function, and import their modules
    :raises RepositoryError: for an entry of ``allow`` that is not a class
    """

    def __init__(self, allow: Iterable[type], *, unrestricted: bool = False) -> None:
        listed = (*PLAIN_CLASSES, *ERIC_SSE_CLASSES, *allow)
        for entry in listed:
            if not isinstance(entry, type):
                raise RepositoryError(f"allow= takes classes, and {entry!r} is none") from TypeError(
                    type(entry).__name__
                )
        self.unrestricted = unrestricted
        self._listed = {(cls.__module__, cls.__qualname__): cls for cls in listed}
        # The ids of the classes rather than the classes, because a metaclass may define __hash__ and __eq__.
        self.listed_ids = frozenset(map(id, listed))

    def find_class(self, module: str, name: str) -> type:
        """The class with exactly this module and qualified name.

        :raises RepositoryError: when the class is not allowed, or its module is not imported
        """
        listed = self._listed.get((module, name))
        if listed is not None:
            return listed
        if self.unrestricted:
            __import__(module)
        loaded = sys.modules.get(module)
        if not issubclass(type(loaded), ModuleType):
            raise RepositoryError(f"class {module}.{name} is of a module that is not imported; import {module} first")
        # Read __dict__ and type() directly: attribute access on a lazy module or object could import or run code.
        found = ModuleType.__getattribute__(cast(ModuleType, loaded), "__dict__").get(name)
        is_exact = issubclass(type(found), type) and (found.__module__, found.__qualname__) == (module, name)
        if is_exact and (self.unrestricted or _is_eric_sse_class(found)):
            return cast(type, found)
        raise RepositoryError(
            f"class {module}.{name} is not allowed in a blob; if it is yours, allow it with "
            f"PickleCodec(allow=[{name}]), or store plain data instead"
        )

    def check(self, cls: type) -> None:
        """Check that :meth:`find_class` would return this class.

        :raises RepositoryError: when it would not, with the message that reading would give
        """
        if id(cls) in self.listed_ids or self.unrestricted:
            return
        module, name = cls.__module__, cls.__qualname__
        if self.find_class(module, name) is not cls:
            raise RepositoryError(f"class {module}.{name} is not the one that its module now has under that name")

    def find_persistable(self, path: str) -> type[ObjectAsKeyValuePersistenceMixin]:
        """The class of a ``class_path``, which must derive from ``ObjectAsKeyValuePersistenceMixin``.

        :raises RepositoryError: when it does not, or is not allowed
        """
        module, _, name = path.rpartition(".")
        cls = self.find_class(module, name)
        if ObjectAsKeyValuePersistenceMixin not in cls.__mro__:
            raise RepositoryError(f"class {path} does not derive from ObjectAsKeyValuePersistenceMixin")
        return cls


def _is_eric_sse_class(cls: type) -> bool:
    return not ERIC_SSE_BASES.isdisjoint(cls.__mro__) or cls.__module__.partition(".")[0] == "eric_sse"
