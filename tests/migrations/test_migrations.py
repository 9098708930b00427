"""The migrations: what they make and where, which roles may run them, and what a failed one leaves."""

from __future__ import annotations

import logging
import re
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic import command
from alembic.script import ScriptDirectory
from eric_sse.exception import RepositoryError
from sqlalchemy import URL, Engine, create_engine, event, text
from sqlalchemy.orm import Session

from eric_sse_sql import Database, SqlStorageEngine, migrations
from eric_sse_sql.models import TABLE_NAMES, Base, ChannelRow, ConnectionRow, KvEntry, MessageIdRow, MessageRow
from support.catalog import (
    HEAD,
    REPOSITORY,
    Catalog,
    address,
    alembic,
    alembic_executable,
    catalog,
    catalog_on,
    connected,
    connections_in_use,
    tables,
    without,
)
from support.processes import fork_server

VERSION_TABLE = "eric_sse_sql_version"
OURS = {*TABLE_NAMES, VERSION_TABLE}
NOTHING: Catalog = {what: set() for what in ("columns", "foreign keys", "indexes", "views", "functions", "storage")}
OLDER = "eric_sse_sql_0002"
OLDER_TABLES = {"kv_entries", "sse_channels", "sse_connections", "sse_messages"}
ODD_SCHEMA = 'Odd-"Schema" :of 100%'


def execute(url: URL, *statements: str) -> None:
    """Run statements in one transaction."""
    with connected(url) as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def upgraded(url: URL, revision: str = "head") -> URL:
    with Database(url) as database:
        database.upgrade(revision)
    return url


def tables_by_schema(url: URL) -> dict[str, set[str]]:
    """The tables of every schema of Postgres."""
    found: dict[str, set[str]] = {}
    with connected(url) as connection:
        for schema, table in connection.execute(text("SELECT schemaname, tablename FROM pg_tables")):
            found.setdefault(schema, set()).add(table)
    return {schema: names for schema, names in found.items() if schema not in ("pg_catalog", "information_schema")}


def run_script(url: URL, sql: str) -> None:
    """Run a script as the database's own tools would."""
    if url.get_backend_name() == "sqlite":
        connection = sqlite3.connect(str(url.database))
        connection.executescript(sql)
        connection.close()
    else:
        with psycopg.connect(address(url.set(drivername="postgresql")), autocommit=True) as connection:
            connection.execute(sql.encode())


# The command


def test_the_alembic_command_upgrades_tells_and_downgrades(empty_url: URL) -> None:
    def run(*arguments: str) -> str:
        return alembic_executable(*arguments, ERIC_SSE_SQL_URL=address(empty_url))

    run("upgrade", "head")
    assert tables(empty_url) == OURS
    with Database(empty_url) as database:
        database.check()
    assert run("current").strip() == f"{HEAD} (head)"
    assert "<base> -> eric_sse_sql_0001 (eric_sse_sql)" in run("history", "--indicate-current")
    run("downgrade", "base")
    assert tables(empty_url) == {VERSION_TABLE}
    assert run("current").strip() == ""


def test_the_url_can_be_an_argument_which_goes_before_the_environment(empty_url: URL) -> None:
    def run(*arguments: str) -> str:
        return alembic("-x", f"url={address(empty_url)}", *arguments, ERIC_SSE_SQL_URL="sqlite:////no/such/folder.db")

    run("upgrade", "head")
    assert run("current").strip() == f"{HEAD} (head)"
    assert "CREATE TABLE kv_entries" in run("upgrade", "head", "--sql")


def test_offline_the_command_prints_sql_that_does_the_same(empty_url: URL) -> None:
    expected = catalog(upgraded(empty_url))
    down = alembic("downgrade", f"{HEAD}:base", "--sql", ERIC_SSE_SQL_URL=address(empty_url))
    run_script(empty_url, down)
    assert tables(empty_url) <= {VERSION_TABLE}  # Alembic 1.20 keeps it, older ones drop it
    execute(empty_url, f"DROP TABLE IF EXISTS {VERSION_TABLE}")
    assert catalog(empty_url) == NOTHING

    run_script(empty_url, alembic("upgrade", "head", "--sql", ERIC_SSE_SQL_URL=address(empty_url)))
    assert catalog(empty_url) == expected
    with Database(empty_url) as database:
        database.check()


