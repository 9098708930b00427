"""Every fault of a driver, of SQLAlchemy or of pickle leaves this package as a ``RepositoryError``."""

from __future__ import annotations

import sqlite3
from types import TracebackType

from eric_sse import exception as eric_sse_exceptions
from eric_sse.exception import RepositoryError
from sqlalchemy.exc import DBAPIError, TimeoutError

from eric_sse_sql.contract import ItemNotFound

_ERIC_SSE_EXCEPTIONS: tuple[type[Exception], ...] = (
    ItemNotFound,
    *(each for each in vars(eric_sse_exceptions).values() if isinstance(each, type) and issubclass(each, Exception)),
)


class repository_errors:
    """Context manager: turns any other exception into ``RepositoryError``, with its cause attached.

    eric-sse's own exceptions pass. The message never quotes the cause, whose text may hold what was to be stored.
    The cause of a database fault is the driver's own exception.

    :param action: what was attempted, as the message begins: "could not store the entry"
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
    """What to do about a fault, told from the SQLSTATE on Postgres and from the text on SQLite."""
    sqlstate = getattr(error, "sqlstate", None)
    text = str(error) if isinstance(error, sqlite3.Error) else ""
    if sqlstate in ("42P01", "3F000") or text.startswith("no such table"):
        return "its tables are missing; make them with Database.upgrade() or `alembic upgrade head`"
    if sqlstate == "42703" or "no column named" in text or text.startswith("no such column"):
        return "its tables are of another version of eric_sse_sql; Database.check() says what to do"
    if "is locked" in text:
        return "another writer holds the SQLite database; end its transaction, or raise the busy timeout"
    if text.startswith("unable to open") or text.startswith("file is not a database"):
        return "the SQLite file can't be opened; check the path of the URL and the rights on its folder"
    if isinstance(error, ModuleNotFoundError) and str(error.name).startswith("psycopg"):
        return "psycopg is not installed; run `pip install eric_sse_sql[postgres]`"
    if isinstance(error, TimeoutError):
        return "every pooled connection is in use; raise pool_size, or return connections sooner"
    # Where there is no server, psycopg has no SQLSTATE to tell.
    unanswered = sqlstate is None and any(each.__name__ == "OperationalError" for each in type(error).__mro__)
    if (unanswered and not text) or str(sqlstate).startswith(("08", "28", "57P")):
        return "the server can't be reached or has closed the connection; check the URL, the server and its log"
    if sqlstate is not None or isinstance(error, sqlite3.Error):
        return f"the database refused it with {type(error).__name__}; the attached cause says why"
    return f"{type(error).__name__}; the attached cause says why"
