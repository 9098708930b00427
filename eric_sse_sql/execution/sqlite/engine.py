"""The engine of a SQLite URL."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any

from eric_sse.exception import RepositoryError
from sqlalchemy import URL, Engine, create_engine, event
from sqlalchemy.dialects import sqlite

from eric_sse_sql.execution.pool import FairPool
from eric_sse_sql.execution.sqlite.busy_retry import BusyRetry, has_code

BUSY_SECONDS = 30  # for which a statement waits for other writers, unless the URL says otherwise
MAX_BUSY_SECONDS = 24 * 60 * 60  # SQLite counts milliseconds in 32 bits
URL_OPTIONS = {"timeout", "detect_types", "check_same_thread", "cached_statements"}  # what SQLAlchemy passes on
MAX_LOG_BYTES = 16 * 1024 * 1024  # of the write-ahead log, once a reader that made it grow has ended


def make_engine(url: URL, options: Mapping[str, Any]) -> Engine:
    """An engine for a URL: write-ahead log of a bounded size, foreign keys, and a wait for other writers.

    A database in memory is one connection, which its threads use in turn.

    :raises RepositoryError: for a URL with a host, or with an option that would be ignored or has no valid value
    """
    if url.host or url.port or url.username:
        raise RepositoryError(
            "a SQLite URL has three slashes before a relative path, and four before an absolute one"
        ) from ValueError("host")
    _check_query(url)
    arguments: dict[str, Any] = {} if "timeout" in url.query else {"timeout": BUSY_SECONDS}
    options = {"poolclass": FairPool, **options}
    if is_in_memory(url):
        arguments["check_same_thread"] = False
        options.update(pool_size=1, max_overflow=0, pool_timeout=BUSY_SECONDS)
    engine = create_engine(url, connect_args=arguments, **options)
    retry = BusyRetry(busy_seconds(engine.url))
    event.listen(engine, "connect", lambda connection, record: _set_up(connection, retry))
    return engine


def _check_query(url: URL) -> None:
    """
    :raises RepositoryError: for an option in the URL that would be ignored, or whose value has no sense
    """
    if "plugin" in url.query:  # which may have options of its own
        return
    if "uri" not in url.query and not URL_OPTIONS.issuperset(url.query):
        raise RepositoryError(
            f"the URL has an option that is not one of {', '.join(sorted(URL_OPTIONS))}; an option of SQLite's own, "
            "such as mode=ro, needs sqlite:///file:path/to/file.db?mode=ro&uri=true"
        ) from ValueError("query")
    try:
        is_valid = 0 <= busy_seconds(url) <= MAX_BUSY_SECONDS
        sqlite.dialect().create_connect_args(url)
    except (TypeError, ValueError):
        is_valid = False
    if not is_valid:
        raise RepositoryError(
            f"an option in the URL has a value that it can't have; timeout is a number of seconds, at most "
            f"{MAX_BUSY_SECONDS:,}, check_same_thread is true or false, the others are whole numbers"
        ) from ValueError("query")


def is_in_memory(url: URL) -> bool:
    """Whether a URL is that of a database in memory."""
    return url.database in (None, "", ":memory:") or url.query.get("mode") == "memory"


def _set_up(connection: sqlite3.Connection, retry: BusyRetry) -> None:
    """Turn foreign keys and the write-ahead log on. A file that can't be written keeps its journal mode.

    The log can't be reset while a reader needs it, and the next write after that cuts it to its size.
    """
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute(f"PRAGMA journal_size_limit = {MAX_LOG_BYTES}")
    try:
        # SQLite's own handler does not wait for a writer to change the mode.
        retry.execute_without_handler(connection, "PRAGMA journal_mode = WAL")
    except sqlite3.OperationalError as error:
        if not _is_read_only(error):
            raise


def _is_read_only(error: sqlite3.Error) -> bool:
    return has_code(error, ("SQLITE_READONLY",), ("attempt to write a readonly database",))


def busy_seconds(url: URL) -> float:
    """For how long a statement waits for other writers."""
    return float(str(url.query.get("timeout", BUSY_SECONDS)))