def test_the_command_prints_what_the_database_says_against_a_migration(empty_url: URL) -> None:
    execute(empty_url, "CREATE VIEW sse_queue_overview AS SELECT 1 AS one")
    printed = alembic("upgrade", "head", fails=True, ERIC_SSE_SQL_URL=address(empty_url))
    assert "The database refused the migration" in printed and "sse_queue_overview" in printed
    assert tables(empty_url) == set()


def test_the_configuration_runs_every_command_of_alembic_without_a_checkout(
    empty_url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command.upgrade(migrations.config(address(empty_url)), "head")
    assert tables(empty_url) == OURS
    monkeypatch.setenv("ERIC_SSE_SQL_URL", address(empty_url))
    command.downgrade(migrations.config(), "base")
    assert tables(empty_url) == {VERSION_TABLE}


def test_the_configuration_takes_a_schema(new_postgres: Callable[[], URL]) -> None:
    url = new_postgres()
    command.upgrade(migrations.config(url, schema=ODD_SCHEMA), "head")
    assert tables_by_schema(url) == {ODD_SCHEMA: OURS}


def test_offline_sql_can_be_for_a_schema(new_postgres: Callable[[], URL]) -> None:
    url = new_postgres()
    schema = ODD_SCHEMA.replace("%", "")  # Alembic doubles % in what it prints
    run_script(url, alembic("-x", f"schema={schema}", "upgrade", "head", "--sql", ERIC_SSE_SQL_URL=address(url)))
    with Database(url, schema=schema) as database:
        database.check()
    assert tables(url) == set()


def test_sql_for_postgres_needs_no_server_and_no_driver_in_the_url() -> None:
    printed = alembic("-x", "url=postgresql://somebody:secret@nowhere/app", "upgrade", "head", "--sql")
    assert "secret" not in printed
    assert printed.index("pg_advisory_xact_lock") < printed.index("CREATE TABLE")


@pytest.mark.parametrize("arguments", [("current",), ("upgrade", "head", "--sql")])
def test_without_a_url_the_command_says_how_to_give_one(arguments: tuple[str, ...]) -> None:
    assert "Set ERIC_SSE_SQL_URL, or give -x url=... before the command" in alembic(*arguments, fails=True)


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("postgresql://somebody:s%40cret@127.0.0.1:1/app", "the server can't be reached"),
        ("postgresql:somebody:s%40cret@127.0.0.1/app", "The URL can't be read"),
        ("postgresql+pg8000://somebody:s%40cret@127.0.0.1/app", "postgresql+pg8000 is not supported"),
    ],
)
def test_a_url_that_leads_nowhere_is_an_error_without_the_password(url: str, advice: str) -> None:
    printed = alembic("upgrade", "head", fails=True, ERIC_SSE_SQL_URL=url)
    assert advice in printed
    assert "cret" not in printed


def test_a_password_may_hold_any_character_and_is_never_printed(limited_role: URL) -> None:
    assert "%25" in address(limited_role) and "%40" in address(limited_role)
    execute(limited_role, "CREATE SCHEMA sse")
    for arguments in (("upgrade", "head"), ("current", "--verbose"), ("check",), ("upgrade", "head", "--sql")):
        assert "cent" not in alembic("-x", f"url={address(limited_role)}", "-x", "schema=sse", *arguments)
    wrong = limited_role.set(database="there_is_none")
    assert "cent" not in alembic("upgrade", "head", fails=True, ERIC_SSE_SQL_URL=address(wrong))


def test_looking_changes_nothing(new_postgres: Callable[[], URL]) -> None:
    url = new_postgres()
    assert alembic("-x", "schema=sse", "current", ERIC_SSE_SQL_URL=address(url)).strip() == ""
    assert "not up to date" in alembic("-x", "schema=sse", "check", fails=True, ERIC_SSE_SQL_URL=address(url))
    with psycopg.connect(address(url.set(drivername="postgresql"))) as connection:
        assert connection.execute("SELECT to_regnamespace('sse')").fetchone() == (None,)


# What they make


