"""``SqlStorageEngine``: values by key, in ``kv_entries``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from eric_sse.exception import RepositoryError
from sqlalchemy import URL, Engine, bindparam, delete, select

from eric_sse_sql.codec import class_path
from eric_sse_sql.contract import ItemNotFound, KvStorageEngine
from eric_sse_sql.database import Database
from eric_sse_sql.errors import repository_errors
from eric_sse_sql.keys import validate_key
from eric_sse_sql.models import KvEntry
from eric_sse_sql.statements import Construct, Dialect, Row, Statement, upsert

FIRST_PAGE_ROWS = 128
PAGE_ROWS = 1000
PAGE_BYTES = 4 * 1024 * 1024
PLACE = f"{KvEntry.__tablename__}/"  # with the key, what the signature of a value is bound to
LAST_CHARACTER = chr(0x10FFFF)
ENTRY = {"key": "at", "value": "blob", "value_type": "kind"}  # what storing a value binds, by column


def _upsert(sql: Dialect) -> Construct:
    return upsert(sql, KvEntry, ENTRY)


def _fetch(sql: Dialect) -> Construct:
    return select(KvEntry.value).where(KvEntry.key == bindparam("at"))


def _delete(sql: Dialect) -> Construct:
    return delete(KvEntry).where(KvEntry.key == bindparam("at"))


def _first_page(sql: Dialect) -> Construct:
    return _page().where(KvEntry.key >= bindparam("start"))


def _next_page(sql: Dialect) -> Construct:
    return _page().where(KvEntry.key > bindparam("start"))


def _page() -> Construct:
    page = select(KvEntry.key, KvEntry.value).where(KvEntry.key < bindparam("end"))
    return page.order_by(KvEntry.key).limit(bindparam("count"))


UPSERT = Statement(_upsert)
FETCH = Statement(_fetch)
DELETE = Statement(_delete)
FIRST_PAGE = Statement(_first_page)
NEXT_PAGE = Statement(_next_page)


class SqlStorageEngine(KvStorageEngine):
    """A ``KvStorageEngine`` (eric-sse 2.0) and ``KvStorage`` (2.1) over the table ``kv_entries``.

    Each call is one statement, and atomic; iterating takes one a page. Threads and processes may share a namespace.
    Values come back as copies, in the order of their keys' code points. An iteration sees each page as it is when it
    gets there, and holds no connection, cursor or lock between pages.

    :param database: a :class:`Database`, or what it takes
    :param namespace: where the keys live: ``<namespace>/<key>`` in the table; at most 64 bytes, no ``/`` and no ``:``
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
        row = self.entry(key, value)
        with repository_errors("the value can't be stored"):
            self.database.run(UPSERT, **row)

    def fetch_one(self, key: str) -> Any:
        """The value of a key.

        :raises ItemNotFound: when it has none
        """
        at = self.entry_key(key)
        with repository_errors("the value can't be fetched"):
            rows = self.database.run(FETCH, at=at)
        if not rows:
            raise ItemNotFound(key)
        return self.value(at, rows[0][0])

    def fetch_by_prefix(self, prefix: str) -> Iterator[Any]:
        """The values whose keys start with a prefix, as ``str.startswith`` says: ``ch1`` also finds ``ch10``."""
        return self._values(self._root + validate_key("a prefix", prefix))

    def fetch_all(self) -> Iterator[Any]:
        """All values of the namespace."""
        return self._values(self._root)

    def delete(self, key: str) -> None:
        """Delete a key and its value, if it is there."""
        at = self.entry_key(key)
        with repository_errors("the value can't be deleted"):
            self.database.run(DELETE, at=at)

    def entry_key(self, key: str) -> str:
        """The primary key of a key's row."""
        return self._root + validate_key("a key", key)

    def entry(self, key: str, value: Any) -> dict[str, Any]:
        """What :data:`UPSERT` binds to store a value."""
        return self.entry_at(self.entry_key(key), value)

    def entry_at(self, at: str, value: Any) -> dict[str, Any]:
        """The same, by the primary key of the row."""
        blob = self.database.codec.encode(value, PLACE + at, self.database)
        return {"at": at, "blob": blob, "kind": class_path(type(value))}

    def value(self, at: str, blob: bytes) -> Any:
        """The value of a row, by its primary key and blob."""
        return self.database.codec.decode(blob, PLACE + at, self.database)

    def _values(self, start: str) -> Iterator[Any]:
        pages = keyset_pages(
            self.database, FIRST_PAGE, NEXT_PAGE, start, FIRST_PAGE_ROWS, PAGE_ROWS, end=_successor(start)
        )
        decode, database = self.database.codec.decode, self.database
        for page in pages:
            for at, blob in page:
                yield decode(blob, PLACE + at, database)


def keyset_pages(
    database: Database, first: Statement, following: Statement, start: str, count: int, most: int, **parameters: Any
) -> Iterator[Sequence[Row]]:
    """The pages of a result, each by a statement of its own that begins behind the last row of the one before.

    :param first: begins at ``start``; ``following`` begins behind it. Their rows have the key first, the blob last
    :param count: how many rows the first page has
    :param most: how many a later one has at most; fewer, where so many would not fit :data:`PAGE_BYTES`
    """
    statement = first
    while True:
        with repository_errors("the values can't be fetched"):
            rows = database.run(statement, start=start, count=count, **parameters)
        if rows:
            yield rows
        if len(rows) < count:
            return
        average = sum(len(row[-1]) for row in rows) // len(rows) + 1
        statement, start, count = following, rows[-1][0], max(1, min(most, PAGE_BYTES // average))


def _successor(prefix: str) -> str:
    """The first text behind all that start with a prefix, by code points. There is one, for a root ends in ``/``."""
    head = prefix.rstrip(LAST_CHARACTER)
    following = ord(head[-1]) + 1
    return head[:-1] + chr(0xE000 if following == 0xD800 else following)  # UTF-8 has no surrogates
