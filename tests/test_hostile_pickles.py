"""Hostile pickles run no code: crafted ones and mutated ones, as entries and as messages.

The codec either refuses a pickle, whose entry then stays in its table and whose message is set aside, or builds
objects of allowed classes only.
"""

from __future__ import annotations

import gc
import json
import os
import pickletools
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timezone
from decimal import Decimal
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from eric_sse.connection import Connection
from eric_sse.exception import NoMessagesException, RepositoryError
from eric_sse.message import Message, UniqueMessage
from sqlalchemy import text

from eric_sse_sql import Database, PickleCodec, SqlQueue, SqlStorageEngine
from eric_sse_sql.pickles.signature import SIGNATURE_MARK
from support import application
from support.catalog import table_counts

CODEC = PickleCodec(allow=[application.Colour, application.Point, application.Pixel])
CONTEXT = "kv_entries/kv/key"
CANARY = Path(tempfile.gettempdir()) / f"eric_sse_sql_canary_{os.getpid()}"
SHELL = f"touch {CANARY}"
PYTHON = f"open({str(CANARY)!r}, 'w')"


# An assembler of pickles


def string(value: str) -> bytes:
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def named(module: str, name: str) -> bytes:
    """Push the global with that name."""
    return string(module) + string(name) + b"\x93"


def call(function: bytes, *arguments: bytes | str) -> bytes:
    """Push the result of a call."""
    return function + b"(" + b"".join(string(each) if isinstance(each, str) else each for each in arguments) + b"tR"


def pickled(*parts: bytes, protocol: int = 5) -> bytes:
    return b"\x80" + bytes([protocol]) + b"".join(parts) + b"."


def mark(name: str) -> bytes:
    return named("eric_sse_sql.codec", name)


def construct(*arguments: bytes | str) -> bytes:
    return call(mark("_Construct"), *arguments)


def set_state(*arguments: bytes | str) -> bytes:
    return call(mark("_SetState"), *arguments)


def set_up(*arguments: bytes | str) -> bytes:
    return call(mark("_SetUp"), *arguments)


def across_a_frame(head: bytes, tail: bytes, skipped: int) -> bytes:
    """A pickle with an opcode that extends over the end of its frame. The unpickler reads the whole argument after the
    frame, and so continues some bytes further on: inside a text that contains other opcodes."""
    inside = MESSAGE + b"0" + head
    hidden = b"q" * skipped + ORDER + SLOTS + b"b0"
    return pickled(b"\x95", len(inside).to_bytes(8, "little"), inside, tail, b"C%c" % len(hidden), hidden, b"0N")


def number(value: int) -> bytes:
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


MESSAGE = call(named("eric_sse.message", "Message"), "type")
ORDER = named("support.application", "Order")
RED = call(named("support.application", "Colour"), "red")
DATABASE = call(mark("_Reference"))
STATE = b"}" + string("_type") + string("changed") + b"s"
SLOTS = b"N" + STATE + b"\x86"

