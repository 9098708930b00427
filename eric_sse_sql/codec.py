"""Objects to blobs and back. A blob is data only after the codec says so."""

from __future__ import annotations

import collections
import copyreg
import datetime
import decimal
import fractions
import hmac
import io
import pickle
import sys
import uuid
import zoneinfo
from collections.abc import Iterable
from contextvars import ContextVar
from enum import Enum
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, NoReturn, cast

from eric_sse.connection import Connection
from eric_sse.entities import AbstractChannel
from eric_sse.exception import RepositoryError
from eric_sse.listener import MessageQueueListener
from eric_sse.message import Message, MessageContract, SignedMessage, UniqueMessage
from eric_sse.prefabs import SSEChannel
from eric_sse.queues import InMemoryQueue, Queue

from eric_sse_sql import message_pickles
from eric_sse_sql.contract import ObjectAsKeyValuePersistenceMixin
from eric_sse_sql.opcodes import is_plain

PROTOCOL = 5
SIGNATURE_MARK = b"HMAC-SHA256:"  # no pickle of ours begins so
SIGNATURE_BYTES = 32
OPCODES_OF_NEW = ("__newobj__", "__newobj_ex__")  # functions that the pickler turns into opcodes

ERIC_SSE_BASES = frozenset(
    (MessageContract, MessageQueueListener, Queue, AbstractChannel, Connection, ObjectAsKeyValuePersistenceMixin)
)

# Not among them: range, bytes and bytearray, which fill the memory when called with a number, and str, which imports a
# module when called with the name of an encoding. Values of the last three need no call.
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


# Those of eric-sse that most blobs hold. They need not be looked for in their modules.
ERIC_SSE_CLASSES: tuple[type, ...] = (
    Connection,
    Message,
    MessageQueueListener,
    SignedMessage,
    SSEChannel,
    UniqueMessage,
)


class HeldByReference:
    """Base of what an object may refer to but no blob holds: on loading, the reference is to what loads it."""

    def is_same(self, other: HeldByReference) -> bool:
        """Whether a reference to the other may come back as this one."""
        return self is other

    def __reduce__(self) -> Any:
        raise TypeError(f"a {type(self).__name__} can't be pickled; make one in each process")

    def __setstate__(self, state: object) -> None:
        raise TypeError(f"a {type(self).__name__} takes no state from a pickle")


def class_path(cls: type) -> str:
    """Module and qualified name of a class, joined by a dot."""
    return f"{cls.__module__}.{cls.__qualname__}"


