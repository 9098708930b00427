"""``SqlQueue``: a queue whose messages live in ``sse_messages``."""

from __future__ import annotations

from typing import Any

from eric_sse import generate_uuid
from eric_sse.exception import NoMessagesException
from eric_sse.message import MessageContract
from sqlalchemy import bindparam, delete, insert, select

from eric_sse_sql.codec import class_path
from eric_sse_sql.contract import PersistableQueue
from eric_sse_sql.database import Database
from eric_sse_sql.errors import repository_errors
from eric_sse_sql.models import MessageRow, checked
from eric_sse_sql.statements import Construct, Dialect, Statement

MAX_TYPE_CHARACTERS = 255


def _push(sql: Dialect) -> Construct:
    return insert(MessageRow).values(
        {
            MessageRow.queue_id: bindparam("queue"),
            MessageRow.message_type: bindparam("kind"),
            MessageRow.message: bindparam("blob"),
        }
    )


def _pop(sql: Dialect) -> Construct:
    head = select(MessageRow.id).where(MessageRow.queue_id == bindparam("queue")).order_by(MessageRow.id).limit(1)
    # "=", not IN: with IN, Postgres may lock and delete more than one row.
    oldest = head.with_for_update(skip_locked=True).scalar_subquery()
    return delete(MessageRow).where(MessageRow.id == oldest).returning(MessageRow.message)


PUSH = Statement(_push)
POP = Statement(_pop)


class SqlQueue(PersistableQueue):
    """A queue of messages in the database, for any number of producers and consumers in any processes.

    First in, first out for each producer: the order is that of the numbers which the database gives out, and of two
    producers at once either may get the lower one. A message goes to one consumer, at most once: who pops it and then
    dies has lost it. No consumer waits for another on Postgres; on SQLite there is one writer at a time.

    A queue may be used before its connection is persisted, and is persistable itself: what is stored is its id, and it
    comes back on the database that loads it.

    :param database: where the messages are
    :param queue_id: its id, by which every process finds the same messages; by default a new one
    :raises RepositoryError: by every method, for any fault of the database, which then is as it was
    """

    def __init__(self, database: Database, queue_id: str | None = None) -> None:
        super().__init__()
        self._database = database
        self._queue_id = generate_uuid() if queue_id is None else checked("a queue id", queue_id)

    @property
    def id(self) -> str:
        """The queue's own id."""
        return self._queue_id

    def push(self, message: MessageContract) -> None:
        """Add a message at the end. One statement.

        :raises RepositoryError: when the message can't be stored, or could not be read back
        """
        blob = self._database.codec.encode(message, self._place, self._database)
        with repository_errors("the message can't be pushed"):
            self._database.run(PUSH, queue=self._queue_id, kind=_type_of(message), blob=blob)

    def pop(self) -> MessageContract:
        """Take the first message. One statement.

        :raises NoMessagesException: when there is none that another consumer is not taking
        :raises RepositoryError: when it can't be read; then it stays
        """
        with repository_errors("the message can't be popped"), self._database.transaction():
            rows = self._database.run(POP, queue=self._queue_id)
            if not rows:
                raise NoMessagesException
            message: MessageContract = self._database.codec.decode(rows[0][0], self._place, self._database)
            return message

    @property
    def _place(self) -> str:
        return f"{MessageRow.__tablename__}/{self._queue_id}"

    @property
    def kv_key(self) -> str:
        """The queue's own id."""
        return self._queue_id

    @property
    def kv_constructor_params_as_dict(self) -> dict[str, Any]:
        """The reference to the database, and the id."""
        return {"database": self._database, "queue_id": self._queue_id}

    @property
    def kv_setup_values_as_dict(self) -> dict[str, Any]:
        """Nothing: the messages are in rows of their own."""
        return {}

    def kv_setup_by_dict(self, setup: dict[str, Any]) -> None:
        """Nothing is left to do."""


def _type_of(message: MessageContract) -> str:
    """The message's type as the table shows it to people."""
    kind = str(getattr(message, "type", class_path(type(message))))[:MAX_TYPE_CHARACTERS]
    return kind.encode(errors="replace").decode().replace("\0", "\ufffd")