# Callables that must not be called: module, name, arguments.
FORBIDDEN: list[tuple[str, str, tuple[bytes | str, ...]]] = [
    ("os", "system", (SHELL,)),
    ("posix", "system", (SHELL,)),
    ("os", "popen", (SHELL,)),
    ("subprocess", "Popen", (b"]" + string("touch") + b"a" + string(str(CANARY)) + b"a",)),
    ("subprocess", "run", (b"]" + string("touch") + b"a" + string(str(CANARY)) + b"a",)),
    ("builtins", "eval", (PYTHON,)),
    ("builtins", "exec", (PYTHON,)),
    ("builtins", "open", (str(CANARY), "w")),
    ("io", "open", (str(CANARY), "w")),
    ("builtins", "compile", (PYTHON, "x", "exec")),
    ("builtins", "getattr", (MESSAGE, "type")),
    ("builtins", "setattr", (MESSAGE, "_type", "x")),
    ("builtins", "__import__", ("antigravity",)),
    ("builtins", "print", ("x",)),
    ("builtins", "type", ("X", b")", b"}")),
    ("builtins", "str", (b"C\1x", "punycode")),
    ("builtins", "bytes", (number(10**12),)),
    ("builtins", "bytearray", (number(10**12),)),
    ("builtins", "range", (number(10**12),)),
    ("builtins", "map", (named("builtins", "list"), b"]")),
    ("builtins", "SystemExit", ()),
    ("builtins", "KeyboardInterrupt", ()),
    ("builtins", "Exception", ("x",)),
    ("sys", "exit", ()),
    ("importlib", "import_module", ("antigravity",)),
    ("antigravity", "Anything", ()),
    ("shutil", "rmtree", (str(CANARY),)),
    ("pathlib", "Path", (str(CANARY),)),
    ("functools", "partial", (named("os", "system"), SHELL)),
    ("operator", "attrgetter", ("type",)),
    ("operator", "methodcaller", ("start",)),
    ("types", "FunctionType", ()),
    ("types", "CodeType", ()),
    ("pickle", "loads", (b"C\2N.",)),
    ("_pickle", "Unpickler", ()),
    ("copyreg", "_reconstructor", (ORDER, named("builtins", "object"), b"N")),
    ("copyreg", "__newobj__", (ORDER,)),
    ("ctypes", "CDLL", ("libc.so.6",)),
    ("socket", "socket", ()),
    ("threading", "Thread", ()),
    ("sqlite3", "connect", (str(CANARY),)),
    ("logging", "FileHandler", (str(CANARY),)),
    ("tempfile", "NamedTemporaryFile", ()),
    ("__main__", "__builtins__", ()),
    ("__main__", "main", ()),
    ("__main__", "Anything", ()),
    ("", "", ()),
    # Functions and imported names of the allowed packages, and parts of allowed classes.
    ("eric_sse", "generate_uuid", ()),
    ("eric_sse", "get_logger", ()),
    ("eric_sse.message", "generate_uuid", ()),
    ("eric_sse.prefabs", "asyncio", ()),
    ("eric_sse.prefabs", "asyncio.run", ()),
    ("eric_sse.prefabs", "ThreadPoolExecutor", ()),
    ("eric_sse.prefabs", "MessageQueueListener", ()),
    ("eric_sse.servers", "Path", (str(CANARY),)),
    ("eric_sse.servers", "SocketServer.start", (str(CANARY),)),
    ("eric_sse.message", "Message.__init__", (MESSAGE, "x")),
    ("eric_sse.message", "Message.__init__.__globals__", ()),
    ("eric_sse.message.Message", "__init__", ()),
    ("eric_sse_sql", "Database", (f"sqlite:///{CANARY}",)),
    ("eric_sse_sql.database", "Database", (f"sqlite:///{CANARY}",)),
    ("eric_sse_sql.storage", "SqlStorageEngine", (f"sqlite:///{CANARY}",)),
    ("eric_sse_sql.codec", "PickleCodec", ()),
    ("eric_sse_sql.codec", "_unpickle", ()),
    ("eric_sse_sql.codec", "_CALLED_BY_BLOBS", ()),
    ("eric_sse_sql.allow_list", "AllowList", ()),
    ("eric_sse_sql.codec", "_SetState.__new__", ()),
    ("support.application", "touch", ("x",)),
    ("support.application", "touched.append", ("x",)),
    ("support.application", "Drawer", ("x",)),
    ("support.application", "Drawer.Inner", ("x",)),
    ("support.application", "Message", ("x",)),
]

