"""Every exception of a driver, of SQLAlchemy or of pickle leaves this package as ``RepositoryError``, with advice."""

from __future__ import annotations

import sqlite3
from types import TracebackType

from eric_sse import exception as eric_sse_exceptions
from eric_sse.exception import RepositoryError
from sqlalchemy.exc import DBAPIError, TimeoutError

from eric_sse_sql.contract import ItemNotFound

_ERIC_SSE_EXCEPTIONS: tuple[type[Exception], ...] = (
    ItemNotFound,
    *(
        found
        for found in vars(eric_sse_exceptions).values()
        if isinstance(found, type) and issubclass(found, Exception)
    ),
)

_MISSING_TABLES = "its tables are missing; make them with Database.upgrade() or `alembic upgrade head`"
_OTHER_TABLES = "its tables are of another version of eric_sse_sql; Database.check() says what to do"
_UNREACHABLE = "the server can't be reached or has closed the connection; check the URL, the server and its log"
_LOCKED = "another writer holds the SQLite database; end its transaction, or raise the busy timeout"
_NO_SQLITE_FILE = "the SQLite file can't be opened; check the path of the URL and the rights on its folder"
_POOL_EXHAUSTED = "every pooled connection is in use; raise pool_size, or return connections sooner"
_NO_PSYCOPG = "psycopg is not installed; run `pip install eric_sse_sql[postgres]`"

# By the beginning of the SQLSTATE that Postgres reports.
_SQLSTATE_ADVICE = {
    "42P01": _MISSING_TABLES,  # undefined table
    "3F000": _MISSING_TABLES,  # undefined schema
    "42703": _OTHER_TABLES,  # undefined column
    "08": _UNREACHABLE,  # connection exception
    "28": _UNREACHABLE,  # invalid authorization
    "57P": _UNREACHABLE,  # shutdown, or an idle session's timeout
}
# By SQLite's primary result code and a part of its message. Before Python 3.11 an exception has the message only.
_SQLITE_ADVICE = {
    (1, "no such table"): _MISSING_TABLES,  # SQLITE_ERROR, the code of every fault of a statement
    (1, "no such column"): _OTHER_TABLES,
    (1, "has no column named"): _OTHER_TABLES,
    (5, "is locked"): _LOCKED,  # SQLITE_BUSY: by another connection
    (6, "is locked"): _LOCKED,  # SQLITE_LOCKED: by another connection to the same cache
    (14, "unable to open"): _NO_SQLITE_FILE,  # SQLITE_CANTOPEN
    (26, "is not a database"): _NO_SQLITE_FILE,  # SQLITE_NOTADB
}


class repository_errors:
    """Context manager that turns any other exception into ``RepositoryError``, with the exception as its cause.

    eric-sse's own exceptions pass unchanged. The message never quotes the cause, whose text may contain the stored
    values. The cause of a database error is the driver's own exception.

    :param action: what was attempted; the message begins with it: "could not store the entry"
    :raises RepositoryError: from the cause
    """

    __slots__ = ("action",)

    def __init__(self, action: str) -> None:
        self.action = action

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not isinstance(error, Exception) or isinstance(error, _ERIC_SSE_EXCEPTIONS):
            return
        cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
        raise RepositoryError(f"{self.action}: {_advice(cause)}") from cause


def _advice(error: BaseException) -> str:
    """What the application's developer or operator can do about an error."""
    if isinstance(error, sqlite3.Error):
        return _sqlite_advice(error) or _refused(error)
    if isinstance(error, ModuleNotFoundError) and str(error.name).startswith("psycopg"):
        return _NO_PSYCOPG
    if isinstance(error, TimeoutError):
        return _POOL_EXHAUSTED
    sqlstate = getattr(error, "sqlstate", None)
    if sqlstate is not None:
        return _sqlstate_advice(sqlstate) or _refused(error)
    # Without an answer from a server, psycopg raises OperationalError without SQLSTATE. psycopg may not be installed.
    if any(cls.__name__ == "OperationalError" for cls in type(error).__mro__):
        return _UNREACHABLE
    return f"{type(error).__name__}; the attached cause says why"


def _sqlstate_advice(sqlstate: str) -> str | None:
    return next((advice for prefix, advice in _SQLSTATE_ADVICE.items() if sqlstate.startswith(prefix)), None)


def _sqlite_advice(error: sqlite3.Error) -> str | None:
    message, extended_code = str(error), getattr(error, "sqlite_errorcode", None)
    for (code, part), advice in _SQLITE_ADVICE.items():
        if part in message and (extended_code is None or extended_code & 0xFF == code):
            return advice
    return None


def _refused(error: BaseException) -> str:
    return f"the database refused it with {type(error).__name__}; the attached cause says why"
