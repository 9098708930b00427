"""Every exception of a driver, of SQLAlchemy or of pickle leaves this package as ``RepositoryError``, with advice."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType

from eric_sse import exception as eric_sse_exceptions
from eric_sse.exception import RepositoryError
from sqlalchemy.exc import DBAPIError

from eric_sse_sql.contract import ItemNotFound

_ERIC_SSE_EXCEPTIONS: tuple[type[Exception], ...] = (
    ItemNotFound,
    *(
        found
        for found in vars(eric_sse_exceptions).values()
        if isinstance(found, type) and issubclass(found, Exception)
    ),
)

_MISSING_TABLES = "its tables are missing; make them with Database.upgrade() or `eric-sse-sql upgrade`"
_OTHER_TABLES = "its tables are of another version of eric_sse_sql; Database.check() says what to do"
_UNREACHABLE = "the server can't be reached or has closed the connection; check the URL, the server and its log"
_CREDENTIALS = (
    "the server refuses this user or password; check both in the URL, where the characters @ : / ? # % of a password "
    "are percent-encoded, and the server's pg_hba.conf"
)
_NO_DATABASE = "the server has no database of this name; check the name at the end of the URL, or run CREATE DATABASE"
_TOO_MANY_CONNECTIONS = (
    "the server allows no more connections; close some, make pools smaller, or raise max_connections or the limit of "
    "the role"
)
_URL_OPTION = "libpq does not know an option of the URL, or its value; check what stands after the ? and the port"
_NO_POSTGRES = "the server does not answer as Postgres does; check host and port of the URL"
_ENCODING = (
    "the encoding of the database does not have every character; use one made with ENCODING 'UTF8', or where all "
    "its text is UTF-8, add ?client_encoding=utf8 to the URL"
)
_SQL_ASCII = f"the encoding of the database is SQL_ASCII, which returns bytes, not text: {_ENCODING}"
_READ_ONLY = (
    "the database is read-only; connect to the primary server, as with all hosts and target_session_attrs=read-write "
    "in the URL, or as a role that may write, without default_transaction_read_only"
)
_NO_ANSWER = (
    "the server has not answered in time; pg_stat_activity and its log say what it waits for, and ?timeout= in the URL "
    "sets the seconds"
)
_FAILED = "a statement of the transaction has failed; roll it back first"
_IDLE = (
    "the server has ended a transaction that was idle or open for too long; do less between its statements, or raise "
    "idle_in_transaction_session_timeout and transaction_timeout"
)
_NO_RIGHT = "this role lacks a right; let the owner of the tables run GRANT SELECT, INSERT, UPDATE, DELETE ON them"
_TIMEOUT = "the statement was cancelled, as by statement_timeout; raise that, or find in the server's log what was slow"
_LOCK_TIMEOUT = "another transaction holds a lock for longer than lock_timeout; end that one, or raise lock_timeout"
_CONFLICT = "the transaction conflicts with another one; roll it back and run it again"
_FULL = "the disk is full, or the file has its maximum size; make room"
_OUT_OF_RESOURCES = "the server has no memory or another resource left; its log says which"
_PROXY = (
    "a prepared statement is not there: DEALLOCATE or DISCARD has removed it, or a proxy gives each transaction "
    "another connection; then write Database(url, notify=False), or give the engine "
    "connect_args={'prepare_threshold': None}"
)
_LOCKED = "another writer holds the SQLite database; end its transaction, or raise the busy timeout"
_OUTDATED_READ = (
    "the transaction read before its first write, and another connection has written since; roll it back and run it "
    "again, or begin it with BEGIN IMMEDIATE"
)
_NO_SQLITE_FILE = (
    "the SQLite file can't be opened; check the path of the URL, with four slashes before an absolute one, that its "
    "folder exists, and the rights on both"
)
_NOT_A_DATABASE = "the SQLite file can't be opened: it is another kind of file, or encrypted; check the path of the URL"
_READ_ONLY_FILE = "the SQLite database is read-only; check mode= in the URL, and the rights on the file and its folder"
_DISK = (
    "the disk has failed, or can't take the file: it is full, a quota or limit is used up, or it is out of reach; see "
    "the system's log"
)
_DAMAGED = (
    "the SQLite file is damaged (https://www.sqlite.org/howtocorrupt.html); stop its processes, and restore a backup"
)
_OTHER_THREAD = (
    "a SQLite connection is used in another thread than its own; make the engine without poolclass, or with "
    "connect_args={'check_same_thread': False}"
)
_POOL_EXHAUSTED = "every pooled connection is in use; raise pool_size, or return connections sooner"
_NO_PSYCOPG = 'psycopg is not installed; run `pip install "psycopg[binary]"`'
_NO_LIBPQ = 'psycopg finds no libpq; run `pip install "psycopg[binary]"`, which brings one, or install libpq'
_ASYNCHRONOUS = "the engine or session is asynchronous; inside AsyncSession.run_sync(), join the session that it gives"

# By the beginning of the SQLSTATE that Postgres reports; the first match counts.
_SQLSTATE_ADVICE = {
    "42P01": _MISSING_TABLES,  # undefined table
    "3F000": _MISSING_TABLES,  # undefined schema
    "42703": _OTHER_TABLES,  # undefined column
    "08": _UNREACHABLE,  # connection exception
    "22021": _ENCODING,  # character not in repertoire
    "22P05": _ENCODING,  # untranslatable character
    "25006": _READ_ONLY,
    "25P02": _FAILED,
    "25P03": _IDLE,
    "25P04": _IDLE,
    "26000": _PROXY,  # the prepared statement does not exist
    "42P05": _PROXY,  # the prepared statement exists already
    "28": _CREDENTIALS,  # invalid authorization
    "3D000": _NO_DATABASE,
    "40": _CONFLICT,  # serialization failure, deadlock
    "42501": _NO_RIGHT,
    "53100": _FULL,
    "53300": _TOO_MANY_CONNECTIONS,
    "53": _OUT_OF_RESOURCES,
    "55P03": _LOCK_TIMEOUT,
    "57014": _TIMEOUT,
    "57P": _UNREACHABLE,  # shutdown, or an idle session's timeout
}
_SQLITE_BUSY_SNAPSHOT = 517  # an extended result code of SQLITE_BUSY
# By SQLite's primary result code and a part of its message. Before Python 3.11 an exception has the message only.
_SQLITE_ADVICE = {
    (1, "no such table"): _MISSING_TABLES,  # SQLITE_ERROR, the code of every fault of a statement
    (1, "no such column"): _OTHER_TABLES,
    (1, "has no column named"): _OTHER_TABLES,
    (5, "is locked"): _LOCKED,  # SQLITE_BUSY: by another connection
    (6, "is locked"): _LOCKED,  # SQLITE_LOCKED: by another connection to the same cache
    (8, "readonly database"): _READ_ONLY_FILE,  # SQLITE_READONLY
    (10, "disk I/O error"): _DISK,  # SQLITE_IOERR
    (11, "is malformed"): _DAMAGED,  # SQLITE_CORRUPT
    (13, "is full"): _FULL,  # SQLITE_FULL
    (14, "unable to open"): _NO_SQLITE_FILE,  # SQLITE_CANTOPEN
    (21, "in that same thread"): _OTHER_THREAD,  # an error of Python's, without a code
    (26, "is not a database"): _NOT_A_DATABASE,  # SQLITE_NOTADB
}
# By the package and class of another error, and a pattern in its message; the first match counts. A failure to connect
# has no SQLSTATE, and the message of the server, which may be in another language than English.
_OTHER_ADVICE = (
    ("psycopg.OperationalError", "^no answer within", _NO_ANSWER),
    ("psycopg.OperationalError", r"password|pg_hba\.conf|role \".*\" (does not exist|is not permitted)", _CREDENTIALS),
    ("psycopg.OperationalError", r"database \".*\" does not exist", _NO_DATABASE),
    ("psycopg.OperationalError", r"too many (clients|connections)|remaining connection slots", _TOO_MANY_CONNECTIONS),
    ("psycopg.OperationalError", r"invalid (\S+ value|value for|port)|parameter|requires a value", _URL_OPTION),
    ("psycopg.OperationalError", r"invalid response|expected authentication", _NO_POSTGRES),
    ("psycopg.OperationalError", "", _UNREACHABLE),
    ("psycopg2.OperationalError", "", _UNREACHABLE),
    ("psycopg2.InterfaceError", "closed", _UNREACHABLE),
    ("pg8000.InterfaceError", "", _UNREACHABLE),
    ("sqlalchemy.InterfaceError", "closed", _UNREACHABLE),  # of asyncpg
    ("psycopg.ProgrammingError", r"invalid connection option|bad value for", _URL_OPTION),
    ("builtins.ConnectionError", "", _UNREACHABLE),  # which pg8000 lets pass
    ("builtins.ModuleNotFoundError", r"\bpsycopg\b", _NO_PSYCOPG),
    ("builtins.ImportError", r"pq wrapper|requested psycopg", _NO_LIBPQ),
    ("builtins.UnicodeEncodeError", "", _ENCODING),
    # What SQLAlchemy does with the server's version: bytes in SQL_ASCII, and another text from other servers.
    ("builtins.TypeError", r"string pattern on a bytes-like", _SQL_ASCII),
    ("builtins.AssertionError", r"Could not determine version", _NO_POSTGRES),
    ("sqlalchemy.TimeoutError", "", _POOL_EXHAUSTED),
    ("sqlalchemy.MissingGreenlet", "", _ASYNCHRONOUS),
    ("sqlalchemy.ResourceClosedError", "", "the connection or its transaction is closed; join it while it is open"),
    ("sqlalchemy.PendingRollbackError", "", _FAILED),
    ("sqlalchemy.UnboundExecutionError", "", "the session has no engine; make it with Session(engine)"),
    (
        "sqlalchemy.InvalidRequestError",
        r"Autobegin is disabled",
        "the session was not begun; call session.begin()",
    ),
    ("sqlalchemy.NoSuchModuleError", "", "a plugin that the URL names is not installed"),
    ("alembic.CommandError", "", "no migration has this revision (CommandError); leave it out for the newest one"),
)


# Of the fields of a message of Postgres, and of the lines of its text, those that quote rows and parameters.
_QUOTING_FIELDS = {"D", "W", "q"}
_QUOTING_LINES = re.compile(r"\n(?:DETAIL|HINT|CONTEXT|QUERY):")


class OutcomeUnknown(RepositoryError):
    """The outcome of a call is not known: the connection ended after its statement, or its COMMIT, was sent, and before
    the server's reply was received; or SQLite was interrupted. It may have been done, wholly, or not at all.

    Only calls that write raise it, with the driver's exception as its cause.

    :param happened: what has happened
    """

    def __init__(self, happened: str = "the connection ended before the server had replied") -> None:
        super().__init__(
            f"{happened}, so that the outcome is unknown: the call may have been done, wholly, or not at all. Look "
            "whether it was, or repeat it: a message is added once if it is pushed again with the message_id of the "
            "first call, and what is stored or deleted may be so again"
        )


class repository_errors:
    """Context manager that turns any other exception into ``RepositoryError``, with the exception as its cause.

    eric-sse's own exceptions pass unchanged. The message never quotes the cause. The cause of a database error is the
    driver's own exception, without the lines of its text that quote stored values; SQLAlchemy's, whose text may quote
    parameters, is not attached.

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
        if not isinstance(error, Exception):
            return
        if isinstance(error, _ERIC_SSE_EXCEPTIONS):
            if isinstance(error.__context__, DBAPIError):  # whose text quotes parameters
                error.__context__ = None
            return
        cause = driver_error(error)
        advice = _advice(cause)
        try:
            raise RepositoryError(f"{self.action}: {advice}") from without_values(cause)
        except RepositoryError as refusal:
            refusal.__context__ = None
            raise


