"""Message ids: with one, a call that adds a message may be repeated, and adds it once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from eric_sse_sql.database import Database
from eric_sse_sql.errors import repository_errors
from eric_sse_sql.keys import validate_message_id
from eric_sse_sql.sql import message_ids as sql


class Recipient(NamedTuple):
    """What gets messages: the same message id for two recipients is two ids."""

    recipient: str  # "queue", "channel" or "listener"
    owner_id: str  # id of the queue or of the channel
    listener_id: str = ""


def add_once(database: Database, recipient: Recipient, message_id: str | None, add: Callable[[], object]) -> None:
    """Add a message, unless the recipient got one of the same id before. Both in one transaction.

    :param message_id: None adds it in any case, without another statement
    :param add: adds the message
    """
    if message_id is None:
        add()
        return
    validate_message_id(message_id)
    with repository_errors("the message can't be added"), database.transaction():
        if new_ids(database, recipient, [message_id]):
            add()


def new_ids(database: Database, recipient: Recipient, message_ids: Iterable[str]) -> set[str]:
    """Remember some ids, in the open transaction. Those that no message to the recipient had. One statement."""
    ordered = sorted(map(validate_message_id, message_ids))  # two writers insert them in the same order
    executor = database.executor
    found = executor.run(sql.REMEMBER, **recipient._asdict(), message_ids=executor.dialect.list_value(ordered))
    return {message_id for (message_id,) in found}
