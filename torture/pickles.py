"""Hostile pickles without end, and a process that gives them to the codec under an audit hook."""

from __future__ import annotations

import mmap
import os
import pickletools
import random
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

from eric_sse.connection import Connection
from eric_sse.exception import RepositoryError
from eric_sse.listener import MessageQueueListener
from eric_sse.message import Message, UniqueMessage

from eric_sse_sql import Database, PickleCodec, SqlQueue

CONTEXT = "kv_entries/kv/key"
MAX_BLOB_BYTES = 1 << 16
SIZE_BYTES = 8
CALLED: list[object] = []  # stays empty unless a pickle has called something
GLOBALS = [
    ("os", "system"), ("builtins", "eval"), ("builtins", "exec"), ("builtins", "getattr"), ("subprocess", "Popen"),
    ("importlib", "import_module"), ("antigravity", "geohash"), ("eric_sse.prefabs", "asyncio.run"),
    ("eric_sse_sql.database", "Database"), ("torture.pickles", "touch"), ("torture.pickles", "Touched"),
    ("eric_sse.message", "Message"), ("collections", "OrderedDict"), ("functools", "partial"),
]  # fmt: skip
# What decoding never does, as the interpreter's audit events name it.
FORBIDDEN_EVENTS = (
    "import", "exec", "compile", "open", "os.", "subprocess.", "socket.", "shutil.", "ctypes.", "code.__new__",
    "function.__new__", "sqlite3.", "object.__getattr__", "object.__setattr__",
)  # fmt: skip


def touch(*arguments: object) -> None:
    """What no pickle may call."""
    CALLED.append(arguments)


class Touched:
    """What no pickle may build."""

    def __init__(self, *arguments: object) -> None:
        touch(*arguments)

    def __setstate__(self, state: object) -> None:
        touch(state)


def fuzz(path: Path, seconds: float, seed: int, report: Callable[[dict[str, Any]], object]) -> None:
    """Decode hostile pickles for some time, and report what has happened.

    :param path: of a file that has the pickle that is being decoded, should this process crash
    """
    rng, codec, events = random.Random(seed), PickleCodec(), _Events()
    with path.open("w+b") as file:
        file.truncate(SIZE_BYTES + MAX_BLOB_BYTES)
        shown = mmap.mmap(file.fileno(), SIZE_BYTES + MAX_BLOB_BYTES)
    database = Database("sqlite://")
    good = [codec.encode(value, CONTEXT, database) for value in _values(database)]
    for blob in good:
        codec.decode(blob, CONTEXT, database)  # imports what decoding needs
    modules, tried, refused = set(sys.modules), 0, 0
    findings: set[str] = set()
    sys.addaudithook(events)
    end = time.monotonic() + seconds
    while time.monotonic() < end and len(findings) < 10:
        blob = _hostile(rng, good)[:MAX_BLOB_BYTES]
        shown[: SIZE_BYTES + len(blob)] = len(blob).to_bytes(SIZE_BYTES, "little") + blob
        tried += 1
        events.is_on = True
        try:
            codec.decode(blob, CONTEXT, database)
        except RepositoryError:
            refused += 1
        except BaseException as error:
            findings.add(f"{type(error).__name__} was raised for {blob[:200]!r}")
        finally:
            events.is_on = False
        if events.seen or CALLED:
            findings.add(f"{events.seen + CALLED} happened for {blob[:200]!r}")
            events.seen.clear()
            CALLED.clear()
    findings |= {f"{name} was imported" for name in set(sys.modules) - modules}
    report({"tried": tried, "refused": refused, "findings": sorted(findings)})


def shown_in(path: Path) -> bytes:
    """The pickle that a process was decoding when it crashed."""
    content = path.read_bytes()
    return content[SIZE_BYTES : SIZE_BYTES + int.from_bytes(content[:SIZE_BYTES], "little")]


class _Events:
    """An audit hook, which can't be removed, but turned off."""

    def __init__(self) -> None:
        self.is_on = False
        self.seen: list[object] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.is_on and event.startswith(FORBIDDEN_EVENTS):
            self.seen.append((event, repr(arguments)[:100]))


def _values(database: Database) -> list[object]:
    return [
        {"a": [1, 2.5, None, True], "b": ("x" * 20, b"y" * 20), "c": {1, 2}, "d": {"e": [[], {}]}},
        [datetime(2024, 1, 1, tzinfo=timezone.utc), Decimal("1.5"), 2**70, frozenset("ab"), bytearray(b"abc")],
        Message("type", {"a": [1, 2]}),
        UniqueMessage(Message("type", {"a": [1, 2]}), "sender"),
        Connection(MessageQueueListener("name"), SqlQueue(database, "queue")),
    ]


def _hostile(rng: random.Random, good: list[bytes]) -> bytes:
    """A mutation of a valid pickle, in bytes or in opcodes, or opcodes at random."""
    kind = rng.random()
    if kind < 0.25:
        return b"\x80\x05" + b"".join(_opcodes(rng, rng.randint(1, 40))) + b"."
    blob = rng.choice(good)
    parts = _split(blob) if kind < 0.7 else [bytes([each]) for each in blob]
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(parts))
        match rng.randrange(4):
            case 0 if parts[at]:
                flipped = bytearray(parts[at])
                flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
                parts[at] = bytes(flipped)
            case 1:
                parts[at:at] = _opcodes(rng, rng.randint(1, 4))
            case 2:
                del parts[at : at + rng.randint(1, min(3, max(1, len(parts) - 1)))]
            case 3:
                other = _split(rng.choice(good))
                start = rng.randrange(len(other))
                parts[at : at + rng.randint(0, 10)] = other[start : start + rng.randint(1, 20)]
        parts = parts or [b"N"]
    return b"".join(parts)


def _split(blob: bytes) -> list[bytes]:
    """The opcodes of a pickle with their arguments, without FRAME, whose size would reveal that one is missing."""
    try:
        starts = [at or 0 for _, _, at in pickletools.genops(blob)]
    except ValueError:  # of another format of this package
        return [blob]
    return [blob[at:end] for at, end in zip(starts, [*starts[1:], None], strict=True) if blob[at] != 0x95]


def _opcodes(rng: random.Random, count: int) -> Iterator[bytes]:
    for _ in range(count):
        choice = rng.random()
        if choice < 0.35:
            module, name = rng.choice(GLOBALS)
            yield rng.choice(
                [
                    _text(module) + _text(name) + b"\x93",
                    f"c{module}\n{name}\n".encode(),
                    f"(i{module}\n{name}\n".encode(),
                    _text(module) + _text(name) + b"\x93(" + _text("true") + b"tR",
                    _text(module) + _text(name) + b"\x93)\x81",
                    _text(module) + _text(name) + b"\x93}b",
                ]
            )
        elif choice < 0.9:
            yield rng.choice(pickletools.opcodes).code.encode("latin-1") + rng.choice(
                [b"", b"\x01", b"\x01x", os.urandom(rng.randint(0, 8)), b"1\n", b"\xff\xff\xff\xff"]
            )
        else:
            yield os.urandom(rng.randint(1, 6))


def _text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()