@contextmanager
def application_errors(name: str, advice: str) -> Iterator[None]:
    """Turn an exception of an application's own function into ``RepositoryError``, with the exception as its cause.

    :param name: of the function
    :param advice: what to do about it
    """
    try:
        yield
    except Exception as error:
        reason = error if isinstance(error, RepositoryError) else "the attached cause says why"
        raise RepositoryError(f"{name} raised {type(error).__name__}: {reason}; {advice}") from error


def without_values(error: BaseException) -> BaseException:
    """The same error. The text of one of Postgres keeps its first line: DETAIL and CONTEXT quote rows and parameters,
    which only the attribute ``diag`` of psycopg and psycopg2 has then."""
    diagnosis = getattr(error, "diag", None)
    fields = _pg8000_fields(error)
    if diagnosis is not None and diagnosis.message_primary is not None:
        error.args = (diagnosis.message_primary,)
    elif fields:
        error.args = ({name: value for name, value in fields.items() if name not in _QUOTING_FIELDS},)
        error.__cause__ = error.__context__ = None
    elif sqlstate(error) and error.args:  # of asyncpg, as SQLAlchemy adapts it
        error.args = (_QUOTING_LINES.split(str(error.args[0]), maxsplit=1)[0], *error.args[1:])
        error.__cause__ = error.__context__ = None
    return error