# Pickles without a global, with wrong arguments for an allowed class, or damaged.
CRAFTED: dict[str, bytes] = {
    # opcodes that this package never writes
    "the extension registry, 1 byte": pickled(b"\x82\x01"),
    "the extension registry, 2 bytes": pickled(b"\x83\x01\x00"),
    "the extension registry, 4 bytes": pickled(b"\x84\x01\x00\x00\x00"),
    "a persistent id as a line": pickled(b"Pid\n"),
    "a persistent id from the stack": pickled(string("id") + b"Q"),
    "an integer as a line": pickled(b"I1\n"),
    "a text with escapes": pickled(b"S'x'\n"),
    "a buffer from outside": pickled(b"\x97"),
    "a buffer from outside, read-only": pickled(b"\x97\x98"),
    "a copy of the top of the stack": pickled(b"N2\x86"),
    "an unknown opcode": pickled(b"\xff"),
    # huge numbers
    "a memo index as a line": pickled(b"Np99999999999\n"),
    "a memo index of 1 byte": pickled(b"Nq\xff"),
    "a memo index of 4 bytes": pickled(b"Nr\xff\xff\xff\xff"),
    "a memo index that was never set": pickled(b"j\xff\xff\xff\x7f"),
    "a memo index that was never set, 1 byte": pickled(b"h\x00"),
    "a memo index that was never set, as a line": pickled(b"g99999999999\n"),
    "a text longer than the blob, 1 byte": pickled(b"\x8c\xffx"),
    "a text of 4 GiB": pickled(b"X\xff\xff\xff\xffx"),
    "a text of 16 EiB": pickled(b"\x8d" + b"\xff" * 8 + b"x"),
    "a text of 1 TiB": pickled(b"\x8d" + (2**40).to_bytes(8, "little") + b"x"),
    "bytes longer than the blob, 1 byte": pickled(b"C\xffx"),
    "bytes of 4 GiB": pickled(b"B\xff\xff\xff\xffx"),
    "bytes of 8 EiB": pickled(b"\x8e" + (2**63 - 1).to_bytes(8, "little")),
    "a byte array of 1 TiB": pickled(b"\x96" + (2**40).to_bytes(8, "little")),
    "an integer longer than the blob": pickled(b"\x8a\xff\x01"),
    "an integer of 2 GiB": pickled(b"\x8b\xff\xff\xff\x7f\x01"),
    "an integer of a negative size": pickled(b"\x8b\xff\xff\xff\xff\x01"),
    "a string of 2 GiB": pickled(b"T\xff\xff\xff\x7fx"),
    "a frame of 16 EiB": pickled(b"\x95" + b"\xff" * 8 + b"N"),
    "a frame of 1 TiB": pickled(b"\x95" + (2**40).to_bytes(8, "little") + b"N"),
    "a frame of 16 EiB about a class": pickled(b"\x95" + b"\xff" * 8 + MESSAGE),
    "a frame of 1 TiB about a class": pickled(b"\x95" + (2**40).to_bytes(8, "little") + MESSAGE),
    "a text across the end of a frame": across_a_frame(b"X\x0a\0\0\0xxxx", b"xxxxxx", 2),
    "a short text across the end of a frame": across_a_frame(b"\x8c\4xx", b"xx", 0),
    "a number across the end of a frame": across_a_frame(b"J\0\0", b"\0\0", 0),
    # broken ones
    "nothing": b"",
    "no opcode": b"\x80\x05",
    "the end alone": b".",
    "half of one": pickled(MESSAGE)[:-20],
    "one byte short": pickled(MESSAGE)[:-1],
    "two of them": pickled(MESSAGE) * 2,
    "one byte behind the end": pickled(b"N") + b"\0",
    "a protocol to come": pickled(b"N", protocol=6),
    "an empty stack": pickled(b"0"),
    "no mark": pickled(b"e"),
    "a mark alone": pickled(b"("),
    "a list as a key": pickled(b"}]Ns"),
    "an item of None": pickled(b"NNNs"),
    "a member of None": pickled(b"N(N\x90"),
    "appended to None": pickled(b"N(NNe"),
    "a text that is no UTF-8": pickled(b"\x8c\x02\xff\xff"),
    "json": b'{"type": "text"}',
    "a signature without key": SIGNATURE_MARK + b"x" * 32 + pickled(b"N"),
    # odd uses of what is allowed
    "a name that is no text": pickled(b"K\1K\2\x93"),
    "a call of a text": pickled(call(string("os.system"), SHELL)),
    "a call of an object": pickled(call(MESSAGE, SHELL)),
    "a call without tuple": pickled(ORDER + b"K\1R"),
    "an instance of an object": pickled(MESSAGE + b")\x81"),
    "an instance of a text": pickled(string("x") + b")\x81"),
    "an instance of a forbidden class": pickled(named("support.application", "Drawer") + b")\x81"),
    "an instance by keyword of a forbidden class": pickled(named("subprocess", "Popen") + b")}\x92"),
    "an instance by keyword of a plain class": pickled(ORDER + b")" + STATE + b"\x92" + b"K\1R"),
    "an integer that is a class": pickled(named("builtins", "int") + b"(" + ORDER + b"t\x81"),
    "an abstract class": pickled(call(named("eric_sse.message", "MessageContract"))),
    "nested reduces": pickled(call(named("builtins", "list"), call(named("builtins", "range"), number(10**12)))),
    "nested reduces in a message": pickled(
        call(named("eric_sse.message", "Message"), "type", call(named("os", "system"), SHELL))
    ),
    "a hook in a default dictionary": pickled(call(named("collections", "defaultdict"), named("os", "system"))),
    "a decimal of text": pickled(call(named("decimal", "Decimal"), PYTHON)),
    "a time zone outside of its folder": pickled(call(named("zoneinfo", "ZoneInfo"), "../../../../etc/passwd")),
    "a colour that is none": pickled(call(named("support.application", "Colour"), PYTHON)),
    "an enumeration made anew": pickled(call(named("support.application", "Colour"), "Shade", "DARK")),
    # state for what has none to give
    "state by opcode": pickled(MESSAGE + STATE + b"b"),
    "state by opcode for a class": pickled(ORDER + STATE + b"b"),
    "slots by opcode for a class": pickled(ORDER + SLOTS + b"b"),
    "slots by opcode for a member": pickled(RED + SLOTS + b"b"),
    "state by opcode for the database": pickled(DATABASE + STATE + b"b"),
    "state by opcode for a mark": pickled(mark("_SetState") + STATE + b"b"),
    "a setter by opcode": pickled(MESSAGE + b"}" + string("__setstate__") + named("os", "system") + b"sb"),
    "state for a class": pickled(set_state(ORDER, STATE)),
    "slots for a class": pickled(set_state(ORDER, SLOTS)),
    "slots for a class of eric-sse": pickled(set_state(named("eric_sse.message", "Message"), SLOTS)),
    "slots for a member": pickled(set_state(RED, SLOTS)),
    "state for a member": pickled(set_state(RED, STATE)),
    "slots for a mark": pickled(set_state(mark("_Reference"), SLOTS)),
    "state for the database": pickled(set_state(DATABASE, STATE)),
    "slots for the database": pickled(set_state(DATABASE, SLOTS)),
    "state for a number": pickled(set_state(b"K\1", STATE)),
    "state that is a text": pickled(set_state(MESSAGE, "text")),
    "state that is a number": pickled(set_state(MESSAGE, b"K\1")),
    "state under a number": pickled(set_state(MESSAGE, b"}K\1K\2s")),
    "state for nothing": pickled(set_state()),
    "another class by its state": pickled(
        set_state(MESSAGE, b"N}" + string("__class__") + named("builtins", "int") + b"s\x86")
    ),
    "an item of a class": pickled(ORDER + string("touched") + b"Ns"),
    "an item of the database": pickled(DATABASE + string("engine") + b"Ns"),
    "members for a class": pickled(ORDER + b"(N\x90"),
    "a call of the database": pickled(call(DATABASE, SHELL)),
    # the mixin
    "a class path to a message": pickled(construct("application.Order", b"}")),
    "a class path to a plain class": pickled(construct("application.Drawer", b"}")),
    "a class path to a function": pickled(construct("os.system", b"}" + string("a") + string(SHELL) + b"s")),
    "a class path to a builtin class": pickled(construct("builtins.dict", b"}")),
    "a class path to a mark": pickled(construct("eric_sse_sql.codec._Construct", b"}")),
    "a class path to a method": pickled(construct("application.Robot.start", b"}")),
    "a class path to a module": pickled(construct("antigravity", b"}")),
    "a class path that is a number": pickled(construct(b"K\1", b"}")),
    "a class path that is a class": pickled(construct(named("support.application", "Robot"), b"}")),
    "a class path that is bytes": pickled(construct(b"C\x11application.Robot", b"}")),
    "no parameters": pickled(construct("application.Robot")),
    "parameters that are a number": pickled(construct("application.Robot", b"K\1")),
    "parameters that are unknown": pickled(construct("application.Robot", STATE)),
    "an instance of a mark": pickled(mark("_Construct") + b"(" + string("application.Drawer") + b"}t\x81"),
    "set-up of a message": pickled(set_up(MESSAGE, b"}\x85")),
    "set-up of a class": pickled(set_up(named("support.application", "Robot"), b"}\x85")),
    "set-up of the database": pickled(set_up(DATABASE, b"}\x85")),
    "set-up of a message that looks like the mixin": pickled(
        MESSAGE
        + b"\x94"
        + set_state(b"h\0", b"}" + string("kv_setup_by_dict") + ORDER + b"s")
        + b"0"
        + set_up(b"h\0", b"K\1\x85")
    ),
    "set-up without values": pickled(set_up(construct("application.Robot", b"}"), b")")),
    "a reference to something else": pickled(call(mark("_Reference"), SHELL)),
}