def test_the_migrations_make_what_the_models_say(empty_url: URL) -> None:
    made = catalog(upgraded(empty_url))
    assert "No new upgrade operations detected" in alembic("check", ERIC_SSE_SQL_URL=address(empty_url))
    alembic("downgrade", "base", ERIC_SSE_SQL_URL=address(empty_url))
    assert catalog(empty_url)["views"] == set()

    with connected(empty_url) as connection:
        Base.metadata.create_all(connection)
    autovacuum = {row for row in made["storage"] if "autovacuum" in row[1]}
    only_migrated = {"views": made["views"], "functions": made["functions"], "storage": autovacuum}
    modelled = without(VERSION_TABLE, catalog(empty_url))
    for what, rows in without(VERSION_TABLE, made).items():
        assert rows - only_migrated.get(what, set()) == modelled[what]


def test_on_postgres_keys_are_ordered_by_bytes_and_messages_are_vacuumed_as_a_queue(
    migrated_postgres: URL,
) -> None:
    found = catalog(migrated_postgres)
    columns = {(table, name): rest for table, name, *rest in found["columns"] if table in TABLE_NAMES}
    numbers = {("sse_messages", "id"), ("sse_set_aside_messages", "id")}
    ids = {(table, name) for table, name in columns if name.endswith(("id", "key"))} - numbers
    assert len(ids) == 17
    assert {at for at, (kind, collation, *_) in columns.items() if (kind, collation) == ("text", "C")} == ids
    assert columns["sse_messages", "id"] == ["bigint", None, "NO", None, "BY DEFAULT"]
    assert {at for at, (_, _, nullable, *_) in columns.items() if nullable == "YES"} == {
        *(("sse_connections", column) for column in ("channel_id", "start_position", "position")),
        *(("sse_connections", column) for column in ("cleared_at", "seen_at")),
        ("sse_events", "listener_id"),
        ("sse_messages", "leased_until"),
    }


def test_on_sqlite_keys_are_ordered_by_bytes_and_no_message_id_comes_twice(tmp_path: Path) -> None:
    found = catalog(upgraded(URL.create("sqlite", database=str(tmp_path / "a.db"))))
    assert {collation for *_, collation in found["indexes"]} == {"BINARY"}
    assert {table for table, sql in found["storage"] if "AUTOINCREMENT" in sql} == {"sse_messages"}
    assert found["foreign keys"] == {
        ("sse_channels", "entry_key", "kv_entries", "key", "CASCADE"),
        ("sse_connections", "channel_id", "sse_channels", "id", "CASCADE"),
        ("sse_connections", "listener_key", "kv_entries", "key", "CASCADE"),
        ("sse_connections", "queue_key", "kv_entries", "key", "CASCADE"),
    }
    indexed = {(table, column) for table, _, _, origin, _, column, _ in found["indexes"] if origin == "c"}
    assert indexed == {
        *(("sse_connections", column) for column in ("channel_id", "listener_id")),
        *(("sse_connections", column) for column in ("listener_key", "queue_id", "queue_key")),
        *(("sse_events", column) for column in ("channel_id", "listener_id", "position")),
        *(("sse_messages", column) for column in ("queue_id", "id")),
        ("sse_message_ids", "created_at"),
        ("sse_set_aside_messages", "queue_id"),
    }
    times = {(table, name): rest for table, name, *rest in found["columns"] if name.endswith("_at")}
    without_default = {
        *(("sse_connections", column) for column in ("cleared_at", "seen_at")),
        ("sse_event_logs", "last_event_at"),
        ("sse_set_aside_messages", "created_at"),
    }
    assert {at for at, rest in times.items() if rest != ["DATETIME", 1, "CURRENT_TIMESTAMP", 0]} == without_default
    assert len(times) == 14


def fill(url: URL) -> None:
    """A channel with two connections, one of which has two messages; and a queue without a connection, with one."""
    with connected(url) as connection, Session(connection) as session:
        session.add_all(KvEntry(key=key, value=b"v", value_type="t") for key in ("channel", "l1", "l2", "q1", "q2"))
        session.flush()
        session.add(ChannelRow(id="c", entry_key="channel", channel_type="some.Channel"))
        session.flush()
        for n in ("1", "2"):
            listener, queue = f"l{n}", f"q{n}"
            session.add(
                ConnectionRow(
                    id=n, channel_id="c", listener_id=n, listener_key=listener, queue_id=queue, queue_key=queue
                )
            )
        session.add_all(MessageRow(queue_id=queue, message_type="t", message=b"m") for queue in ("q1", "q1", "q3"))
        session.add(MessageIdRow(owner_id="q1", message_id="m", listener_id="", recipient="queue"))
        session.commit()


