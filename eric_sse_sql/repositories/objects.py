"""``ObjectStorage``: the entries of channels, listeners and queues."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from eric_sse.exception import RepositoryError
from eric_sse.listener import MessageQueueListener

from eric_sse_sql import contract, plain_json
from eric_sse_sql.codec import class_path
from eric_sse_sql.database import Database
from eric_sse_sql.errors import repository_errors
from eric_sse_sql.message_codec import PICKLE_START
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
        self._templates = templates

    def load_object(self, entry_key: str, object_id: str, blob: bytes) -> Any:
        """The object of a row, by its primary key, its own id and its blob."""
        database = self.database
        pickled = database.codec.verify(blob, entries.CONTEXT + entry_key)
        for template in self._templates:
            found = template.read(pickled, object_id)
            if found is not None:
                return found
        return database.codec.unpickled(pickled, database)

    def object_entry(self, entry_key: str, object_id: str, value: object) -> dict[str, Any]:
        """The parameters that store an object with an id of its own, as :meth:`entry` does."""
        for template in self._templates:
            pickled = template.write(value, object_id)
            if pickled is not None:
                blob = self.database.codec.sign(pickled, entries.CONTEXT + entry_key)
                return {"key": entry_key, "value": blob, "value_type": class_path(type(value))}
        return self.entry(entry_key, value)

    def delete(self, key: str) -> None:
        """Delete an object, and the connections that need it."""
        statements = entries.DELETE, sql.DELETE_CONNECTIONS_OF_OBJECT
        run = partial(self.database.executor.run_all, statements, key=self.entry_key(key))
        with repository_errors("the object can't be deleted"):
            self.database.run_in_transaction(run)


class ChannelStorage(ObjectStorage):
    """The entries of channels. Where messages are stored as JSON, so is the dict of plain data that a repository stores
    for a channel. Either form is read."""

    def entry(self, entry_key: str, value: Any) -> dict[str, Any]:
        text = _json_of(value) if self.database.message_codec.writes_json else None
        if text is None:
            return super().entry(entry_key, value)
        blob = self.database.codec.sign(text, entries.CONTEXT + entry_key)
        return {"key": entry_key, "value": blob, "value_type": class_path(dict)}

    def value(self, entry_key: str, blob: bytes) -> Any:
        content = self.database.codec.verify(blob, entries.CONTEXT + entry_key)
        if content.startswith(PICKLE_START):
            return self.database.codec.unpickled(content, self.database)
        return plain_json.loaded(content)


def _json_of(value: object) -> bytes | None:
    """A dict as JSON; None for another object, and for a dict that would not come back equal."""
    if type(value) is dict:
        with suppress(RepositoryError):
            text = plain_json.dumped(value)
            return text if plain_json.loaded(text) == value else None
    return None


def listener_template(database: Database, *, is_started: bool) -> BlobTemplate[MessageQueueListener]:
    """The template of a new listener, which may be started."""

    def make(listener_id: str) -> MessageQueueListener:
        listener = contract.make_listener(listener_id)
        if is_started:
            listener.start()
        return listener

    def state(listener: MessageQueueListener) -> object:
        return {**vars(listener), "id": None}

    return BlobTemplate(make, database.codec.pickled, state)


def queue_template(database: Database, queue_class: type[SqlQueue]) -> BlobTemplate[SqlQueue]:
    """The template of a queue in a database."""

    def encode(queue: SqlQueue) -> bytes:
        return database.codec.pickled(queue, database)

    return BlobTemplate(partial(queue_class, database), encode, lambda queue: queue.database)