for module, name, arguments in FORBIDDEN:
    line = f"{module}\n{name}\n".encode()
    values = b"".join(string(each) if isinstance(each, str) else each for each in arguments)
    CRAFTED |= {
        f"{module} {name}": pickled(call(named(module, name), *arguments)),
        f"{module} {name}, in a message": pickled(ORDER + b"(K\1" + call(named(module, name), *arguments) + b"tR"),
        f"{module} {name}, as lines": b"c" + line + b"(" + values + b"tR.",
        f"{module} {name}, as an instance": b"(" + values + b"i" + line + b".",
        f"{module} {name}, as an object": pickled(b"(c" + line + values + b"o", protocol=2),
        f"{module} {name}, as a new object": pickled(named(module, name) + b"(" + values + b"t\x81"),
    }

# Odd pickles that build allowed classes only.
HARMLESS: dict[str, bytes] = {
    "a class": pickled(ORDER),
    "a mark": pickled(mark("_Construct")),
    "a mark in a default dictionary": pickled(call(named("collections", "defaultdict"), mark("_Reference"))),
    "a state that hides a method": pickled(
        b"(" + MESSAGE + b"\x94" + set_state(b"h\0", b"}" + string("__reduce__") + ORDER + b"s") + b"t"
    ),
    "a member of the allowed enumeration": pickled(RED),
    "lists in each other": pickled(b"]" * 200_000 + b"a" * 199_999),
    "tuples in each other": pickled(b")" + b"\x85" * 200_000),
    "many marks": pickled(b"(" * 200_000 + b"1" * 200_000 + b"N"),
}


