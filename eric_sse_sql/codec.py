"""``PickleCodec``: objects to blobs and back, without trust in the blobs."""

from __future__ import annotations

import copyreg
import io
import pickle
import sys
import zoneinfo
from collections.abc import Iterable
from contextvars import ContextVar
from enum import Enum
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, NoReturn

from eric_sse.exception import RepositoryError
from eric_sse.message import Message
from eric_sse.queues import InMemoryQueue

from eric_sse_sql.allow_list import AllowList
from eric_sse_sql.arguments import kind_of, validate_type
from eric_sse_sql.contract import ObjectAsKeyValuePersistenceMixin
from eric_sse_sql.pickles import message_blob
from eric_sse_sql.pickles.grammar import is_plain
from eric_sse_sql.pickles.signature import SIGNATURE_MARK, signature, verify

PROTOCOL = 5
MIN_KEY_BYTES = 16
FUNCTIONS_WITH_OPCODE = ("__newobj__", "__newobj_ex__")  # the pickler writes an opcode for them, not their names


class PersistentReference:
    """Base of objects that a blob refers to but does not contain, as pickle's persistent ids do.

    When the blob is decoded, the reference becomes the object given to :meth:`PickleCodec.decode`.
    """

    def is_same(self, other: PersistentReference) -> bool:
        """Whether a reference to the other object may be decoded as this one."""
        return self is other

    def __reduce__(self) -> Any:
        raise TypeError(f"a {type(self).__name__} can't be pickled; make one in each process")

    def __setstate__(self, state: object) -> None:
        raise TypeError(f"a {type(self).__name__} takes no state from a pickle")


def class_path(cls: type) -> str:
    """Module and qualified name of a class, joined by a dot."""
    return f"{cls.__module__}.{cls.__qualname__}"


