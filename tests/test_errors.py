"""``repository_errors``: each error of a driver becomes a RepositoryError that says what to do."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from eric_sse.exception import NoMessagesException, RepositoryError
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from eric_sse_sql import Database
from eric_sse_sql.contract import ItemNotFound
from eric_sse_sql.errors import repository_errors


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(tmp_path / "test.db", timeout=0, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE present (id INTEGER)")
        yield connection


def advice(connection: sqlite3.Connection, *statements: str) -> str:
    """The message of the error that the last of the statements raises."""
    with pytest.raises(RepositoryError) as error:
        for statement in statements:
            with repository_errors("could not run"):
                connection.execute(statement)
    assert isinstance(error.value.__cause__, sqlite3.Error)
    return str(error.value)


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("SELECT 1 FROM missing", "its tables are missing"),
        ("SELECT missing FROM present", "its tables are of another version of eric_sse_sql"),
        ("INSERT INTO present (missing) VALUES (1)", "its tables are of another version of eric_sse_sql"),
        ("SELECT", "the database refused it with OperationalError"),
        ("ATTACH DATABASE '/missing/file.db' AS other", "the SQLite file can't be opened"),
    ],
)
def test_an_error_of_sqlite_says_what_to_do(sqlite: sqlite3.Connection, statement: str, expected: str) -> None:
    assert advice(sqlite, statement).startswith(f"could not run: {expected}")


def test_a_locked_sqlite_database_is_named_as_locked(sqlite: sqlite3.Connection, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "test.db", isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        assert "another writer holds the SQLite database" in advice(sqlite, "BEGIN IMMEDIATE")


@pytest.mark.skipif(not hasattr(sqlite3, "SQLITE_BUSY"), reason="before Python 3.11 errors of SQLite have no code")
def test_a_write_after_a_read_that_is_out_of_date_is_named_as_one(sqlite: sqlite3.Connection, tmp_path: Path) -> None:
    sqlite.execute("PRAGMA journal_mode = WAL")
    sqlite.execute("BEGIN")
    sqlite.execute("SELECT id FROM present").fetchall()
    with closing(sqlite3.connect(tmp_path / "test.db", isolation_level=None)) as writer:
        writer.execute("INSERT INTO present VALUES (1)")
    assert "another connection has written since" in advice(sqlite, "INSERT INTO present VALUES (2)")


def test_a_table_locked_by_a_reader_of_the_same_cache_is_named_as_locked() -> None:
    shared = "file:shared_by_a_test?mode=memory&cache=shared"
    with closing(sqlite3.connect(shared, uri=True, isolation_level=None)) as reader:
        reader.execute("CREATE TABLE present (id INTEGER)")
        reader.execute("INSERT INTO present VALUES (1), (2)")
        cursor = reader.execute("SELECT id FROM present")
        cursor.fetchone()
        with closing(sqlite3.connect(shared, uri=True, timeout=0, isolation_level=None)) as writer:
            assert "another writer holds the SQLite database" in advice(writer, "INSERT INTO present VALUES (3)")


def test_a_file_that_is_not_a_database_is_named_as_unreadable(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("text " * 1000)
    with closing(sqlite3.connect(tmp_path / "text.db")) as connection:
        assert "the SQLite file can't be opened" in advice(connection, "SELECT 1 FROM sqlite_master")


@pytest.mark.skipif(not hasattr(sqlite3, "SQLITE_BUSY"), reason="before Python 3.11 errors of SQLite have no code")
def test_the_text_of_a_trigger_is_not_mistaken_for_a_locked_database(sqlite: sqlite3.Connection) -> None:
    trigger = "CREATE TRIGGER t BEFORE INSERT ON present BEGIN SELECT RAISE(ABORT, 'account is locked'); END"
    assert "refused it with IntegrityError" in advice(sqlite, trigger, "INSERT INTO present VALUES (1)")


def test_a_missing_table_is_named_on_every_database(database: Database) -> None:
    missing = pytest.raises(RepositoryError, match="could not run: its tables are missing")
    with missing as error, repository_errors("could not run"), database.engine.connect() as connection:
        connection.execute(text("SELECT 1 FROM missing"))
    assert not isinstance(error.value.__cause__, OperationalError)  # the driver's own exception, not SQLAlchemy's


def test_an_exhausted_pool_is_named(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'test.db'}", pool_size=1, max_overflow=0, pool_timeout=0)
    exhausted = pytest.raises(RepositoryError, match="every pooled connection is in use")
    with engine.connect(), exhausted, repository_errors("could not run"):
        engine.connect()
    engine.dispose()


@pytest.mark.parametrize("error", [NoMessagesException(), ItemNotFound("key"), RepositoryError("text")], ids=repr)
def test_an_exception_of_eric_sse_passes_unchanged(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, repository_errors("could not run"):
        raise error
    assert raised.value is error


def test_the_message_of_any_other_exception_names_its_class_and_hides_its_text() -> None:
    with pytest.raises(RepositoryError) as raised, repository_errors("could not run"):
        raise ValueError("a stored secret")
    assert str(raised.value) == "could not run: ValueError; the attached cause says why"


def test_an_interruption_passes_unchanged() -> None:
    with pytest.raises(KeyboardInterrupt), repository_errors("could not run"):
        raise KeyboardInterrupt