# Mutated pickles


def good_values(database: Database) -> list[Any]:
    robot = application.Robot("robot")
    robot.friend = {"friend": robot, "queue": SqlQueue(database, "queue")}
    return [
        {"a": [1, 2.5, None, True], "b": ("x" * 20, b"y" * 20), "c": {1, 2}, "d": {"e": [[], {}]}},
        [datetime(2024, 1, 1, tzinfo=timezone.utc), Decimal("1.5"), 2**70, frozenset("ab"), bytearray(b"abc")],
        UniqueMessage(Message("type", {"a": [1, 2]}), "sender"),
        application.Order(1, [application.Slotted(1.5), application.Basket([1, 2]), application.Versioned("type")]),
        Connection(application.Clerk("name"), SqlQueue(database, "queue")),
        [application.Colour.RED, application.Point(1, 2), application.Pixel(3, 4), application.Room("topic", "id")],
        [robot, application.Pipe("pipe"), robot],
    ]


def in_bytes(blob: bytes) -> list[bytes]:
    return [bytes([each]) for each in blob]


def in_opcodes(blob: bytes) -> list[bytes]:
    """The opcodes with their arguments, without FRAME, whose size would reveal that an opcode is missing."""
    starts = [at for _, _, at in pickletools.genops(blob)]
    return [blob[at:end] for at, end in zip(starts, [*starts[1:], None], strict=True) if blob[at] != 0x95]


