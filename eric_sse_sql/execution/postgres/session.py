"""The session of the Postgres server behind a connection: whether it is the connection's own, and when it is no use."""

from __future__ import annotations

import math
import time
from collections.abc import MutableMapping
from typing import Any

import psycopg
from psycopg.adapt import AdaptersMap, PyFormat
from psycopg.errors import error_from_result
from psycopg.pq import Format
from psycopg.rows import tuple_row

from eric_sse_sql.execution.postgres.connection import ADAPTERS, BoundedConnection
from eric_sse_sql.execution.values import check_values

PLAN_SECONDS = 1.0  # the age at which the cached plans of a connection are discarded
DISCARD_PLANS = "DISCARD PLANS"
READ_COMMITTED = b"read committed"
ASK = b"SELECT pg_backend_pid(), current_setting('default_transaction_isolation')"
SAMPLE = "SELECT %s::bytea, %s::text, %s::bigint, %s::integer, %s::boolean, %s::float8"
SAMPLES = (b"\0\xff", "text", 2**40, 7, True, 0.5)
OIDS = (17, 25, 1043, 20, 23, 16, 701)  # bytea, text, varchar, bigint, integer, boolean, float8
TYPES = (bytes, str, int, bool, float, list)
TUPLES_OK = 2  # libpq's status of a result with rows

#: By the beginning of the SQLSTATE: a session that does not execute statements, whatever they are.
_REFUSALS = (
    "25006",  # of a server in recovery, or of a primary that takes no writes any more
    "25P01",  # the transaction that a statement needs is not there
    "25P02",  # a failed transaction was left open
    "26000",  # a prepared statement is gone, after DEALLOCATE or DISCARD
    "42P05",  # a prepared statement is there already
    "57P05",  # idle_session_timeout, while the statement was on its way
)
#: The same, where the statement may have been executed.
_ENDS = (
    "08",  # connection exception
    "25P03",  # idle_in_transaction_session_timeout
    "25P04",  # transaction_timeout
    "57P",  # shutdown or crash
)


class Session:
    """What is known of the session behind one connection. Kept in the pool's record of the connection.

    Behind a pooler that changes sessions between transactions, the process id received at connect is the pooler's, and
    differs from that of ``pg_backend_pid()``.

    :param driver: the connection, which is asked once
    :raises psycopg.Error: when it does not answer
    """

    KEY = "eric_sse_sql.session"
    __slots__ = ("_changed", "cursor", "is_checked", "is_own", "is_plain", "is_read_committed", "plans_expire")

    def __init__(self, driver: Any) -> None:
        pid, level = _ask(driver)
        self.is_own: bool = int(pid) == driver.info.backend_pid
        #: Whether that is the default isolation level: another session's may differ.
        self.is_read_committed = self.is_own and level == READ_COMMITTED
        self.plans_expire = math.inf if driver.prepare_threshold is None else time.monotonic() + PLAN_SECONDS
        #: Whether cursors write and read values as psycopg does by itself.
        self.is_plain = isinstance(driver, BoundedConnection) or _is_plain(driver)
        #: Whether they write and read the values of this package as they are.
        self.is_checked = self.is_plain
        self._changed: list[tuple[str, Any]] = []  # settings of the connection with the values that they had
        self.cursor: Any = None  # kept, since making a cursor is a third of a statement's cost to the client

    def check(self, cursor: Any) -> None:
        """Do nothing where cursors write and read the values of this package as they are.

        :param cursor: a new one, which is closed
        :raises RepositoryError: where they do not
        """
        check_values(_read_samples, cursor, SAMPLES, psycopg.Error)
        self.is_checked = True

    @classmethod
    def find(cls, info: MutableMapping[Any, Any]) -> Session | None:
        """:param info: of the pool's record"""
        return info.get(cls.KEY)

    def stop_preparing(self, driver: Any) -> None:
        """Prepare no statement on the connection from now on."""
        driver.prepare_threshold = None
        self.plans_expire = math.inf

    def change(self, driver: Any, setting: str, value: Any) -> None:
        """Change a setting of the idle connection until :meth:`restore`.

        SQLAlchemy's option would restore the engine's default, not the value that the application has set.
        """
        before = getattr(driver, setting)
        if before != value:
            self._changed.append((setting, before))
            setattr(driver, setting, value)

    def restore(self, driver: Any) -> None:
        """Give the idle connection the settings that it had."""
        while self._changed:
            setattr(driver, *self._changed[-1])
            self._changed.pop()

    def expire_plans(self) -> bool:
        """True once in ``PLAN_SECONDS``: the plans of the session are to be discarded now."""
        now = time.monotonic()
        if now <= self.plans_expire:
            return False
        self.plans_expire = now + PLAN_SECONDS
        return True


def has_plain_cursors(driver: Any) -> bool:
    """Whether cursors return tuples, and leave the binding of parameters to the server."""
    return driver.cursor_factory is psycopg.Cursor and driver.row_factory is tuple_row


def _is_plain(driver: Any) -> bool:
    has_text = driver.info.encoding != "ascii"  # psycopg returns the text of SQL_ASCII as bytes
    return has_text and has_plain_cursors(driver) and _adapters(driver.adapters) == _adapters(ADAPTERS)


def _adapters(adapters: AdaptersMap) -> list[Any]:
    """The adapters for the types of this package's statements."""
    loaders: list[Any] = [adapters.get_loader(oid, way) for oid in OIDS for way in Format]
    return loaders + [adapters.get_dumper(kind, way) for kind in TYPES for way in (PyFormat.AUTO, PyFormat.BINARY)]


def _read_samples(cursor: Any) -> Any:
    cursor.execute(SAMPLE, SAMPLES)
    return cursor.fetchone()


def is_refusal(error: BaseException) -> bool:
    """Whether a session has refused a statement that another session may execute: nothing was executed."""
    diagnosis: Any = getattr(_of_driver(error), "diag", None)
    if diagnosis is not None and diagnosis.source_function == "RevalidateCachedQuery":
        return True  # "cached plan must not change result type", after a migration; other errors have its SQLSTATE, too
    return _sqlstate(error).startswith(_REFUSALS)


def is_end(error: BaseException) -> bool:
    """Whether a session is of no use after an error of one of its statements."""
    return is_refusal(error) or _sqlstate(error).startswith(_ENDS)


def _sqlstate(error: BaseException) -> str:
    return getattr(_of_driver(error), "sqlstate", None) or ""


def _of_driver(error: BaseException) -> BaseException:
    """The driver's own error, which SQLAlchemy wraps."""
    return getattr(error, "orig", None) or error


def _ask(driver: Any) -> tuple[bytes, bytes]:
    """The answer to the question, past the cursors, adapters and transactions that the application may have set."""
    result: Any = driver.execute(ASK).pgresult if isinstance(driver, BoundedConnection) else driver.pgconn.exec_(ASK)
    if result.status != TUPLES_OK:
        raise error_from_result(result)
    return result.get_value(0, 0), result.get_value(0, 1)
