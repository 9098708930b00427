"""SQLite on a full disk: a call that is refused has changed nothing, and works once there is room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from eric_sse.exception import RepositoryError
from eric_sse.message import Message
from sqlalchemy import Engine, NullPool, create_engine, event
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from eric_sse_sql import Database, SqlQueue, SqlStorageEngine
from support.catalog import table_counts
from support.queues import drain

ADVICE = "the disk is full, or the file has its maximum size; make room"
ROLLED_BACK = "SQLite has rolled all of it back"
SIZE = 16 * 1024 * 1024  # bytes of the small filesystem
ROOM = 300_000  # bytes that are free on it, or in the file, when it is nearly full
LARGE = b"x" * 3 * 1024 * 1024  # more than SQLite's cache holds, so that it is written before the transaction ends


class SmallFilesystem:
    """A database in a file on a filesystem in memory, which another file fills."""

    def __init__(self, folder: Path) -> None:
        self.bind: str | Engine = f"sqlite:///{folder / 'a.db'}"
        self._filler = folder / "filler"

    def fill(self) -> None:
        """Leave a little room."""
        state = os.statvfs(self._filler.parent)
        self._filler.write_bytes(bytes(state.f_bavail * state.f_frsize - ROOM))

    def make_room(self) -> None:
        self._filler.unlink()


class LimitedFile:
    """A database in a file that may have so many pages, on an engine of an application."""

    def __init__(self, folder: Path) -> None:
        self.bind = create_engine(f"sqlite:///{folder / 'b.db'}", poolclass=NullPool)
        self._pages = 2**30
        event.listen(
            self.bind, "connect", lambda connection, _: connection.execute(f"PRAGMA max_page_count = {self._pages}")
        )

    def fill(self) -> None:
        """Leave a little room."""
        with self.bind.connect() as connection:
            pages, size = (
                int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()) for name in ("page_count", "page_size")
            )
        self._pages = pages + ROOM // size

    def make_room(self) -> None:
        self._pages = 2**30


@pytest.fixture(params=["small filesystem", "limited file"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SmallFilesystem | LimitedFile]:
    if request.param == "limited file":
        yield LimitedFile(tmp_path)
        return
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tests", str(tmp_path)]
    if os.name != "posix" or os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine lets no test mount a small filesystem")
    try:
        yield SmallFilesystem(tmp_path)
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


@pytest.fixture
def database(disk: SmallFilesystem | LimitedFile) -> Iterator[Database]:
    with Database(disk.bind) as made:
        made.upgrade()
        yield made


def test_each_push_that_was_acknowledged_is_there_and_the_refused_one_works_later(
    database: Database, disk: SmallFilesystem | LimitedFile
) -> None:
    queue, pushed = SqlQueue(database, "q"), 0
    disk.fill()
    with pytest.raises(RepositoryError, match=ADVICE):
        while pushed < 1000:
            queue.push(Message("m", [pushed, b"x" * 10_000]))
            pushed += 1
    assert 0 < pushed == len(queue)
    disk.make_room()
    queue.push(Message("m", [pushed, b"x" * 10_000]))
    assert [number for number, _ in drain(queue)] == list(range(pushed + 1))


CALLS: dict[str, Callable[[Database], object]] = {
    "push": lambda database: SqlQueue(database, "q").push(Message("m", LARGE)),
    "push_many": lambda database: SqlQueue(database, "q").push_many([Message("m"), Message("m", LARGE), Message("m")]),
    "upsert": lambda database: SqlStorageEngine(database).upsert("key", LARGE),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_refused_call_has_changed_nothing_and_works_later(
    database: Database, disk: SmallFilesystem | LimitedFile, name: str
) -> None:
    before = table_counts(database)
    disk.fill()
    for _ in range(2):
        with pytest.raises(RepositoryError, match=ADVICE):
            CALLS[name](database)
        assert table_counts(database) == before
    disk.make_room()
    CALLS[name](database)
    assert table_counts(database) != before


def push_large_in_savepoint(database: Database) -> None:
    with database.transaction():
        SqlQueue(database, "q").push(Message("m", LARGE))


FAILING: dict[str, Callable[[Database], object]] = {**CALLS, "savepoint": push_large_in_savepoint}


@pytest.mark.parametrize("name", FAILING)
def test_a_transaction_that_goes_on_after_a_refused_call_stores_all_or_nothing(
    database: Database, disk: SmallFilesystem | LimitedFile, name: str
) -> None:
    queue = SqlQueue(database, "kept")

    def run() -> None:
        with database.transaction():
            queue.push(Message("first"))
            with suppress(RepositoryError):
                FAILING[name](database)
            queue.push(Message("last"))

    disk.fill()
    try:
        run()
    except RepositoryError as error:
        assert ROLLED_BACK in str(error) or ADVICE in str(error)
        assert table_counts(database)["sse_messages"] == 0
    else:
        assert drain_types(queue) == ["first", "last"]
    disk.make_room()
    queue.clear()
    run()
    assert drain_types(queue) == ["first", "last"]


@pytest.mark.parametrize("name", FAILING)
def test_a_joined_transaction_that_goes_on_after_a_refused_call_stores_all_or_nothing(
    database: Database, disk: SmallFilesystem | LimitedFile, name: str
) -> None:
    queue = SqlQueue(database, "kept")
    engine = disk.bind if isinstance(disk.bind, Engine) else create_engine(disk.bind)

    def run() -> None:
        with Session(engine) as session, database.join(session):
            queue.push(Message("first"))
            with suppress(RepositoryError):
                FAILING[name](database)
            queue.push(Message("last"))
            session.commit()

    disk.fill()
    try:
        run()
    except RepositoryError as error:
        assert ROLLED_BACK in str(error) or ADVICE in str(error)
        assert table_counts(database)["sse_messages"] == 0
    except OperationalError as error:  # of the application's own commit
        assert "disk is full" in str(error)
        assert table_counts(database)["sse_messages"] == 0
    else:
        assert drain_types(queue) == ["first", "last"]
    disk.make_room()
    queue.clear()
    run()
    assert drain_types(queue) == ["first", "last"]
    engine.dispose()


def drain_types(queue: SqlQueue) -> list[str]:
    return [row.message_type for row in queue.take(100)]
