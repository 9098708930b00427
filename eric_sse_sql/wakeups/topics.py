"""Topics: which queues and channels a notification is about, as a few bits of a hash of each.

A payload is the topics one after the other. A payload that is empty, or made by anything else, is about everything.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Collection
from hashlib import sha256

Topics = frozenset[str]

EVERYTHING = "*"
ALL: Topics = frozenset({EVERYTHING})
NONE: Topics = frozenset()
ANY_CHANNEL = "*c"  # added to topics of channels and listeners: for queues whose channel is not known here
HASH_BYTES = 3  # of two different queues, one in 16 million has the topic of the other
TOPIC_CHARACTERS = 5  # a letter for the kind, and the hash in base64
MAX_TOPICS = 1500  # in a payload, which Postgres limits to 7,999 bytes


def queue_topic(schema: str | None, queue_id: str) -> str:
    """The topic of a queue, whose tables are in a schema."""
    return "q" + _hash(schema, queue_id)


def listener_topic(schema: str | None, channel_id: str, listener_id: str) -> str:
    """The topic of dispatches to a listener of a channel, whose tables are in a schema."""
    return "l" + _hash(schema, f"{channel_id}\0{listener_id}")


def channel_topic(schema: str | None, channel_id: str) -> str:
    """The topic of a channel's broadcasts, and of its log, whose tables are in a schema."""
    return "c" + _hash(schema, channel_id)


def payload_of(topics: Collection[str]) -> str:
    """The payload of a notification about some topics; about everything, where they are too many."""
    return "" if EVERYTHING in topics or len(topics) > MAX_TOPICS else "".join(topics)


def topics_in(payload: str) -> Topics:
    """The topics of a payload."""
    if not payload or len(payload) % TOPIC_CHARACTERS:
        return ALL
    topics = {payload[at : at + TOPIC_CHARACTERS] for at in range(0, len(payload), TOPIC_CHARACTERS)}
    kinds = {topic[0] for topic in topics}
    if not kinds <= {"q", "l", "c"}:
        return ALL
    return frozenset(topics if kinds == {"q"} else topics | {ANY_CHANNEL})


def _hash(schema: str | None, key: str) -> str:
    digest = sha256(f"{schema or ''}\0{key}".encode()).digest()  # as the SQL functions of the migrations do
    return urlsafe_b64encode(digest[:HASH_BYTES]).decode("ascii")