def sqlstate(error: BaseException) -> str | None:
    """The SQLSTATE that Postgres has reported, whatever the driver calls it; None where it has reported none."""
    code: str | None = (
        getattr(error, "sqlstate", None) or getattr(error, "pgcode", None) or _pg8000_fields(error).get("C")
    )
    return code


def _pg8000_fields(error: BaseException) -> Mapping[str, str]:
    """The fields of the server's message, which pg8000 gives instead of a text; none of another driver's error.

    https://www.postgresql.org/docs/current/protocol-error-fields.html
    """
    return error.args[0] if len(error.args) == 1 and isinstance(error.args[0], dict) else {}


def driver_error(error: BaseException) -> BaseException:
    """The driver's exception behind one of SQLAlchemy's; any other exception itself."""
    return error.orig if isinstance(error, DBAPIError) and error.orig is not None else error


def _advice(error: BaseException) -> str:
    """What the application's developer or operator can do about an error."""
    if isinstance(error, sqlite3.Error):
        return _sqlite_advice(error) or _refused(error)
    code = sqlstate(error)
    if code is not None:
        return _sqlstate_advice(code) or _refused(error)
    return _other_advice(error) or f"{type(error).__name__}; the attached cause says why"


def _sqlstate_advice(code: str) -> str | None:
    return next((advice for prefix, advice in _SQLSTATE_ADVICE.items() if code.startswith(prefix)), None)


def _sqlite_advice(error: sqlite3.Error) -> str | None:
    message, extended_code = str(error), getattr(error, "sqlite_errorcode", None)
    if extended_code == _SQLITE_BUSY_SNAPSHOT:
        return _OUTDATED_READ
    for (code, part), advice in _SQLITE_ADVICE.items():
        if part in message and (extended_code is None or extended_code & 0xFF == code):
            return advice
    return None


def _other_advice(error: BaseException) -> str | None:
    message = str(error)
    kinds = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
    return next(
        (advice for kind, pattern, advice in _OTHER_ADVICE if kind in kinds and re.search(pattern, message)), None
    )


def _refused(error: BaseException) -> str:
    return f"the database refused it with {type(error).__name__}; the attached cause says why"
