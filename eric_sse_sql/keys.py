"""Keys and ids: what a valid one is, how new ids are generated, and the namespaces that the package reserves."""

from __future__ import annotations

import secrets
import time
import uuid

from eric_sse.exception import RepositoryError

MAX_KEY_BYTES = 1024  # of UTF-8; a Postgres index row holds at most about 2,700 bytes
MAX_MESSAGE_ID_BYTES = 255  # of UTF-8: it is indexed together with two ids

# Namespaces of the objects that make up channels and connections. Applications must not use them for their own entries.
# eric-sse 2.0 stores a listener and a queue under its own id, eric-sse 2.1 under the id of its connection.
CHANNELS = "sse:channels"
LISTENERS, QUEUES = "sse:listeners", "sse:queues"
CONNECTION_LISTENERS, CONNECTION_QUEUES = "sse:connection-listeners", "sse:connection-queues"


def new_id() -> str:
    """A new UUID of version 7 (RFC 9562): the time in its first bits, 62 random bits in its last.

    Ids generated together sort together, so the rows of a channel share a few index pages; with random ids, each row
    would be on a page of its own. The random bits make an id impossible to guess.
    """
    milliseconds, nanoseconds = divmod(time.time_ns(), 1_000_000)
    fraction = (nanoseconds << 12) // 1_000_000  # 12 bits of the millisecond, so that ids of one process are ordered
    return str(uuid.UUID(int=milliseconds << 80 | 7 << 76 | fraction << 64 | 2 << 62 | secrets.randbits(62)))


def validate_key(what: str, key: str) -> str:
    """Return the key unchanged if every database can store and index it.

    :param what: the subject of the error message, such as "a key" or "a channel id"
    :param key: the key or id
    :raises RepositoryError: when the key is not a ``str``, is longer than 1,024 bytes of UTF-8, or contains NUL or a
        lone surrogate, neither of which Postgres can store in text
    """
    if not isinstance(key, str):
        raise RepositoryError(f"{what} must be a str, not {type(key).__name__}") from TypeError(type(key).__name__)
    try:
        size = len(key.encode())
    except UnicodeEncodeError as error:
        raise RepositoryError(f"{what} must not hold a lone surrogate, which UTF-8 cannot encode") from error
    if "\0" in key:
        raise RepositoryError(f"{what} must not hold a NUL character") from ValueError("NUL")
    if size > MAX_KEY_BYTES:
        raise RepositoryError(f"{what} must be at most {MAX_KEY_BYTES} bytes of UTF-8, not {size}") from ValueError(
            size
        )
    return key


def validate_message_id(message_id: str) -> str:
    """Return the id of a message unchanged if it can be stored.

    :raises RepositoryError: when it is empty or longer than 255 bytes of UTF-8, and as :func:`validate_key`
    """
    size = len(validate_key("a message id", message_id).encode())
    if not 0 < size <= MAX_MESSAGE_ID_BYTES:
        raise RepositoryError(
            f"a message id must be from 1 to {MAX_MESSAGE_ID_BYTES} bytes of UTF-8, not {size}"
        ) from ValueError(size)
    return message_id