class PickleCodec:
    """Objects to pickles and back, with a guard on what a pickle may build.

    It builds plain data (builtins, ``datetime``, ``decimal``, ``fractions``, ``uuid``, ``zoneinfo``, ``collections``),
    eric-sse's own classes, and those classes of modules already imported which derive from eric-sse's messages,
    listeners, queues, channels, connections or ``ObjectAsKeyValuePersistenceMixin``. No function is called by name, no
    module is imported, and what could not be read back is refused when it is written. An object of the mixin is stored
    as class path, constructor parameters and set-up values, wherever it stands.

    Signatures are HMAC-SHA256 over the blob and the place it belongs to: the table and the key, or the queue. A blob
    that was changed, moved to another key or written without a key is refused before pickle sees a byte.

    Safe to share between threads, processes and databases. The guard keeps a forged blob from running code and from
    changing a class; it does not keep it from costing time and memory, nor from ending the process with a key of tuples
    a hundred thousand deep, whose hash overflows Python's own stack. Where others can write to the tables, sign.

    :param allow: further classes that a blob may hold, enumerations among them
    :param signing_keys: secrets of at least 16 bytes; the first signs, all verify, so that a key can be replaced
    :param unrestricted: plain pickle, without the guard: for those who own every writer
    :raises RepositoryError: for an entry of ``allow`` that is no class, and for a key that is too short
    """

    #: The largest blob written or read, in bytes.
    max_blob_bytes: int = 64 * 1024 * 1024

    def __init__(
        self, *, allow: Iterable[type] = (), signing_keys: Iterable[bytes] = (), unrestricted: bool = False
    ) -> None:
        allow, signing_keys = tuple(allow), tuple(signing_keys)
        for each in allow:
            if not isinstance(each, type):
                raise RepositoryError(f"allow= takes classes, and {each!r} is none") from TypeError(type(each).__name__)
        for key in signing_keys:
            if not isinstance(key, bytes) or len(key) < 16:
                raise RepositoryError("signing_keys= takes secrets of at least 16 bytes, as bytes") from ValueError()
        self.unrestricted = unrestricted
        known = (*PLAIN_CLASSES, *ERIC_SSE_CLASSES, *_MARKS, *allow)
        self._allowed = {(each.__module__, each.__qualname__): each for each in known}
        self._known = frozenset(map(id, known))
        self._signing_keys = signing_keys

    @property
    def signs(self) -> bool:
        """Whether a blob can be read at its own place alone."""
        return bool(self._signing_keys)

    def encode(self, value: object, place: str, reference: HeldByReference | None = None) -> bytes:
        """The blob of an object.

        :param place: where the blob will stand: the table and its row's key or queue. The signature is bound to it.
        :param reference: what the object may refer to: the database that stores it
        :raises RepositoryError: when the object, or one inside it, could not be read back; it says which class
        """
        return self.sealed(self.pickled(value, reference), place)

    def pickled(self, value: object, reference: HeldByReference | None = None) -> bytes:
        """The pickle of an object: the first half of :meth:`encode`, for one that is to stand at many places."""
        buffer = io.BytesIO()
        pickler = _Pickler(buffer, PROTOCOL)
        pickler.codec, pickler.held = self, reference
        try:
            content = message_pickles.content_of(value)
            pickler.dump(value if content is None else content)
        except RepositoryError:
            raise
        except Exception as error:  # eric-sse's own too: what an object raises says nothing of the database
            raise RepositoryError(
                f"an object of class {class_path(type(value))} can't be stored: {type(error).__name__}; "
                "the attached cause says why"
            ) from error
        pickled = buffer.getvalue()
        return pickled if content is None else message_pickles.around(pickled)

    def sealed(self, pickled: bytes, place: str) -> bytes:
        """The blob of a pickle: the second half of :meth:`encode`."""
        blob = pickled
        if self._signing_keys:
            blob = SIGNATURE_MARK + _signature(self._signing_keys[0], place, pickled) + pickled
        if len(blob) > self.max_blob_bytes:
            self._refuse_size(len(blob))
        return blob

    def decode(self, blob: bytes, place: str, reference: HeldByReference | None = None) -> Any:
        """The object of a blob.

        :param place: where the blob stands, as it was given to :meth:`encode`
        :param reference: what the references in the blob come back as: the database that loads it
        :raises RepositoryError: when the blob is damaged, forged, unsigned where a signature is asked for, or holds a
            class that is not allowed
        """
        try:
            if len(blob) > self.max_blob_bytes:
                self._refuse_size(len(blob))
            if self._signing_keys or blob.startswith(SIGNATURE_MARK):
                blob = self._verified(blob, place)
            return _unpickle(blob, self, reference)
        except RepositoryError:
            raise
        except Exception as error:  # eric-sse's own too: what an object raises is no empty queue
            raise RepositoryError(
                f"a stored blob can't be read: {type(error).__name__}; the attached cause says why"
            ) from error

    def find_class(self, module: str, name: str) -> type:
        """The class of that exact module and qualified name, if a blob may hold it.

        :raises RepositoryError: when it may not, or when its module is not imported
        """
        known = self._allowed.get((module, name))
        if known is not None:
            return known
        if self.unrestricted:
            __import__(module)
        loaded = sys.modules.get(module)
        if not issubclass(type(loaded), ModuleType):
            raise RepositoryError(f"class {module}.{name} is of a module that is not imported; import {module} first")
        # The plain dictionary and the real type, for any attribute access may import where module or object is lazy.
        found = ModuleType.__getattribute__(cast(ModuleType, loaded), "__dict__").get(name)
        exact = issubclass(type(found), type) and (found.__module__, found.__qualname__) == (module, name)
        if exact and (self.unrestricted or _is_eric_sse_class(found)):
            return cast(type, found)
        raise RepositoryError(
            f"class {module}.{name} is not allowed in a blob; if it is yours, allow it with "
            f"PickleCodec(allow=[{name}]), or store plain data instead"
        )

    def admit(self, cls: type) -> None:
        """Refuse a class that :meth:`find_class` would not give back.

        :raises RepositoryError: with the same message
        """
        if self.find_class(cls.__module__, cls.__qualname__) is not cls:
            raise RepositoryError(f"class {class_path(cls)} is not the one that its module now has under that name")

    def find_persistable(self, path: str) -> type[ObjectAsKeyValuePersistenceMixin]:
        """The class of a ``class_path`` of the mixin, which must be a subclass of the mixin.

        :raises RepositoryError: when it is not, or is not allowed
        """
        module, _, name = path.rpartition(".")
        cls = self.find_class(module, name)
        if ObjectAsKeyValuePersistenceMixin not in cls.__mro__:
            raise RepositoryError(f"class {path} does not derive from ObjectAsKeyValuePersistenceMixin")
        return cls

    def _refuse_size(self, size: int) -> NoReturn:
        raise RepositoryError(f"a blob must be at most {self.max_blob_bytes} bytes, not {size}") from ValueError(size)

    def _verified(self, blob: bytes, place: str) -> bytes:
        """The pickle in a blob, its signature checked."""
        if not self._signing_keys:
            raise RepositoryError("a stored blob is signed; give its key with PickleCodec(signing_keys=[...])")
        start = len(SIGNATURE_MARK) + SIGNATURE_BYTES
        signature, pickled = blob[len(SIGNATURE_MARK) : start], blob[start:]
        if not blob.startswith(SIGNATURE_MARK) or not any(
            hmac.compare_digest(signature, _signature(key, place, pickled)) for key in self._signing_keys
        ):
            raise RepositoryError(
                f"the blob of {place} has no valid signature; it was not written there with these keys"
            )
        return pickled