def test_up_down_and_up_again_with_data_in_the_tables(empty_url: URL) -> None:
    made = catalog(upgraded(empty_url))
    fill(empty_url)
    alembic("downgrade", "base", ERIC_SSE_SQL_URL=address(empty_url))
    assert without(VERSION_TABLE, catalog(empty_url)) == NOTHING
    assert catalog(upgraded(empty_url)) == made
    with Database(empty_url) as database:
        assert list(SqlStorageEngine(database).fetch_all()) == []
    fill(empty_url)


def test_views_show_people_what_waits(shared_url: URL) -> None:
    fill(shared_url)
    with connected(shared_url) as connection:
        channels = connection.execute(text("SELECT * FROM sse_channel_overview")).mappings().all()
        queues = connection.execute(text("SELECT * FROM sse_queue_overview ORDER BY queue_id")).mappings().all()
    (channel,) = channels
    assert (channel["channel_id"], channel["channel_type"]) == ("c", "some.Channel")
    assert (channel["connections"], channel["pending_messages"]) == (2, 2)
    assert [(row["queue_id"], row["depth"]) for row in queues] == [("q1", 2), ("q2", 0), ("q3", 1)]
    ages = [row["oldest_message_age_seconds"] for row in queues]
    assert 0 <= ages[0] <= 60 and ages[1] is None and 0 <= ages[2] <= 60
    assert queues[1]["oldest_message_at"] is None


CHANGES = (
    "UPDATE sse_connections SET seen_at = CURRENT_TIMESTAMP WHERE id = '1'",
    "UPDATE sse_connections SET seen_at = '2000-01-01 00:00:00', start_position = 2, position = 4 WHERE id = '2'",
    "INSERT INTO sse_event_logs VALUES ('c', 'epoch', 9, 1, CURRENT_TIMESTAMP, 60)",
    "UPDATE sse_messages SET delivery_count = 3 WHERE queue_id = 'q1'",
    "INSERT INTO sse_set_aside_messages SELECT id, 'gone', message_type, message, created_at, 1, 'damaged', "
    "CURRENT_TIMESTAMP FROM sse_messages WHERE queue_id = 'q3'",
)


def test_views_show_people_who_is_connected_and_what_is_stuck(shared_url: URL) -> None:
    fill(shared_url)
    execute(shared_url, *CHANGES)
    with connected(shared_url) as connection:
        found = connection.execute(text("SELECT * FROM sse_connection_overview ORDER BY connection_id"))
        streaming, unseen = found.mappings().all()
        query = "SELECT queue_id, depth, most_deliveries, set_aside FROM sse_queue_overview ORDER BY queue_id"
        queues = [tuple(row) for row in connection.execute(text(query))]
    assert (streaming["channel_id"], streaming["listener_id"], streaming["queue_id"]) == ("c", "1", "q1")
    assert (bool(streaming["is_streaming"]), bool(unseen["is_streaming"])) == (True, False)
    assert 0 <= streaming["unseen_seconds"] <= 60 and unseen["unseen_seconds"] > 800_000_000
    assert (streaming["pending_messages"], streaming["pending_events"]) == (2, 9)
    assert (unseen["pending_messages"], unseen["pending_events"]) == (0, 5)
    assert queues == [("gone", 0, 0, 1), ("q1", 2, 3, 0), ("q2", 0, 0, 0), ("q3", 1, 0, 0)]


# From the program


def test_upgrading_again_changes_nothing(empty_url: URL) -> None:
    before = catalog(upgraded(empty_url))
    fill(empty_url)
    assert catalog(upgraded(empty_url)) == before
    with connected(empty_url) as connection:
        assert connection.scalars(text("SELECT queue_id FROM sse_messages ORDER BY id")).all() == ["q1", "q1", "q3"]
        assert connection.scalars(text(f"SELECT version_num FROM {VERSION_TABLE}")).all() == [HEAD]
    assert "alembic_version" not in tables(empty_url)


