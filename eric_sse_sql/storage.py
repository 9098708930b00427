"""``SqlStorageEngine``: values by key, in ``kv_entries``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from eric_sse.exception import RepositoryError
from sqlalchemy import URL, Engine

from eric_sse_sql.codec import class_path
from eric_sse_sql.contract import ItemNotFound, KvStorageEngine
from eric_sse_sql.database import Database
from eric_sse_sql.errors import repository_errors
from eric_sse_sql.execution.statement import Row, Statement
from eric_sse_sql.keys import validate_key
from eric_sse_sql.sql import entries

FIRST_PAGE_ROWS = 128
PAGE_ROWS = 1000
PAGE_BYTES = 4 * 1024 * 1024
LAST_CHARACTER = chr(0x10FFFF)


class SqlStorageEngine(KvStorageEngine):
    """A ``KvStorageEngine`` (eric-sse 2.0) and ``KvStorage`` (2.1) over the table ``kv_entries``.

    Each call is one statement, and atomic; iterating takes one statement a page. Threads and processes may share a
    namespace. Values come back as copies, in the order of their keys' code points. An iteration sees each page as it is
    when it is read, and holds no connection, cursor or lock between pages.

    :param database: a :class:`Database`, or what it takes
    :param namespace: where the keys are: ``<namespace>/<key>`` in the table; at most 64 bytes, no ``/`` and no ``:``
    :raises RepositoryError: by every method, for a key that is no ``str``, holds NUL or a lone surrogate or is longer
        than 1,024 bytes of UTF-8; for an object that the codec refuses; and for any fault of the database
    """

    def __init__(self, database: Database | str | URL | Engine, namespace: str = "kv") -> None:
        validate_key("a namespace", namespace)
        if not namespace or set(namespace) & set("/:") or len(namespace.encode()) > 64:
            raise RepositoryError("a namespace must have 1 to 64 bytes and neither / nor :") from ValueError(namespace)
        self._set_up(database, namespace)

    def _set_up(self, database: Database | str | URL | Engine, namespace: str) -> None:
        self.database = database if isinstance(database, Database) else Database(database)
        self._root = namespace + "/"

    def upsert(self, key: str, value: Any) -> None:
        """Store a value, in place of the one that the key had."""
        row = self.entry(self.entry_key(key), value)
        with repository_errors("the value can't be stored"):
            self.database.executor.run(entries.UPSERT, **row)

    def fetch_one(self, key: str) -> Any:
        """The value of a key.

        :raises ItemNotFound: when it has none
        """
        entry_key = self.entry_key(key)
        with repository_errors("the value can't be fetched"):
            rows = self.database.executor.run(entries.FETCH, key=entry_key)
        if not rows:
            raise ItemNotFound(key)
        ((blob,),) = rows
        return self.value(entry_key, blob)

    def fetch_by_prefix(self, prefix: str) -> Iterator[Any]:
        """The values whose keys start with a prefix, as ``str.startswith`` says: ``ch1`` also finds ``ch10``."""
        return self._values(self._root + validate_key("a prefix", prefix))

    def fetch_all(self) -> Iterator[Any]:
        """All values of the namespace."""
        return self._values(self._root)

    def delete(self, key: str) -> None:
        """Delete a key and its value, if it is there."""
        entry_key = self.entry_key(key)
        with repository_errors("the value can't be deleted"):
            self.database.executor.run(entries.DELETE, key=entry_key)

    def entry_key(self, key: str) -> str:
        """The primary key of a key's row."""
        return self._root + validate_key("a key", key)

    def entry(self, entry_key: str, value: Any) -> dict[str, Any]:
        """The parameters of :data:`entries.UPSERT` that store a value.

        :param entry_key: the primary key of the row
        """
        blob = self.database.codec.encode(value, entries.CONTEXT + entry_key, self.database)
        return {"key": entry_key, "value": blob, "value_type": class_path(type(value))}

    def value(self, entry_key: str, blob: bytes) -> Any:
        """The value of a row, by its primary key and blob."""
        return self.database.codec.decode(blob, entries.CONTEXT + entry_key, self.database)

    def _values(self, start: str) -> Iterator[Any]:
        pages = keyset_pages(
            self.database, entries.FIRST_PAGE, entries.NEXT_PAGE, start, FIRST_PAGE_ROWS, PAGE_ROWS, end=_after(start)
        )
        for page in pages:
            for entry_key, blob in page:
                yield self.value(entry_key, blob)


def keyset_pages(
    database: Database, first: Statement, following: Statement, start: str, count: int, most: int, **parameters: Any
) -> Iterator[Sequence[Row]]:
    """The pages of a result, each read by a statement that begins after the last row of the page before.

    :param first: begins at ``start``; ``following`` begins after it. Their rows have the key first, the blob last
    :param count: how many rows the first page has
    :param most: how many a later page has at most; fewer, if they would exceed :data:`PAGE_BYTES` at the average size
        of the page before. The first page has no limit in bytes
    """
    statement = first
    while True:
        with repository_errors("the values can't be fetched"):
            rows = database.executor.run(statement, start=start, count=count, **parameters)
        if rows:
            yield rows
        if len(rows) < count:
            return
        average = sum(len(blob) for *_, blob in rows) // len(rows) + 1
        (start, *_), count = rows[-1], max(1, min(most, PAGE_BYTES // average))
        statement = following


def _after(prefix: str) -> str:
    """The first text after all that start with a prefix, by code points. A root ends in ``/``, so there is one."""
    head = prefix.rstrip(LAST_CHARACTER)
    following = ord(head[-1]) + 1
    return head[:-1] + chr(0xE000 if following == 0xD800 else following)  # UTF-8 has no surrogates