def mutations(count: int) -> Iterator[bytes]:
    """Valid pickles with one to four mutations each, in turn of bytes and of whole opcodes."""
    rng = random.Random(2_000)
    good = [CODEC.encode(value, CONTEXT) for value in good_values(Database("sqlite://"))]
    for n in range(count):
        split = (in_bytes, in_opcodes)[n % 2]
        parts, others = split(rng.choice(good)), split(rng.choice(good))
        for _ in range(rng.choice((1, 1, 2, 4))):
            at, start = rng.randrange(len(parts)), rng.randrange(len(others))
            match rng.randrange(4):
                case 0:
                    flipped = bytearray(parts[at])
                    flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
                    parts[at] = bytes(flipped)
                case 1:
                    parts[at:at] = rng.choices(others, k=rng.randint(1, 4))
                case 2:
                    del parts[at : at + rng.randint(1, min(3, len(parts) - 1))]
                case 3:
                    parts[at : at + rng.randint(1, 10)] = others[start : start + rng.randint(1, 20)]
        yield b"".join(parts)


# Effects that must not happen


CLASSES = {
    each
    for name, module in sys.modules.items()
    if name.partition(".")[0] in ("eric_sse", "eric_sse_sql", "support")
    for each in vars(module).values()
    if isinstance(each, type)
}


def attributes() -> dict[object, dict[str, Any]]:
    """State that a pickle might change: the attributes of classes and of the members of an enumeration."""
    return {
        each: {name: value for name, value in vars(each).items() if name != "__slotnames__"}  # set when one is written
        for each in (*CLASSES, *application.Colour)
    }


@pytest.fixture(autouse=True)
def nothing_happens() -> Iterator[None]:
    """Assert that no payload ran, no class was changed and no module was imported."""
    before = attributes()
    yield
    assert not CANARY.exists()
    assert application.touched == []
    assert attributes() == before
    assert "antigravity" not in sys.modules


MADE_BY_OPCODES = {type(None), str, bytes, bytearray}


def check_classes(value: Any) -> None:
    """Fail if a value contains an object of a class that the codec does not allow."""
    seen, todo = {id(value): value}, [value]
    while todo:
        each = todo.pop()
        cls = each if isinstance(each, type) else type(each)
        if isinstance(each, Database) or getattr(each, "__qualname__", "").endswith("<lambda>"):
            continue  # the loading database, and a lambda set by a constructor of the application
        assert not isinstance(each, ModuleType)
        if cls not in MADE_BY_OPCODES:
            CODEC.allow_list.check(cls)
        inside = [] if isinstance(each, type) else [one for one in gc.get_referents(each) if id(one) not in seen]
        seen |= {id(one): one for one in inside}
        todo += inside


def is_refused(read: Callable[[], Any]) -> bool:
    """Whether a value is refused. Fail if it is read and contains an object of a class that is not allowed."""
    try:
        value = read()
    except RepositoryError:
        return True
    check_classes(value)
    return False


# Tests