class PickleCodec:
    """Encodes objects as pickles and decodes them, with a guard on what a pickle may build.

    Allowed are plain data (builtins, ``datetime``, ``decimal``, ``fractions``, ``uuid``, ``zoneinfo``,
    ``collections``), eric-sse's own classes, and classes of imported modules that derive from eric-sse's messages,
    listeners, queues, channels, connections or ``ObjectAsKeyValuePersistenceMixin``. Decoding calls no function by its
    name and imports no module. What could not be decoded is refused when it is encoded. An object of the mixin is
    stored as class path, constructor parameters and set-up values, also inside other objects.

    A signature is an HMAC-SHA256 over the pickle and its context: the table and the key or queue of its row. Before
    anything is unpickled, the codec refuses a blob that is not signed, was changed, or was moved to another row.

    Safe to share between threads, processes and databases. The guard prevents a forged blob from running code and from
    changing a class. It does not limit the time and memory that a forged blob uses, and a key of tuples nested a
    hundred thousand deep ends the process, because Python's hash of it overflows the stack. Use signatures where
    others can write to the tables.

    :param allow: further classes that a blob may contain, including enumerations
    :param signing_keys: secrets of at least 16 bytes. The first one signs and all of them verify, so that a key can be
        replaced without rewriting the blobs
    :param unrestricted: plain pickle, without the guard. Only safe where every writer of the tables is trusted
    :raises RepositoryError: for an entry of ``allow`` that is not a class, for a key that is too short, and for an
        argument of another type
    """

    #: The largest blob that is encoded or decoded, in bytes.
    max_blob_bytes: int = 64 * 1024 * 1024

    def __init__(
        self, *, allow: Iterable[type] = (), signing_keys: Iterable[bytes] = (), unrestricted: bool = False
    ) -> None:
        validate_type("unrestricted=", unrestricted, bool)
        for name, values in (("allow=", allow), ("signing_keys=", signing_keys)):
            if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
                raise RepositoryError(f"{name} takes a list, not {kind_of(values)}; write {name}[...]") from TypeError(
                    kind_of(values)
                )
        signing_keys = tuple(signing_keys)
        for key in signing_keys:
            if not isinstance(key, bytes) or len(key) < MIN_KEY_BYTES:
                raise RepositoryError(
                    f"signing_keys= takes secrets of at least {MIN_KEY_BYTES} bytes, as bytes"
                ) from ValueError()
        self.allow_list = AllowList((*_CALLED_BY_BLOBS, *allow), unrestricted=unrestricted)
        self._signing_keys = signing_keys

    @property
    def unrestricted(self) -> bool:
        """Whether the guard is off."""
        return self.allow_list.unrestricted

    @property
    def signs(self) -> bool:
        """Whether blobs are signed, so that each is valid in its own context only."""
        return bool(self._signing_keys)

    def encode(self, value: object, context: str, reference: PersistentReference | None = None) -> bytes:
        """The blob of an object.

        :param context: identifies the row of the blob: the table, and its key or queue. The signature covers it.
        :param reference: the database that stores the object; the object may refer to it
        :raises RepositoryError: when the object, or an object inside it, could not be decoded; the message names the
            class
        """
        return self.sign(self.pickled(value, reference), context)

    def pickled(self, value: object, reference: PersistentReference | None = None) -> bytes:
        """The pickle of an object: the first step of :meth:`encode`, done once for a value stored in many rows."""
        buffer = io.BytesIO()
        pickler = _Pickler(buffer, PROTOCOL)
        pickler.allow_list, pickler.reference = self.allow_list, reference
        try:
            content = message_blob.content_of(value)
            pickler.dump(value if content is None else content)
        except (RepositoryError, MemoryError):
            raise
        except Exception as error:  # any exception of the object's own code, eric-sse's included
            raise RepositoryError(
                f"an object of class {class_path(type(value))} can't be stored: {type(error).__name__}; "
                "the attached cause says why"
            ) from error
        pickled = buffer.getvalue()
        return pickled if content is None else message_blob.wrap(pickled)

    def sign(self, content: bytes, context: str) -> bytes:
        """The blob of a pickle: the second step of :meth:`encode`. Without signing keys it is the pickle itself."""
        keys = self._signing_keys
        blob = signature(content, keys[0], context) + content if keys else content
        if len(blob) > self.max_blob_bytes:
            self._refuse_size(len(blob))
        return blob

    def decode(self, blob: bytes, context: str, reference: PersistentReference | None = None) -> Any:
        """The object of a blob.

        :param context: the context that :meth:`encode` was given
        :param reference: the database that loads the blob; references in the blob become this object
        :raises RepositoryError: when the blob is damaged or forged, is not signed although the codec signs, or
            contains a class that is not allowed
        """
        return self.unpickled(self.verify(blob, context), reference)

    def verify(self, blob: bytes, context: str) -> bytes:
        """The content of a blob, without its signature: the first step of :meth:`decode`.

        :raises RepositoryError: when the blob is too large, is no bytes, or has no valid signature although the codec
            signs
        """
        if not isinstance(blob, bytes):
            raise RepositoryError(
                f"a stored blob can't be read: it is {kind_of(blob)}, not bytes; in SQLite, CAST it AS BLOB"
            ) from TypeError(kind_of(blob))
        if len(blob) > self.max_blob_bytes:
            self._refuse_size(len(blob))
        if self._signing_keys:
            return verify(blob, self._signing_keys, context)
        if blob.startswith(SIGNATURE_MARK):
            raise RepositoryError("a stored blob is signed; give its key with PickleCodec(signing_keys=[...])")
        return blob

    def unpickled(self, pickled: bytes, reference: PersistentReference | None = None) -> Any:
        """The object of a pickle: the second step of :meth:`decode`."""
        try:
            return _unpickle(pickled, self.allow_list, reference)
        except (RepositoryError, MemoryError):
            raise
        except Exception as error:  # eric-sse's included: NoMessagesException in a constructor is not an empty queue
            raise RepositoryError(
                f"a stored blob can't be read: {type(error).__name__}; the attached cause says why"
            ) from error

    def _refuse_size(self, size: int) -> NoReturn:
        raise RepositoryError(f"a blob must be at most {self.max_blob_bytes} bytes, not {size}") from ValueError(size)


class _Pickler(pickle.Pickler):
    """Writes only what :func:`_unpickle` can read with the same allow-list."""

    allow_list: AllowList
    reference: PersistentReference | None

    def reducer_override(self, obj: Any) -> Any:
        """Called for classes, functions, and all objects that are not of an exact builtin type."""
        if isinstance(obj, type):
            if id(obj) not in self.allow_list.listed_ids:
                self.allow_list.check(obj)
            return NotImplemented
        if isinstance(obj, PersistentReference):
            if self.reference is not None and not self.reference.is_same(obj):
                raise RepositoryError(
                    "the object refers to another database than the one that is to store it, and would come back on "
                    "that one; make it with the database that stores it"
                )
            return _Reference, ()
        if isinstance(obj, ObjectAsKeyValuePersistenceMixin):
            stored = obj.kv_as_dict
            self.allow_list.find_persistable(stored["class_path"])
            parameters = stored["class_path"], stored["constructor_parameters"]
            return _Construct, parameters, (stored["setup_dict"],), None, None, _SetUp
        if isinstance(obj, InMemoryQueue):
            raise RepositoryError(
                f"class {class_path(type(obj))} keeps its messages in this process and can't be stored; "
                "use eric_sse_sql.SqlQueue"
            )
        return _reduce(obj, self.allow_list.unrestricted)