def _signature(key: bytes, place: str, pickled: bytes) -> bytes:
    return hmac.digest(key, place.encode() + b"\0" + pickled, "sha256")  # no place holds a NUL


def _is_eric_sse_class(cls: type) -> bool:
    return not ERIC_SSE_BASES.isdisjoint(cls.__mro__) or cls.__module__.partition(".")[0] == "eric_sse"


class _Pickler(pickle.Pickler):
    """Writes only what :func:`_unpickle` reads with the same codec."""

    codec: PickleCodec
    held: HeldByReference | None

    def reducer_override(self, obj: Any) -> Any:
        """Called for whatever is not an exact builtin value, classes and functions included."""
        if isinstance(obj, type):
            if id(obj) not in self.codec._known and not self.codec.unrestricted:
                self.codec.admit(obj)
            return NotImplemented
        if isinstance(obj, HeldByReference):
            if self.held is not None and not self.held.is_same(obj):
                raise RepositoryError(
                    "the object refers to another database than the one that is to store it, and would come back on "
                    "that one; make it with the database that stores it"
                )
            return _Reference, ()
        if isinstance(obj, ObjectAsKeyValuePersistenceMixin):
            stored = obj.kv_as_dict
            self.codec.find_persistable(stored["class_path"])
            parameters = stored["class_path"], stored["constructor_parameters"]
            return _Construct, parameters, (stored["setup_dict"],), None, None, _SetUp
        if isinstance(obj, InMemoryQueue):
            raise RepositoryError(
                f"class {class_path(type(obj))} keeps its messages in this process and can't be stored; "
                "use eric_sse_sql.SqlQueue"
            )
        return _reduced(obj, self.codec.unrestricted)