def test_there_are_many_crafted_pickles() -> None:
    assert len(CRAFTED) > 60


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_pickle_is_refused(name: str) -> None:
    with Database("sqlite://") as database, pytest.raises(RepositoryError):
        CODEC.decode(CRAFTED[name], CONTEXT, database)


@pytest.mark.parametrize("name", HARMLESS)
def test_an_odd_but_harmless_pickle_builds_allowed_classes_only(name: str) -> None:
    assert not is_refused(partial(CODEC.decode, HARMLESS[name], CONTEXT))


def test_two_thousand_mutated_pickles_are_refused_or_build_allowed_classes_only() -> None:
    with Database("sqlite://") as database:
        refused = sum(is_refused(partial(CODEC.decode, blob, CONTEXT, database)) for blob in mutations(2_000))
    assert 1_000 < refused < 2_000


def test_unmodified_pickles_are_decoded() -> None:
    with Database("sqlite://") as database:
        for value in good_values(database):
            assert not is_refused(partial(CODEC.decode, CODEC.encode(value, CONTEXT), CONTEXT, database))


def is_pickle(blob: bytes) -> bool:
    return blob[:1] == b"\x80"


def is_json(blob: bytes) -> bool:
    try:
        json.loads(blob)
    except ValueError:
        return False
    return True


def test_refused_entries_stay_in_their_table_and_refused_messages_are_set_aside(database: Database) -> None:
    database.codec = CODEC
    blobs = {f"{n}": blob for n, blob in enumerate([*CRAFTED.values(), *mutations(2_000)])}
    rows = [{"id": name, "key": f"kv/{name}", "blob": blob} for name, blob in blobs.items()]
    storage = SqlStorageEngine(database)
    with database.transaction():
        for name in blobs:
            storage.upsert(name, "a good value")
            SqlQueue(database, name).push(Message("type"))
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE kv_entries SET value = :blob WHERE key = :key"), rows)
        connection.execute(text("UPDATE sse_messages SET message = :blob WHERE queue_id = :id"), rows)
    refused = {name for name in blobs if is_refused(partial(storage.fetch_one, name))}
    assert len(refused) > 1_000
    # A blob that begins as no pickle of this package is JSON, for messages.
    refused_messages = {
        name for name, blob in blobs.items() if (name in refused if is_pickle(blob) else not is_json(blob))
    }
    for name in blobs:
        with suppress(NoMessagesException):  # a refused message is set aside, and the next one is popped
            check_classes(SqlQueue(database, name).pop())
    counts = table_counts(database)
    assert (counts["kv_entries"], counts["sse_messages"]) == (len(blobs), 0)
    with database.engine.connect() as connection:
        rows = connection.execute(text("SELECT queue_id, message FROM sse_set_aside_messages"))
        assert {name: bytes(blob) for name, blob in rows} == {name: blobs[name] for name in refused_messages}


def test_a_hostile_entry_ends_an_iteration_with_an_error(database: Database) -> None:
    storage = SqlStorageEngine(database)
    storage.upsert("a", 1)
    storage.upsert("b", 2)
    with database.engine.begin() as connection:
        update = text("UPDATE kv_entries SET value = :blob WHERE key = 'kv/b'")
        connection.execute(update, {"blob": CRAFTED["os system"]})
    values = storage.fetch_all()
    assert next(values) == 1
    with pytest.raises(RepositoryError, match=r"os\.system is not allowed"):
        next(values)


def test_crafted_pickles_use_little_memory() -> None:
    pytest.importorskip("resource")
    program = """if True:
        import resource, sys
        import test_hostile_pickles as hostile
        from eric_sse.exception import RepositoryError

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1 if sys.platform == "linux" else 1024)

        before = peak()
        resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
        resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
        for blob in hostile.CRAFTED.values():
            try:
                hostile.CODEC.decode(blob, hostile.CONTEXT)
            except RepositoryError as error:
                assert not isinstance(error.__cause__, MemoryError), blob
        print(peak() - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 50_000, "kilobytes"
