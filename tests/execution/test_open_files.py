"""SQLite files that are deleted, moved or replaced while they are open: no call writes into a file without a name."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from eric_sse.exception import RepositoryError
from eric_sse.message import Message
from sqlalchemy import NullPool, create_engine, event, make_url
from sqlalchemy.orm import Session

from eric_sse_sql import BlockingSqlQueue, Database, SqlQueue, SqlStorageEngine
from eric_sse_sql.execution.sqlite.open_files import CHECK_SECONDS
from support.databases import application_engine
from support.waiting import DEADLINE, until

ADVICE = "was deleted, moved or replaced while it is open, and what is written now is lost; stop all processes"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.db"
    with Database(f"sqlite:///{path}") as database:
        database.upgrade()
    return path


@pytest.fixture(params=["own engine", "own engine, observed", "own engine, notify=False", "engine of an application"])
def database(request: pytest.FixtureRequest, file: Path) -> Iterator[Database]:
    url = make_url(f"sqlite:///{file}")
    with ExitStack() as stack:
        bind = stack.enter_context(application_engine(url)) if "application" in request.param else url
        made = stack.enter_context(Database(bind, notify="notify" not in request.param))
        if "observed" in request.param:
            event.listen(made.engine, "before_cursor_execute", lambda *arguments: None)
        SqlQueue(made, "q").push(Message("m"))
        yield made


def replace(file: Path) -> None:
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(file.with_suffix(".backup"))) as backup:
        source.backup(backup)
    os.replace(file.with_suffix(".backup"), file)


FAULTS: dict[str, Callable[[Path], object]] = {
    "deleted": lambda file: file.unlink(),
    "moved": lambda file: file.rename(file.with_suffix(".moved")),
    "replaced": replace,
    "without its write-ahead log": lambda file: Path(f"{file}-wal").unlink(),
    "without its shared memory": lambda file: Path(f"{file}-shm").unlink(),
    "in a folder that was moved": lambda file: file.parent.rename(file.parent.with_suffix(".moved")),
}


def in_transaction(database: Database) -> None:
    with database.transaction():
        SqlQueue(database, "q").push(Message("m"))


def in_session(database: Database) -> None:
    with Session(database.engine) as session, database.join(session):
        SqlQueue(database, "q").push(Message("m"))
        session.commit()


CALLS: dict[str, Callable[[Database], object]] = {
    "push": lambda database: SqlQueue(database, "q").push(Message("m")),
    "pop": lambda database: SqlQueue(database, "q").pop(),
    "read": lambda database: list(SqlStorageEngine(database).fetch_all()),
    "transaction": in_transaction,
    "check": Database.check,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_call_is_refused_once_the_file_is_not_the_open_one(database: Database, file: Path, fault: str) -> None:
    for call in CALLS.values():
        call(database)
    FAULTS[fault](file)
    there = sorted(file.parent.iterdir()) if file.parent.exists() else []
    time.sleep(1.5 * CHECK_SECONDS)
    for call in CALLS.values():
        for _ in range(2):
            with pytest.raises(RepositoryError, match=ADVICE) as caught:
                call(database)
            assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert (sorted(file.parent.iterdir()) if file.parent.exists() else []) == there


def test_a_joined_transaction_is_refused_once_the_file_is_not_the_open_one(file: Path) -> None:
    url = make_url(f"sqlite:///{file}")
    with application_engine(url) as engine, Database(engine) as database:
        in_session(database)
        replace(file)
        time.sleep(1.5 * CHECK_SECONDS)
        with pytest.raises(RepositoryError, match=ADVICE):
            in_session(database)


def test_a_new_connection_makes_no_empty_file_in_place_of_a_deleted_one(database: Database, file: Path) -> None:
    with database.engine.connect():  # so that each call needs another connection
        file.unlink()
        time.sleep(1.5 * CHECK_SECONDS)
        for call in CALLS.values():
            with pytest.raises(RepositoryError, match=ADVICE):
                call(database)
    assert not file.exists()


@pytest.mark.parametrize("fault", FAULTS)
def test_pushes_in_a_loop_are_refused(database: Database, file: Path, fault: str) -> None:
    queue = SqlQueue(database, "q")
    FAULTS[fault](file)
    give_up = time.monotonic() + DEADLINE
    with pytest.raises(RepositoryError, match=ADVICE):
        while time.monotonic() < give_up:
            queue.push(Message("m"))


@pytest.mark.parametrize("fault", FAULTS)
def test_the_watching_thread_says_so_and_a_wait_ends(file: Path, fault: str, caplog: pytest.LogCaptureFixture) -> None:
    with Database(f"sqlite:///{file}") as database, caplog.at_level(logging.WARNING, "eric_sse_sql"):
        database.background.poller.start()
        until(lambda: database.watcher.is_trusted)
        FAULTS[fault](file)
        until(lambda: ADVICE in caplog.text)
        with pytest.raises(RepositoryError, match=ADVICE):
            BlockingSqlQueue(database, "q").pop()


def test_a_file_that_is_moved_back_is_used_again(database: Database, file: Path) -> None:
    away = file.with_suffix(".moved")
    file.rename(away)
    time.sleep(1.5 * CHECK_SECONDS)
    for call in CALLS.values():
        with pytest.raises(RepositoryError):
            call(database)
    away.rename(file)
    for call in CALLS.values():
        call(database)


def test_a_file_that_is_replaced_while_no_connection_is_open_is_used(file: Path, tmp_path: Path) -> None:
    unused = create_engine(f"sqlite:///{file}", poolclass=NullPool)
    with Database(unused) as of_application, Database(f"sqlite:///{file}") as database:
        for _ in range(3):
            for call in CALLS.values():
                call(of_application)
                call(database)
            database.executor.release()
            database.engine.dispose()
            shutil.copy(file, tmp_path / "copy.db")
            os.replace(tmp_path / "copy.db", file)
            time.sleep(1.5 * CHECK_SECONDS)


def test_checkpoints_and_other_processes_that_come_and_go_are_no_fault(database: Database, file: Path) -> None:
    for statement in ("PRAGMA wal_checkpoint(TRUNCATE)", "VACUUM", "PRAGMA wal_checkpoint(RESTART)"):
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute(statement)
        time.sleep(1.5 * CHECK_SECONDS)
        for call in CALLS.values():
            call(database)