def _reduced(obj: Any, unrestricted: bool) -> Any:
    """How an object is written: unless unrestricted, through classes alone, never through a function."""
    if isinstance(obj, (FunctionType, BuiltinFunctionType, MethodType)):
        if unrestricted:
            return NotImplemented
        raise RepositoryError(f"the function {obj.__qualname__} can't be stored; store data instead")
    if isinstance(obj, Enum):  # some releases of Python write getattr() instead
        return type(obj), (obj._value_,)
    if isinstance(obj, zoneinfo.ZoneInfo) and obj.key is not None:
        return type(obj), (obj.key,)
    reduce = copyreg.dispatch_table.get(type(obj))
    reduced: Any = reduce(obj) if reduce else obj.__reduce_ex__(PROTOCOL)
    if not unrestricted and not (isinstance(reduced[0], type) or getattr(reduced[0], "__name__", "") in OPCODES_OF_NEW):
        raise RepositoryError(
            f"class {class_path(type(obj))} is pickled by the name of a function or a global and can't be stored; "
            "store plain data instead"
        )
    if isinstance(reduced, str) or len(reduced) < 3 or reduced[2] is None:
        return reduced
    make, arguments, state, items, pairs, set_state = (*reduced, None, None, None)[:6]
    return make, arguments, state, items, pairs, set_state or _SetState


# What a pickle of this package calls. All are classes, for it names nothing else, but none of them is ever made. Their
# names stand in stored blobs.
class _Construct:
    """Makes an object of the mixin."""

    def __new__(cls, path: str, parameters: dict[str, Any]) -> Any:
        codec, _ = _loading.get()
        return codec.find_persistable(path)(**parameters)


class _SetUp:
    """Sets up an object of the mixin."""

    def __new__(cls, obj: object, state: tuple[dict[str, Any]]) -> Any:
        if not isinstance(obj, ObjectAsKeyValuePersistenceMixin):
            raise RepositoryError(f"class {class_path(type(obj))} is not one that is set up from a dictionary")
        (setup,) = state
        obj.kv_setup_by_dict(setup)


class _SetState:
    """Gives an object its state, as the opcode BUILD does; which would do it to a class, too, or an enum's member."""

    def __new__(cls, obj: Any, state: Any) -> Any:
        if isinstance(obj, (type, Enum)):
            raise RepositoryError("a stored blob is damaged: it changes a class, or a member of an enumeration")
        if hasattr(obj, "__setstate__"):
            obj.__setstate__(state)
            return
        attributes, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
        if attributes:
            namespace = vars(obj)
            for name, value in attributes.items():
                namespace[sys.intern(name)] = value
        if slots:
            for name, value in slots.items():
                setattr(obj, name, value)


class _Reference:
    """Is what loads the object."""

    def __new__(cls) -> Any:
        _, reference = _loading.get()
        if reference is None:
            raise RepositoryError("the object refers to a database, and none loads it")
        return reference


_MARKS = (_Construct, _SetUp, _SetState, _Reference)
_loading: ContextVar[tuple[PickleCodec, HeldByReference | None]] = ContextVar("eric_sse_sql_loading")


class _Unpickler(pickle.Unpickler):
    """Builds what the codec allows."""

    def __init__(self, buffer: io.BytesIO, codec: PickleCodec) -> None:
        super().__init__(buffer)
        if not codec.unrestricted:
            self.find_class = codec.find_class  # type: ignore[method-assign]


def _unpickle(pickled: bytes, codec: PickleCodec, reference: HeldByReference | None) -> Any:
    content = message_pickles.inside(pickled)
    return _loads(pickled, codec, reference) if content is None else Message(*_loads(content, codec, reference))


def _loads(pickled: bytes, codec: PickleCodec, reference: HeldByReference | None) -> Any:
    """The only place that unpickles."""
    if not codec.unrestricted and is_plain(pickled):
        return pickle.loads(pickled)  # noqa: S301 - nothing in it names a class
    token = _loading.set((codec, reference))
    try:
        return _Unpickler(io.BytesIO(pickled), codec).load()
    finally:
        _loading.reset(token)
