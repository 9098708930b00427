"""``PickleCodec``: which objects it encodes and decodes, and that both refuse the same ones."""

from __future__ import annotations

import copy
import functools
import math
import pickle
import re
import sys
import types
import uuid
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from eric_sse.connection import Connection
from eric_sse.exception import InvalidMessageFormat, NoMessagesException, RepositoryError
from eric_sse.listener import MessageQueueListener
from eric_sse.message import Message, SignedMessage, UniqueMessage
from eric_sse.prefabs import SSEChannel
from eric_sse.queues import InMemoryQueue
from hypothesis import given
from hypothesis import strategies as st

from eric_sse_sql import Database, PickleCodec, QueueRepository, SqlQueue, SqlStorageEngine
from eric_sse_sql.contract import ItemNotFound
from support import application
from support.catalog import table_counts

CODEC = PickleCodec()
CONTEXT = "kv_entries/kv/key"
KEY, NEW_KEY = b"k" * 16, b"n" * 32
MADRID = ZoneInfo("Europe/Madrid")

ZONES = st.sampled_from([None, timezone.utc, timezone(timedelta(hours=5, minutes=30), "IST"), MADRID])
HASHABLE = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(2**2100), max_value=2**2100)
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text(st.characters(), max_size=300)
    | st.binary(max_size=300)
    | st.datetimes(timezones=ZONES)
    | st.dates()
    | st.times(timezones=ZONES)
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.fractions()
    | st.uuids()
)
PLAIN = st.recursive(
    HASHABLE,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(HASHABLE, inner, max_size=4)
        | st.sets(HASHABLE, max_size=4)
        | st.frozensets(HASHABLE, max_size=4)
        | st.binary(max_size=20).map(bytearray)
        | st.lists(inner, max_size=4).map(deque)
        | st.dictionaries(HASHABLE, inner, max_size=4).map(OrderedDict)
        | st.dictionaries(HASHABLE, inner, max_size=4).map(lambda pairs: defaultdict(list, pairs))
        | st.dictionaries(HASHABLE, st.integers(), max_size=4).map(Counter)
    ),
    max_leaves=12,
)


def round_trip(value: Any, codec: PickleCodec = CODEC, reference: Database | None = None) -> Any:
    """The value that is decoded from the blob of a value."""
    return codec.decode(codec.encode(value, CONTEXT), CONTEXT, reference)


def contents(value: Any) -> tuple[type, Any, Any]:
    """The class and attributes of an object, recursively."""
    attributes = {name: contents(each) if hasattr(each, "__dict__") else each for name, each in vars(value).items()}
    return type(value), attributes, getattr(value, "args", ())


def refusal(call: Callable[..., Any], *arguments: Any) -> str:
    """The message of the RepositoryError that a call raises."""
    with pytest.raises(RepositoryError) as refused:
        call(*arguments)
    return str(refused.value)


# Plain data


@given(PLAIN)
def test_plain_data_is_decoded_equal(value: Any) -> None:
    loaded = round_trip(value)
    assert loaded == value
    assert type(loaded) is type(value)


@pytest.mark.parametrize(
    "value",
    [
        float("inf"),
        "\ud800 alone",
        "x" * 100_000,
        b"x" * 100_000,
        bytearray(b"\0\xff"),
        list(range(3_000)),
        {n: str(n) for n in range(3_000)},
        set(range(3_000)),
        7**90_000,
        datetime(2024, 10, 27, 2, 30, tzinfo=MADRID, fold=1),
        timezone.utc,
        MADRID,
        Decimal("-Infinity"),
        Fraction(22, 7),
        uuid.UUID(int=2**127),
        deque([1, 2], maxlen=2),
        OrderedDict(b=1, a=2),
        dict,
        datetime,
    ],
    ids=lambda value: f"{type(value).__name__} {str(value)[:15]!a}" if not isinstance(value, int) else "a large number",
)
def test_boundary_values_are_decoded_equal(value: Any) -> None:
    loaded = round_trip(value)
    assert (loaded, type(loaded)) == (value, type(value))


