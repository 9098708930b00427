"""``ObjectStorage``: the entries of channels, listeners and queues."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from eric_sse.listener import MessageQueueListener

from eric_sse_sql import contract
from eric_sse_sql.codec import class_path
from eric_sse_sql.database import Database
from eric_sse_sql.errors import repository_errors
from eric_sse_sql.pickles.blob_template import BlobTemplate
from eric_sse_sql.queues import SqlQueue
from eric_sse_sql.sql import connections as sql
from eric_sse_sql.sql import entries
from eric_sse_sql.storage import SqlStorageEngine


class ObjectStorage(SqlStorageEngine):
    """The entries that channels and connections refer to, in a namespace apart from those of applications.

    :param templates: of the most common objects
    """

    def __init__(self, database: Database, namespace: str, templates: Sequence[BlobTemplate[Any]] = ()) -> None:
        self._set_up(database, namespace)
        self._templates = () if database.codec.signs else templates  # signed blobs of equal objects differ

    def load_object(self, entry_key: str, object_id: str, blob: bytes) -> Any:
        """The object of a row, by its primary key, its own id and its blob."""
        for template in self._templates:
            found = template.read(blob, object_id)
            if found is not None:
                return found
        return self.value(entry_key, blob)

    def object_entry(self, entry_key: str, object_id: str, value: object) -> dict[str, Any]:
        """The parameters that store an object with an id of its own, as :meth:`entry` does."""
        for template in self._templates:
            blob = template.write(value, object_id)
            if blob is not None:
                return {"key": entry_key, "value": blob, "value_type": class_path(type(value))}
        return self.entry(entry_key, value)

    def delete(self, key: str) -> None:
        """Delete an object, and the connections that need it."""
        statements = entries.DELETE, sql.DELETE_CONNECTIONS_OF_OBJECT
        run = partial(self.database.executor.run_all, statements, key=self.entry_key(key))
        with repository_errors("the object can't be deleted"):
            self.database.run_in_transaction(run)


def listener_template(database: Database) -> BlobTemplate[MessageQueueListener]:
    """The template of a new listener."""

    def state(listener: MessageQueueListener) -> object:
        return {**vars(listener), "id": None}

    return BlobTemplate(contract.make_listener, lambda made: database.codec.encode(made, ""), state)


def queue_template(database: Database, queue_class: type[SqlQueue]) -> BlobTemplate[SqlQueue]:
    """The template of a queue in a database."""

    def encode(queue: SqlQueue) -> bytes:
        return database.codec.encode(queue, "", database)

    return BlobTemplate(partial(queue_class, database), encode, lambda queue: queue.database)