def _reduce(obj: Any, unrestricted: bool) -> Any:
    """The reduce value of an object: a class to call, never a function, unless unrestricted."""
    if isinstance(obj, (FunctionType, BuiltinFunctionType, MethodType)):
        if unrestricted:
            return NotImplemented
        raise RepositoryError(f"the function {obj.__qualname__} can't be stored; store data instead")
    if isinstance(obj, Enum):  # some releases of Python reduce a member to a call of getattr()
        return type(obj), (obj._value_,)
    if isinstance(obj, zoneinfo.ZoneInfo) and obj.key is not None:
        return type(obj), (obj.key,)
    reduce = copyreg.dispatch_table.get(type(obj))
    reduced: Any = reduce(obj) if reduce else obj.__reduce_ex__(PROTOCOL)
    calls_class = isinstance(reduced[0], type) or getattr(reduced[0], "__name__", "") in FUNCTIONS_WITH_OPCODE
    if not unrestricted and not calls_class:
        raise RepositoryError(
            f"class {class_path(type(obj))} is pickled by the name of a function or a global and can't be stored; "
            "store plain data instead"
        )
    if isinstance(reduced, str) or len(reduced) < 3 or reduced[2] is None:
        return reduced
    make, arguments, state, items, pairs, set_state = (*reduced, None, None, None)[:6]
    return make, arguments, state, items, pairs, set_state or _SetState


# The callables of a blob. They are classes, because a blob may name classes only; calling one runs its __new__ and
# creates no instance of it. Stored blobs contain the names of this module and of these classes, so both must stay.
class _Construct:
    """Creates an object of the mixin."""

    def __new__(cls, path: str, parameters: dict[str, Any]) -> Any:
        allow_list, _ = _loading.get()
        return allow_list.find_persistable(path)(**parameters)


class _SetUp:
    """Sets up an object of the mixin."""

    def __new__(cls, obj: object, state: tuple[dict[str, Any]]) -> Any:
        if not isinstance(obj, ObjectAsKeyValuePersistenceMixin):
            raise RepositoryError(f"class {class_path(type(obj))} is not one that is set up from a dictionary")
        (setup,) = state
        obj.kv_setup_by_dict(setup)


class _SetState:
    """Sets the state of an object as the opcode BUILD does, but never that of a class or an enum member."""

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
    """Returns the database that loads the blob."""

    def __new__(cls) -> Any:
        _, reference = _loading.get()
        if reference is None:
            raise RepositoryError("the object refers to a database, and none loads it")
        return reference


_CALLED_BY_BLOBS = (_Construct, _SetUp, _SetState, _Reference)
_loading: ContextVar[tuple[AllowList, PersistentReference | None]] = ContextVar("eric_sse_sql_loading")


class _Unpickler(pickle.Unpickler):
    """Looks classes up in the allow-list."""

    def __init__(self, buffer: io.BytesIO, allow_list: AllowList) -> None:
        super().__init__(buffer)
        if not allow_list.unrestricted:
            self.find_class = allow_list.find_class  # type: ignore[method-assign]


def _unpickle(pickled: bytes, allow_list: AllowList, reference: PersistentReference | None) -> Any:
    content = message_blob.unwrap(pickled)
    if content is None:
        return _loads(pickled, allow_list, reference)
    return Message(*_loads(content, allow_list, reference))


def _loads(pickled: bytes, allow_list: AllowList, reference: PersistentReference | None) -> Any:
    """The only function of the package that unpickles."""
    if not allow_list.unrestricted and is_plain(pickled):
        return pickle.loads(pickled)  # noqa: S301 - it names no class
    token = _loading.set((allow_list, reference))
    try:
        return _Unpickler(io.BytesIO(pickled), allow_list).load()
    finally:
        _loading.reset(token)