def test_details_that_equality_ignores_are_decoded() -> None:
    assert math.isnan(round_trip(float("nan")))
    assert round_trip(Decimal("sNaN123")).compare_total(Decimal("sNaN123")) == 0
    assert round_trip(datetime(2024, 10, 27, 2, 30, tzinfo=MADRID, fold=1)).fold == 1
    assert round_trip(datetime(2024, 1, 1, tzinfo=MADRID)).tzinfo is MADRID
    assert round_trip(deque("ab", maxlen=2)).maxlen == 2
    assert list(round_trip(OrderedDict(b=1, a=2))) == ["b", "a"]
    assert round_trip(defaultdict(list)).default_factory is list
    assert [type(each) for each in round_trip((date.min, time.min, timedelta.max))] == [date, time, timedelta]


def test_a_recursive_structure_is_decoded_as_recursive() -> None:
    value: dict[str, Any] = {"list": []}
    value["list"].append(value)
    value["tuple"] = (value["list"],)
    loaded = round_trip(value)
    assert loaded["list"][0] is loaded
    assert loaded["tuple"][0] is loaded["list"]


# Classes of eric-sse, and of the application


@pytest.mark.parametrize(
    "value",
    [
        Message("type", {"a": [1, None]}),
        SignedMessage("sender", "type", "text"),
        UniqueMessage(Message("type", 1.5), "sender"),
        MessageQueueListener(),
        InvalidMessageFormat("text"),
        application.Order(1, [Decimal("1.5")]),
        application.Clerk("name"),
        application.ListQueue("queue"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_objects_of_eric_sse_and_of_derived_classes_are_decoded(value: Any) -> None:
    assert contents(round_trip(value)) == contents(value)


def test_a_connection_is_decoded_with_its_listener_and_queue() -> None:
    value = Connection(application.Clerk("name"), application.ListQueue("queue"))
    value.queue.push(Message("type", value.listener))
    loaded = round_trip(value)
    assert loaded.id == value.id
    assert loaded.queue.pop().payload is loaded.listener


def test_a_channel_is_decoded() -> None:
    for value in (SSEChannel(channel_id="id"), application.Room("topic", "id"), application.Hall("id")):
        loaded = round_trip(value)
        assert (type(loaded), loaded.id) == (type(value), "id")


def test_state_in_slots_in_dictionaries_and_from_getstate_is_decoded() -> None:
    assert round_trip(application.Slotted(1.5)).weight == 1.5
    versioned = round_trip(application.Versioned("type"))
    assert (versioned.version, versioned.type) == (2, "type")
    basket = application.Basket([1, 2])
    basket.owner = "me"
    assert (round_trip(basket), round_trip(basket).owner) == ([1, 2], "me")


def test_attribute_names_are_interned_as_pickle_interns_them() -> None:
    name = next(name for name in vars(round_trip(application.Order(1))) if name == "number")
    assert name is sys.intern("number")


def test_a_plain_class_is_stored_once_it_is_allowed() -> None:
    codec = PickleCodec(
        allow=[application.Notebook, application.Address, application.Point, application.Stamp, application.Pixel]
    )
    assert round_trip(application.Notebook("text"), codec).text == "text"
    for value in (application.Address("street", ["tag"]), application.Point(1, 2), application.Stamp("ES")):
        assert round_trip(value, codec) == value
    pixel = round_trip(application.Pixel(3, 4), codec)
    assert (pixel.x, pixel.y) == (3, 4)


def test_a_member_of_an_enumeration_is_stored_once_its_class_is_allowed() -> None:
    assert "allow=[Colour]" in refusal(CODEC.encode, application.Colour.RED, CONTEXT)
    codec = PickleCodec(allow=[application.Colour, application.Level, application.Right])
    assert round_trip(application.Colour.RED, codec) is application.Colour.RED
    assert round_trip(application.Level.HIGH, codec) is application.Level.HIGH
    assert round_trip(application.Right.READ | application.Right.WRITE, codec) == application.Right(3)


def test_a_nested_class_is_stored_once_it_is_allowed() -> None:
    value = application.Drawer.Inner("type")
    assert "allow=[Drawer.Inner]" in refusal(CODEC.encode, value, CONTEXT)
    loaded = round_trip(value, PickleCodec(allow=[application.Drawer.Inner]))
    assert type(loaded) is application.Drawer.Inner


# Refusals


class _Local(Message):
    """A class that the next class statement replaces in its module."""


STALE = _Local("type")


class _Local(Message):
    """The class that replaced it."""


def _local_object() -> Message:
    class Local(Message):
        """A class that cannot be looked up by name."""

    return Local("type")


REFUSED = {
    "an object of a class that is not allowed": application.Notebook(),
    "a dataclass that is not allowed": application.Address("street"),
    "a class that is not allowed": application.Notebook,
    "an object of a local class": _local_object(),
    "an object of a class that was defined again": STALE,
    "a function": application.touch,
    "a lambda": lambda: None,
    "a method": application.Clerk("name").start,
    "a builtin function": len,
    "a method of a builtin": [].append,
    "a partial call": functools.partial(application.touch),
    "a module": application,
    "a regular expression": re.compile("x"),
    "an exception": ValueError("x"),
    "a generator": (n for n in ()),
    "a range": range(3),
    "the type of None": type(None),
    "a generic alias": list[int],
    "an in-memory queue": InMemoryQueue(),
    "a default dictionary with a function": defaultdict(lambda: 0),
    "an object that is a global": type("", (), {"__reduce__": lambda self: "CODEC"})(),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("inside", [lambda value: value, lambda value: {"a": [1, Message("type", (value,))]}])
def test_a_value_that_could_not_be_decoded_is_refused_when_it_is_encoded(
    name: str, inside: Callable[[Any], Any]
) -> None:
    refusal(CODEC.encode, inside(REFUSED[name]), CONTEXT)


@pytest.mark.parametrize("value", [application.Notebook(), application.Colour.RED, ValueError("x"), application.Drawer])
def test_encoding_and_decoding_refuse_with_the_same_message(value: Any) -> None:
    blob = PickleCodec(unrestricted=True).encode(value, CONTEXT)
    assert refusal(CODEC.decode, blob, CONTEXT) == refusal(CODEC.encode, value, CONTEXT)


def test_a_refusal_names_the_class_and_says_how_to_allow_it() -> None:
    refused = refusal(CODEC.encode, {"a": application.Notebook("secret text")}, CONTEXT)
    assert "application.Notebook is not allowed" in refused
    assert "PickleCodec(allow=[Notebook])" in refused
    assert "secret" not in refused


def test_the_refusal_of_a_class_that_is_pickled_through_a_function_names_it() -> None:
    assert "class re.Pattern is pickled by the name of a function" in refusal(CODEC.encode, re.compile("x"), CONTEXT)


def test_the_refusal_of_an_in_memory_queue_names_sql_queue() -> None:
    for codec in (CODEC, PickleCodec(unrestricted=True)):
        refused = refusal(codec.encode, Connection(MessageQueueListener(), InMemoryQueue()), CONTEXT)
        assert "eric_sse.queues.InMemoryQueue" in refused
        assert "use eric_sse_sql.SqlQueue" in refused


def test_a_blob_that_is_not_bytes_is_refused() -> None:
    for blob in ("text", 5, None, memoryview(b"\x80\x05N.")):
        refusal(CODEC.decode, blob, CONTEXT)


@pytest.mark.parametrize("entry", ["text", None, 5, application.touch])
def test_only_classes_can_be_allowed(entry: Any) -> None:
    assert "takes classes" in refusal(lambda: PickleCodec(allow=[entry]))


# The mixin


@pytest.mark.parametrize("cls", [application.ByMixin, application.Robot, application.Pipe, application.Hall])
def test_an_object_of_the_mixin_is_decoded_inside_any_other_object(cls: Callable[[str], application.ByMixin]) -> None:
    value = cls("key")
    value.friend = {"friend": cls("friend")}
    loaded = round_trip({"a": [value, {"b": (value,)}], "c": Message("type", value), "d": OrderedDict(e=value)})
    found = loaded["a"][0]
    assert type(found) is cls
    assert found.act() == "key"
    assert found.friend["friend"].key == "friend"
    assert all(each is found for each in (loaded["a"][1]["b"][0], loaded["c"].payload, loaded["d"]["e"]))


def test_objects_of_the_mixin_may_refer_to_each_other() -> None:
    one, other = application.ByMixin("one"), application.Robot("other")
    one.friend, other.friend = [other], one
    loaded = round_trip(one)
    assert loaded.friend[0].friend is loaded


def test_the_set_up_of_an_object_may_decode_other_blobs(monkeypatch: pytest.MonkeyPatch) -> None:
    inner, outer = Database("sqlite://"), Database("sqlite://")
    blob = CODEC.encode(SqlQueue(inner, "inner"), CONTEXT)

    def set_up(robot: application.Robot, setup: dict[str, Any]) -> None:
        robot.friend = CODEC.decode(blob, CONTEXT, inner)

    monkeypatch.setattr(application.Robot, "kv_setup_by_dict", set_up)
    robot, queue = round_trip([application.Robot("key"), SqlQueue(outer, "outer")], reference=outer)
    assert robot.friend.database is inner
    assert queue.database is outer


@pytest.mark.parametrize("raised", [NoMessagesException(), ItemNotFound("key"), ValueError("x")], ids=repr)
def test_an_exception_of_the_set_up_of_an_object_becomes_a_repository_error(
    raised: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def set_up(robot: application.Robot, setup: dict[str, Any]) -> None:
        raise raised

    monkeypatch.setattr(application.Robot, "kv_setup_by_dict", set_up)
    with pytest.raises(RepositoryError) as error:
        round_trip(application.Robot("key"))
    assert error.value.__cause__ is raised


def test_a_class_path_of_a_missing_class_is_refused_when_it_is_encoded() -> None:
    assert "class support.application.Nowhere is not allowed" in refusal(
        CODEC.encode, application.Misplaced("key"), CONTEXT
    )


def test_a_class_path_of_a_class_without_the_mixin_is_refused_when_it_is_encoded() -> None:
    refused = refusal(CODEC.encode, [application.Disguised("key")], CONTEXT)
    assert "application.Order does not derive from ObjectAsKeyValuePersistenceMixin" in refused


# Stored blobs

# Written by version 0.1.0. The names of the codec's own classes are part of the format.
STORED_BLOBS: dict[str, tuple[Callable[[Database], Any], bytes]] = {
    "an object with state": (
        lambda database: application.Order(1, ["a"]),
        b"\x80\x05\x95\x8c\0\0\0\0\0\0\0\x8c\x13support.application\x94\x8c\x05Order\x94\x93\x94)\x81\x94\x8c\x12"
        b"eric_sse_sql.codec\x94\x8c\x09_SetState\x94\x93\x94h\x03}\x94(\x8c\x05_type\x94\x8c\x05order\x94\x8c\x08"
        b"_payload\x94}\x94\x8c\x06number\x94K\x01sh\x0cK\x01\x8c\x05items\x94]\x94\x8c\x01a\x94au\x86R0.",
    ),
    "a queue": (
        lambda database: SqlQueue(database, "queue"),
        b"\x80\x05\x95\x94\0\0\0\0\0\0\0\x8c\x12eric_sse_sql.codec\x94\x8c\x0a_Construct\x94\x93\x94\x8c\x1c"
        b"eric_sse_sql.queues.SqlQueue\x94}\x94(\x8c\x08database\x94h\0\x8c\x0a_Reference\x94\x93\x94)R\x94\x8c\x08"
        b"queue_id\x94\x8c\x05queue\x94u\x86\x94R\x94h\0\x8c\x06_SetUp\x94\x93\x94h\x0c}\x94\x85\x94\x86R0.",
    ),
}


@pytest.mark.parametrize("name", STORED_BLOBS)
def test_the_blob_of_an_object_equals_the_one_that_version_0_1_0_stored(name: str) -> None:
    make, stored = STORED_BLOBS[name]
    with Database("sqlite://") as database:
        value = make(database)
        assert CODEC.encode(value, CONTEXT, database) == stored
        assert type(CODEC.decode(stored, CONTEXT, database)) is type(value)


def test_the_signed_blob_of_a_value_equals_the_one_that_version_0_1_0_stored() -> None:
    signature = "4206 21a4 3d7a c6e3 b152 9182 e6aa 4dd5 a527 2ec3 2a60 6349 3b95 6e80 e663 d2b7"
    stored = b"HMAC-SHA256:" + bytes.fromhex(signature) + b"\x80\x05\x95\x09\0\0\0\0\0\0\0\x8c\x05value\x94."
    codec = PickleCodec(signing_keys=[KEY])
    assert codec.encode("value", CONTEXT) == stored
    assert codec.decode(stored, CONTEXT) == "value"


# References to a database


def test_a_database_inside_an_object_is_decoded_as_the_database_that_loads_it() -> None:
    writer, reader = Database("postgresql://admin:hunter2@db.example.org:5432/shop"), Database("sqlite://")
    blob = CODEC.encode({"queue": SqlQueue(writer, "q"), "robot": application.Order(1, [writer])}, CONTEXT)
    for secret in (b"hunter2", b"admin", b"db.example", b"5432", b"shop", b"postgres", b"psycopg"):
        assert secret not in blob
    loaded = CODEC.decode(blob, CONTEXT, reader)
    assert loaded["queue"].database is reader
    assert loaded["robot"].items == [reader]


def test_a_reference_is_refused_when_no_database_loads_it() -> None:
    assert "refers to a database" in refusal(round_trip, SqlQueue(Database("sqlite://"), "q"))


@pytest.mark.parametrize("use", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_database_can_only_be_pickled_by_the_codec(use: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match="a Database can't be pickled"):
        use(Database("sqlite://"))


def test_a_database_takes_no_state_from_a_pickle() -> None:
    with pytest.raises(TypeError, match="takes no state"):
        Database("sqlite://").__setstate__({})


def test_a_queue_of_another_database_is_not_stored_as_one_of_this(database: Database, tmp_path: Path) -> None:
    with Database(f"sqlite:///{tmp_path / 'other.db'}") as other, Database("sqlite://") as memory:
        for elsewhere in (other, memory):
            with pytest.raises(RepositoryError, match="another database"):
                QueueRepository(SqlStorageEngine(database)).persist(SqlQueue(elsewhere))
    assert table_counts(database)["kv_entries"] == 0


def test_a_queue_of_another_schema_refers_to_another_database() -> None:
    url = "postgresql+psycopg://127.0.0.1:1/shop"
    one, other, anywhere = Database(url, schema="a"), Database(url, schema="b"), Database(url)
    assert not one.is_same(other)
    assert one.is_same(Database(url, schema="a")) and one.is_same(anywhere) and anywhere.is_same(one)


# Signatures


def test_the_first_key_signs_and_all_keys_verify() -> None:
    old, rotating, new = (PickleCodec(signing_keys=keys) for keys in ([KEY], [NEW_KEY, KEY], [NEW_KEY]))
    assert rotating.decode(old.encode("value", CONTEXT), CONTEXT) == "value"
    assert new.decode(rotating.encode("value", CONTEXT), CONTEXT) == "value"
    assert "no valid signature" in refusal(old.decode, rotating.encode("value", CONTEXT), CONTEXT)


def test_a_signed_blob_is_valid_in_its_own_context_only() -> None:
    codec = PickleCodec(signing_keys=[KEY])
    blob = codec.encode(Message("type"), CONTEXT)
    for context in ("kv_entries/kv/other", "kv_entries/kv/key/", "sse_messages/kv/key", "sse_messages/key", ""):
        assert f"the blob of {context} has no valid signature" in refusal(codec.decode, blob, context)


def test_no_byte_of_a_signed_blob_can_be_changed_removed_or_added() -> None:
    codec = PickleCodec(signing_keys=[KEY, NEW_KEY])
    blob = codec.encode(Message("type", 1), CONTEXT)
    for at in range(len(blob)):
        flipped = blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :]
        assert "no valid signature" in refusal(codec.decode, flipped, CONTEXT)
        assert "no valid signature" in refusal(codec.decode, blob[:at], CONTEXT)
    assert "no valid signature" in refusal(codec.decode, blob + b"\0", CONTEXT)


def test_an_unsigned_blob_is_refused_before_it_is_unpickled() -> None:
    codec = PickleCodec(signing_keys=[KEY], unrestricted=True)
    hostile = pickle.dumps(functools.partial(application.touch)) + b"trailing"
    for blob in (CODEC.encode("value", CONTEXT), hostile, b"", b"HMAC-SHA256:"):
        assert "no valid signature" in refusal(codec.decode, blob, CONTEXT)


def test_a_codec_without_keys_refuses_a_signed_blob_and_names_signing_keys() -> None:
    blob = PickleCodec(signing_keys=[KEY]).encode("value", CONTEXT)
    assert "signing_keys=[...]" in refusal(CODEC.decode, blob, CONTEXT)
    assert "signing_keys=[...]" in refusal(PickleCodec(unrestricted=True).decode, blob, CONTEXT)


@pytest.mark.parametrize("key", ["k" * 16, b"k" * 15, b"", None, bytearray(16)])
def test_a_signing_key_that_is_short_or_not_bytes_is_refused(key: Any) -> None:
    refused = refusal(lambda: PickleCodec(signing_keys=[key]))
    assert "at least 16 bytes" in refused
    assert "kkk" not in refused


# An unrestricted codec


def test_an_unrestricted_codec_stores_everything_that_can_be_pickled() -> None:
    codec = PickleCodec(unrestricted=True)
    for value in (application.touch, [len], application.Notebook, range(3), re.compile("x"), application.Colour.RED):
        assert round_trip(value, codec) == value
    assert round_trip(application.Clerk("name").start, codec).__self__.name == "name"
    assert round_trip(application.Notebook("text"), codec).text == "text"
    assert codec.decode(pickle.dumps(application.Notebook("by pickle")), CONTEXT).text == "by pickle"


def test_an_unrestricted_codec_stores_databases_and_the_mixin_as_a_guarded_one_does() -> None:
    codec, database = PickleCodec(unrestricted=True), Database("sqlite://")
    queue, robot = round_trip([SqlQueue(database, "q"), application.Robot("key")], codec, database)
    assert queue.database is database
    assert robot.act() == "key"
    assert "does not derive from" in refusal(codec.encode, application.Disguised("key"), CONTEXT)


def test_a_guarded_codec_decodes_blobs_of_an_unrestricted_one_if_the_classes_are_allowed() -> None:
    value = {"order": application.Order(1), "colour": application.Colour.RED, "pixel": application.Pixel(1, 2)}
    blob = PickleCodec(unrestricted=True).encode(value, CONTEXT)
    refusal(CODEC.decode, blob, CONTEXT)
    loaded = PickleCodec(allow=[application.Colour, application.Pixel]).decode(blob, CONTEXT)
    assert (loaded["order"].number, loaded["colour"], loaded["pixel"].y) == (1, application.Colour.RED, 2)


def test_an_unrestricted_codec_may_import_modules(unimported: str) -> None:
    blob = f"c{unimported}\nImported\n.".encode()
    refusal(CODEC.decode, blob, CONTEXT)
    assert unimported not in sys.modules
    assert PickleCodec(unrestricted=True).decode(blob, CONTEXT).__name__ == "Imported"


# Limits


def test_a_blob_that_is_too_large_is_neither_encoded_nor_decoded() -> None:
    class Small(PickleCodec):
        max_blob_bytes = 1000

    codec, blob = Small(), CODEC.encode(b"x" * 1000, CONTEXT)
    exact = codec.encode(b"x" * (1000 - len(codec.encode(b"x" * 300, CONTEXT)) + 300), CONTEXT)
    assert len(exact) == 1000
    assert len(codec.decode(exact, CONTEXT)) > 900
    for refused in (refusal(codec.encode, b"x" * 1000, CONTEXT), refusal(codec.decode, blob, CONTEXT)):
        assert f"at most 1000 bytes, not {len(blob)}" in refused


def test_a_blob_has_at_most_64_mebibytes_by_default() -> None:
    assert "at most 67108864 bytes" in refusal(CODEC.encode, bytes(64 * 1024 * 1024), CONTEXT)
    assert "at most 67108864 bytes" in refusal(CODEC.decode, bytes(64 * 1024 * 1024 + 1), CONTEXT)


def test_a_structure_nested_too_deeply_is_refused() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    assert "RecursionError" in refusal(CODEC.encode, value, CONTEXT)


# Decoding runs no code of a module


@pytest.fixture
def unimported(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module that can be imported and is not."""
    name = f"unimported_{uuid.uuid4().hex}"
    (tmp_path / f"{name}.py").write_text("class Imported: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


def _named(module: str, name: str) -> bytes:
    """A pickle of the class with that name."""
    return b"".join((b"\x80\x05", *(b"\x8c%c%b" % (len(each), each.encode()) for each in (module, name)), b"\x93."))


def test_decoding_imports_no_module(unimported: str) -> None:
    before = set(sys.modules)
    assert f"import {unimported} first" in refusal(CODEC.decode, _named(unimported, "Imported"), CONTEXT)
    assert f"import {unimported} first" in refusal(
        CODEC.encode, type("Message", (Message,), {"__module__": unimported})("type"), CONTEXT
    )
    round_trip({"order": application.Order(1, [Decimal(1), uuid.UUID(int=1)]), "robot": application.Robot("key")})
    assert set(sys.modules) == before


def test_decoding_runs_no_attribute_access_of_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lazy(types.ModuleType):
        def __getattribute__(self, name: str) -> Any:
            application.touch("attribute", name)
            raise AssertionError(name)

    class LazyObject:
        @property
        def __class__(self) -> Any:
            application.touch("class")
            return type

    module = types.ModuleType("with_getattr")
    vars(module).update({"__getattr__": application.touch, "proxy": LazyObject()})
    monkeypatch.setitem(sys.modules, "lazy", Lazy("lazy"))
    monkeypatch.setitem(sys.modules, "with_getattr", module)
    monkeypatch.setitem(sys.modules, "no_module", LazyObject())
    monkeypatch.setitem(sys.modules, "nothing", None)
    for where, name in (
        ("lazy", "Anything"),
        ("with_getattr", "Anything"),
        ("with_getattr", "proxy"),
        ("no_module", "Anything"),
        ("nothing", "Anything"),
    ):
        assert f"class {where}.{name} is " in refusal(CODEC.decode, _named(where, name), CONTEXT)
    assert application.touched == []
