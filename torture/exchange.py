"""Stores contents of all kinds, and reads what a process of another release of Python has stored.

    python -m torture.exchange write URL
    python -m torture.exchange read URL

Prints what is wrong, a line each.
"""

from __future__ import annotations

import sys
from typing import Any

from eric_sse.message import Message

from eric_sse_sql import Database, PickleCodec, SqlQueue, SqlSSEChannelRepository, SqlStorageEngine

CONTENTS: list[Any] = [
    None, True, -1, 2**70, 1.5, "text \u00e9 \U0001f600", b"\x00\xff", ["list", 1], ("tuple", None),
    {"key": {"nested": [1, (2,)]}}, {1, 2}, "long " * 20_000,
]  # fmt: skip
CHANNELS = {"exchanged-queues": 0, "exchanged-log": 3600}  # replay_seconds
LISTENERS = 2
COUNT = len(CONTENTS) * (2 + len(CHANNELS) * LISTENERS)  # contents that are compared


def opened(url: str) -> Database:
    """The database, with signatures, which must agree, too."""
    return Database(url, codec=PickleCodec(signing_keys=[b"a key of both processes, of 32 bytes"]))


def write(url: str) -> list[str]:
    """Store the contents as entries, as messages of a queue, and as broadcasts of channels. What is wrong: nothing."""
    with opened(url) as database:
        storage, queue = SqlStorageEngine(database, "exchanged"), SqlQueue(database, "exchanged")
        repository = SqlSSEChannelRepository(database)
        for number, content in enumerate(CONTENTS):
            storage.upsert(f"key/{number}", content)
            queue.push(Message("exchanged", content))
        for channel_id, replay_seconds in CHANNELS.items():
            channel = repository.create({"channel_id": channel_id, "replay_seconds": replay_seconds})
            for _ in range(LISTENERS):
                channel.add_listener()
            repository.persist(channel)
            for content in CONTENTS:
                channel.broadcast(Message("exchanged", content))
    return []


def read(url: str) -> list[str]:
    """Read the contents, and delete them. What is wrong, a sentence each."""
    found: list[tuple[str, Any]] = []
    with opened(url) as database:
        storage, queue = SqlStorageEngine(database, "exchanged"), SqlQueue(database, "exchanged")
        repository = SqlSSEChannelRepository(database)
        for number in range(len(CONTENTS)):
            found.append(("an entry", storage.fetch_one(f"key/{number}")))
            storage.delete(f"key/{number}")
        found += [("a message", queue.pop().payload) for _ in CONTENTS]
        for channel_id in CHANNELS:
            channel = repository.load_one(channel_id)
            for connection in channel.get_connections():
                connection.listener.start()
                found += [(channel_id, channel.deliver_next(connection.listener.id).payload) for _ in CONTENTS]
            repository.delete(channel_id)
    pairs = zip(found, CONTENTS * (len(found) // len(CONTENTS)), strict=True)
    findings = [f"{what} is {got!r:.80}, not {sent!r:.80}" for (what, got), sent in pairs if got != sent]
    return findings + ([f"{len(found)} of {COUNT} contents are there"] if len(found) != COUNT else [])


ACTS = {"write": write, "read": read}

if __name__ == "__main__":
    for finding in ACTS[sys.argv[1]](sys.argv[2]):
        print(finding)