def test_every_revision_is_of_the_labelled_branch_and_named_after_it(empty_url: URL) -> None:
    scripts = ScriptDirectory.from_config(migrations.config())
    for script in scripts.walk_revisions():
        assert script.branch_labels == {"eric_sse_sql"}
        assert script.revision.startswith(migrations.REVISION_PREFIX) and len(script.revision) <= 32
        assert Path(script.path).name.startswith(script.revision)
    with Database(empty_url) as database:
        database.upgrade("eric_sse_sql@head")
        database.check()


def test_tables_go_into_a_schema_that_is_made_where_it_is_missing(new_postgres: Callable[[], URL]) -> None:
    url = new_postgres()
    engine = create_engine(url, pool_size=1, max_overflow=0)
    database = Database(engine, schema=ODD_SCHEMA)
    with pytest.raises(RepositoryError, match="missing"):
        database.check()
    for _ in range(2):
        database.upgrade()
        database.check()
    with engine.connect() as connection:  # the same that was used
        assert catalog_on(connection) == NOTHING
        assert connection.scalar(text("SHOW search_path")) == '"$user", public'
        connection.execute(text("SELECT set_config('search_path', quote_ident(:schema), true)"), {"schema": ODD_SCHEMA})
        inside = catalog_on(connection)
    engine.dispose()
    assert {row[0] for row in inside["columns"]} == OURS
    with Database(url) as public:  # the tables of two schemas know nothing of each other
        with pytest.raises(RepositoryError, match="missing"):
            public.check()
        public.upgrade()
        public.check()
    assert {kind: len(rows) for kind, rows in catalog(url).items()} == {
        kind: len(rows) for kind, rows in inside.items()
    }
    assert alembic("-x", f"schema={ODD_SCHEMA}", "check", ERIC_SSE_SQL_URL=address(url))


@pytest.fixture
def owner_url(new_postgres: Callable[[], URL]) -> URL:
    """A new database of Postgres, as its owner sees it."""
    return new_postgres()


@pytest.fixture
def limited_role(owner_url: URL, new_role: Callable[[URL], URL]) -> URL:
    """The same database as another role sees it, which may make schemas and nothing else."""
    role = new_role(owner_url)
    execute(owner_url, f"GRANT CREATE ON DATABASE {role.database} TO {role.username}")
    return role


def test_a_schema_that_is_there_needs_no_right_to_make_one(limited_role: URL, owner_url: URL) -> None:
    execute(limited_role, "CREATE SCHEMA sse")
    execute(owner_url, f"REVOKE CREATE ON DATABASE {limited_role.database} FROM {limited_role.username}")
    with Database(limited_role, schema="sse") as database:
        database.upgrade()
        database.check()


@pytest.fixture(params=["made here", "default", "serializable", "begin recipe"])
def any_database(request: pytest.FixtureRequest, empty_url: URL) -> Iterator[Database]:
    """A database without tables, on an engine made here or on one as applications have them."""
    if request.param == "made here":
        with Database(empty_url) as database:
            yield database
        return
    options = {"isolation_level": "SERIALIZABLE"} if request.param == "serializable" else {}
    engine = create_engine(empty_url, pool_size=1, max_overflow=0, **options)
    if request.param == "begin recipe" and engine.dialect.name == "sqlite":
        # https://docs.sqlalchemy.org/en/20/dialects/sqlite.html#sqlite-transactions
        event.listen(engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    with Database(engine) as made:
        yield made
    engine.dispose()


def settings(engine: Engine) -> list[Any]:
    """What a connection of the pool is like."""
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            names = ("foreign_keys", "synchronous", "busy_timeout")
            return [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]
        names = ("search_path", "transaction_isolation")
        return [connection.exec_driver_sql(f"SHOW {name}").scalar() for name in names]


def test_an_upgrade_leaves_a_connection_as_it_was(any_database: Database) -> None:
    before = settings(any_database.engine)
    any_database.upgrade()
    any_database.check()
    assert settings(any_database.engine) == before
    assert connections_in_use(any_database) == 0
    assert tables(any_database.engine.url) == OURS


def test_an_upgrade_that_fails_leaves_everything_as_it_was(any_database: Database) -> None:
    url = any_database.engine.url
    execute(url, "CREATE VIEW sse_queue_overview AS SELECT 1 AS one")  # the last thing that the first revision makes
    before, settings_before = catalog(url), settings(any_database.engine)
    with pytest.raises(RepositoryError, match=r"the tables can't be upgraded.*exists already; the attached") as caught:
        any_database.upgrade()
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError | psycopg.errors.DuplicateTable)
    assert catalog(url) == before
    assert settings(any_database.engine) == settings_before
    execute(url, "DROP VIEW sse_queue_overview")
    any_database.upgrade()
    any_database.check()


def test_an_unknown_revision_is_an_error_with_its_cause(empty_url: URL) -> None:
    with Database(empty_url) as database:
        with pytest.raises(RepositoryError, match="CommandError") as caught:
            database.upgrade("no_such_revision")
        assert "no_such_revision" in str(caught.value.__cause__)
    assert catalog(empty_url) == NOTHING


def test_an_upgrade_minds_neither_logging_nor_folder_nor_environment(
    empty_url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def logging_now() -> list[Any]:
        known = [logging.getLogger(), *map(logging.getLogger, ("alembic", "sqlalchemy.engine", "an.application"))]
        return [(logger.level, logger.disabled, logger.propagate, list(logger.handlers)) for logger in known]

    folder = tmp_path / "100% of a folder"
    folder.mkdir()
    (folder / "alembic.ini").write_text("[alembic]\nscript_location = elsewhere\n")
    (folder / "pyproject.toml").write_text('[tool.alembic]\nscript_location = "elsewhere"\n')
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ERIC_SSE_SQL_URL", "sqlite:///elsewhere.db")
    before = logging_now()
    upgraded(empty_url)
    assert logging_now() == before
    assert tables(empty_url) == OURS
    assert sorted(path.name for path in folder.iterdir()) == ["alembic.ini", "pyproject.toml"]
    assert capfd.readouterr() == ("", "")


# The check


def test_a_check_of_tables_of_this_release_is_content(database: Database) -> None:
    assert database.check() is None


def test_a_check_of_missing_tables_says_how_to_make_them(empty_url: URL) -> None:
    with Database(empty_url) as database:
        with pytest.raises(RepositoryError, match=r"missing \(kv_entries.*call Database.upgrade\(\), or run `eric"):
            database.check()
        assert tables(empty_url) == set()


def test_a_check_of_older_tables_says_how_to_upgrade_them(empty_url: URL) -> None:
    upgraded(empty_url, OLDER)
    with Database(empty_url) as database:
        with pytest.raises(RepositoryError, match=rf"{OLDER}, older than this package; call Database.upgrade\(\)"):
            database.check()
        database.upgrade()
        database.check()


def test_a_new_revision_is_made_by_the_command_and_its_tables_are_left_to_newer_packages(
    empty_url: URL, tmp_path: Path
) -> None:
    shutil.copytree(REPOSITORY / "migrations", tmp_path / "migrations")
    shutil.copy(REPOSITORY / "alembic.ini", tmp_path)
    alembic("revision", "--rev-id", "eric_sse_sql_8888", "--message", "Later tables", folder=tmp_path)
    assert (tmp_path / "migrations" / "versions" / "eric_sse_sql_8888_later_tables.py").exists()
    alembic("upgrade", "head", folder=tmp_path, ERIC_SSE_SQL_URL=address(empty_url))
    with Database(empty_url) as database:
        for call in (database.check, database.upgrade):
            with pytest.raises(RepositoryError, match="eric_sse_sql_8888, newer than this package; run `pip install"):
                call()


@pytest.mark.parametrize("lost", [f"DELETE FROM {VERSION_TABLE}", f"DROP TABLE {VERSION_TABLE}"])
def test_tables_without_a_version_are_an_error_that_says_how_to_stamp_them(empty_url: URL, lost: str) -> None:
    upgraded(empty_url)
    execute(empty_url, lost)
    with Database(empty_url) as database:
        for call in (database.check, database.upgrade):
            with pytest.raises(RepositoryError, match=r"but not their version.*`alembic stamp head`"):
                call()
        command.stamp(migrations.config(empty_url), "head")
        database.check()


def test_tables_left_over_or_of_others_are_an_error_and_are_left_alone(empty_url: URL) -> None:
    execute(empty_url, "CREATE TABLE sse_messages (other INTEGER)", "CREATE TABLE kv_entries (other INTEGER)")
    before = catalog(empty_url)
    with Database(empty_url) as database:
        for call in (database.check, database.upgrade):
            with pytest.raises(RepositoryError, match=r"are there \(kv_entries, sse_messages\).*left over, drop them"):
                call()
        assert catalog(empty_url) == before
        execute(empty_url, "DROP TABLE sse_messages", "DROP TABLE kv_entries")
        database.upgrade()


def test_a_table_that_was_dropped_is_an_error_that_names_it(empty_url: URL) -> None:
    upgraded(empty_url)
    views = ("sse_channel_overview", "sse_connection_overview", "sse_queue_overview", "sse_message_payloads")
    execute(empty_url, *(f"DROP VIEW {view}" for view in views), "DROP TABLE sse_messages")
    with Database(empty_url) as database:
        for call in (database.check, database.upgrade):
            with pytest.raises(RepositoryError, match=r"dropped \(sse_messages\)"):
                call()


@pytest.mark.parametrize("before", ["base", OLDER])
def test_a_check_sees_an_upgrade_as_a_whole_that_is_committed_meanwhile(empty_url: URL, before: str) -> None:
    if before != "base":
        upgraded(empty_url, before)
    engine = create_engine(empty_url)

    @event.listens_for(engine, "after_cursor_execute", once=True)
    def upgrade_after_the_first_statement(*_: object) -> None:
        upgraded(empty_url)

    Database(engine).check()
    engine.dispose()


# Where the tables are, on Postgres


@pytest.fixture
def with_own_schema(new_postgres: Callable[[], URL]) -> URL:
    """Older tables in public, as a role sees them that has got a schema of its own name since."""
    url = upgraded(new_postgres(), OLDER)
    execute(url, f"CREATE SCHEMA {url.username}")
    with connected(url) as connection:
        assert connection.scalar(text("SELECT current_schema()")) == url.username
    return url


@pytest.mark.parametrize("way", ["program", "command", "script"])
def test_new_tables_go_where_the_others_are(with_own_schema: URL, way: str) -> None:
    url = with_own_schema

    def run(*arguments: str) -> str:
        return alembic(*arguments, ERIC_SSE_SQL_URL=address(url))

    if way == "program":
        upgraded(url)
    elif way == "command":
        run("upgrade", "head")
    else:
        run_script(url, run("upgrade", f"{OLDER}:head", "--sql"))
    assert tables_by_schema(url) == {"public": OURS}
    with Database(url) as database:
        database.check()
    assert "No new upgrade operations detected" in run("check")
    assert run("current").strip() == f"{HEAD} (head)"

    if way == "script":
        run_script(url, run("downgrade", f"{HEAD}:eric_sse_sql_0001", "--sql"))
        run_script(url, run("upgrade", f"eric_sse_sql_0001:{OLDER}", "--sql"))
    else:
        command.downgrade(migrations.config(url), "base")
        assert tables_by_schema(url) == {"public": {VERSION_TABLE}}
        upgraded(url)  # where the version table is
        assert tables_by_schema(url) == {"public": OURS}


def test_tables_of_the_role_are_reached_before_those_in_public(with_own_schema: URL) -> None:
    url = with_own_schema
    with Database(url, schema=url.username) as database:
        database.upgrade()
    with Database(url) as database:
        database.check()
    with Database(url, schema="public") as database, pytest.raises(RepositoryError, match="older"):
        database.check()
    upgraded(url, "head")
    assert tables_by_schema(url)["public"] - {VERSION_TABLE} == OLDER_TABLES


def test_tables_in_several_schemas_of_the_search_path_are_an_error_that_says_what_to_do(with_own_schema: URL) -> None:
    url = upgraded(with_own_schema)
    execute(url, f"ALTER TABLE sse_event_logs SET SCHEMA {url.username}")
    with Database(url) as database:
        for call in (database.check, database.upgrade):
            with pytest.raises(RepositoryError, match=rf"{url.username} has sse_event_logs; public has kv_"):
                call()
        execute(url, f"ALTER TABLE {url.username}.sse_event_logs SET SCHEMA public")
        database.check()


def test_a_search_path_that_leads_nowhere_is_an_error_that_says_what_to_do(new_postgres: Callable[[], URL]) -> None:
    url = new_postgres()
    nowhere = url.update_query_dict({"options": "-csearch_path="})
    with Database(nowhere) as database:
        for call in (database.check, database.upgrade):
            with pytest.raises(RepositoryError, match=r"leads to no schema.*pass schema=, or set the search path"):
                call()
    with Database(nowhere, schema="public") as database:
        database.upgrade()
        database.check()
    assert tables_by_schema(url) == {"public": OURS}


@pytest.mark.parametrize("option", [(), ("--sql",)])
def test_the_command_refuses_what_can_be_no_schema(migrated_postgres: URL, tmp_path: Path, option: tuple[str]) -> None:
    for schema, url, advice in (
        ("", address(migrated_postgres), "must be 1 to 63 bytes"),
        ("sse", f"sqlite:///{tmp_path / 'a.db'}", "a SQLite file has one"),
    ):
        printed = alembic("-x", f"schema={schema}", "upgrade", "head", *option, fails=True, ERIC_SSE_SQL_URL=url)
        assert advice in printed


@pytest.mark.parametrize("schema", ["S" * 63, "MixedCase", "select"])
def test_a_schema_may_have_any_name(new_postgres: Callable[[], URL], schema: str) -> None:
    url = new_postgres()
    with Database(url, schema=schema) as database:
        database.upgrade()
        database.check()
        SqlStorageEngine(database).upsert("key", "value")
    assert tables_by_schema(url) == {schema: OURS}


def test_a_missing_schema_that_the_role_may_not_make_is_an_error_that_says_what_to_run(
    limited_role: URL, owner_url: URL
) -> None:
    execute(owner_url, f"REVOKE CREATE ON DATABASE {owner_url.database} FROM {limited_role.username}")
    with Database(limited_role, schema=ODD_SCHEMA) as database:
        with pytest.raises(RepositoryError, match=r"schema is missing.*let the owner of the database run") as caught:
            database.upgrade()
        assert isinstance(caught.value.__cause__, psycopg.errors.InsufficientPrivilege)
        (create,) = re.findall("CREATE SCHEMA .* AUTHORIZATION", str(caught.value))
        execute(owner_url, f"{create} {limited_role.username}".replace("%", "%%"))
        database.upgrade()
        database.check()


def test_tables_of_another_role_are_an_error_that_names_their_schema(limited_role: URL, owner_url: URL) -> None:
    upgraded(owner_url, OLDER)
    execute(owner_url, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {limited_role.username}")
    before = catalog(owner_url)
    with Database(limited_role) as database:
        with pytest.raises(RepositoryError, match=r"may not make tables in schema 'public'.*role that owns") as caught:
            database.upgrade()
        assert isinstance(caught.value.__cause__, psycopg.errors.InsufficientPrivilege)
    printed = alembic("upgrade", "head", fails=True, ERIC_SSE_SQL_URL=address(limited_role))
    assert "may not make tables in schema 'public'" in printed and "cent" not in printed
    assert catalog(owner_url) == before


# At once


def take_part(barrier: Any) -> None:
    global start
    start = barrier


def upgrade_at_once(url: str) -> None:
    start.wait(60)
    with Database(url) as database:
        database.upgrade()
        database.check()


@pytest.fixture(scope="module")
def six_processes() -> Iterator[ProcessPoolExecutor]:
    context = fork_server()
    with ProcessPoolExecutor(6, context, take_part, (context.Barrier(6),)) as pool:
        yield pool


@pytest.mark.parametrize("turn", [1, 2, 3])
def test_six_processes_upgrade_an_empty_database_at_once(
    empty_url: URL, turn: int, six_processes: ProcessPoolExecutor
) -> None:
    assert list(six_processes.map(upgrade_at_once, [address(empty_url)] * 6)) == [None] * 6
    assert tables(empty_url) == OURS


def test_threads_upgrade_databases_at_once(tmp_path: Path, migrated_postgres: URL) -> None:
    """Alembic keeps its context in a global; it is never another thread's."""
    urls: list[Any] = [f"sqlite:///{tmp_path / f'{n}.db'}" for n in (1, 1, 2, 3)]
    databases = [*map(Database, urls), *(Database(migrated_postgres, schema=f"thread_{n}") for n in (1, 1, 2))]
    barrier, errors = threading.Barrier(len(databases)), []

    def work(database: Database) -> None:
        try:
            barrier.wait(60)
            database.upgrade()
            database.check()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(database,)) for database in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for database in databases:
        database.close()
    execute(migrated_postgres, "DROP SCHEMA thread_1 CASCADE", "DROP SCHEMA thread_2 CASCADE")
    assert errors == []
