"""The contents of a database as its own catalog shows them, its connections, and the ``alembic`` command."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from alembic import config
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, QueuePool, create_engine, text

from eric_sse_sql import Database, migrations
from eric_sse_sql.models import TABLE_NAMES
from support.processes import forked_process

HEAD = ScriptDirectory.from_config(migrations.config()).get_current_head()
REPOSITORY = Path(__file__).parent.parent.parent
ALEMBIC = shutil.which("alembic", path=Path(sys.executable).parent)

SQLITE = {
    "columns": """
        SELECT m.name, c.name, c.type, c."notnull", c.dflt_value, c.pk
        FROM sqlite_master AS m JOIN pragma_table_info(m.name) AS c WHERE m.type = 'table'
    """,
    "foreign keys": """
        SELECT m.name, f."from", f."table", f."to", f.on_delete
        FROM sqlite_master AS m JOIN pragma_foreign_key_list(m.name) AS f WHERE m.type = 'table'
    """,
    "indexes": """
        SELECT m.name, i.name, i."unique", i.origin, c.seqno, c.name, c.coll
        FROM sqlite_master AS m JOIN pragma_index_list(m.name) AS i JOIN pragma_index_xinfo(i.name) AS c
        WHERE m.type = 'table' AND c.key
    """,
    "views": "SELECT name, sql FROM sqlite_master WHERE type = 'view'",
    "functions": "SELECT name FROM sqlite_master WHERE false",
    "storage": "SELECT name, sql FROM sqlite_master WHERE type = 'table'",  # names of constraints, AUTOINCREMENT
}
POSTGRES = {
    "columns": """
        SELECT table_name, column_name, data_type, collation_name, is_nullable, column_default, identity_generation
        FROM information_schema.columns NATURAL JOIN information_schema.tables
        WHERE table_schema = current_schema() AND table_type = 'BASE TABLE'
    """,
    "foreign keys": """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = quote_ident(current_schema())::regnamespace AND contype = 'f'
    """,
    "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = current_schema()",
    "views": "SELECT viewname, definition FROM pg_views WHERE schemaname = current_schema()",
    "functions": """
        SELECT proname, pg_get_functiondef(oid) FROM pg_proc
        WHERE pronamespace = quote_ident(current_schema())::regnamespace
    """,
    "storage": """
        SELECT relname, unnest(reloptions) FROM pg_class
        WHERE relnamespace = quote_ident(current_schema())::regnamespace AND relkind = 'r'
    """,
}
RARE_TABLES = {"sse_events", "sse_event_logs", "sse_message_ids", "sse_set_aside_messages"}
Catalog = dict[str, set[tuple[Any, ...]]]


@contextmanager
def connected(url: URL) -> Iterator[Connection]:
    """A connection in a transaction, without any part of this package."""
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


def catalog(url: URL) -> Catalog:
    """All columns, foreign keys, indexes, views and functions of a database, and how its tables are stored."""
    with connected(url) as connection:
        return catalog_on(connection)


def catalog_on(connection: Connection) -> Catalog:
    """The same, of the connection's current schema."""
    queries = SQLITE if connection.dialect.name == "sqlite" else POSTGRES
    found = {what: {tuple(row) for row in connection.exec_driver_sql(query)} for what, query in queries.items()}
    return {
        what: {tuple(map(_one_line, row)) for row in rows if not row[0].startswith("sqlite_")}
        for what, rows in found.items()
    }


def tables(url: URL) -> set[str]:
    """The tables of a database."""
    return {row[0] for row in catalog(url)["columns"]}


def without(version_table: str, what: Catalog) -> Catalog:
    """The same, but for a version table."""
    return {kind: {row for row in rows if row[0] != version_table} for kind, rows in what.items()}


def alembic_executable(*arguments: str, **environment: str) -> str:
    """What the executable prints. It warns of nothing, and does not fail."""
    assert ALEMBIC, "alembic is not installed beside this Python"
    variables = {**_clean_environment(environment), "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [ALEMBIC, *arguments], cwd=REPOSITORY, env=variables, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def alembic(*arguments: str, folder: Path = REPOSITORY, fails: bool = False, **environment: str) -> str:
    """What the command prints. It warns of nothing, and fails where it is expected to, without a traceback.

    It runs in a forked process, where Alembic and SQLAlchemy are imported: the executable takes half a second longer.
    """
    with tempfile.TemporaryDirectory(prefix="essql-") as output:
        work = arguments, folder, _clean_environment(environment), Path(output)
        process = forked_process(_run_alembic, work)
        process.start()
        process.join(60)
        process.kill()
        stdout, stderr = ((Path(output) / name).read_text() for name in ("stdout", "stderr"))
    assert (process.exitcode != 0) == fails, stdout + stderr
    assert "Traceback" not in stdout + stderr, stdout + stderr
    return stdout + stderr if fails else stdout


def _clean_environment(added: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("ERIC_SSE_SQL_")} | added


def _run_alembic(arguments: tuple[str, ...], folder: Path, environment: dict[str, str], output: Path) -> None:
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(output / name, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    warnings.simplefilter("error")
    config.main(argv=arguments, prog="alembic")


def connections_in_use(database: Database) -> int:
    """How many connections of the pool are in use, after the pinned ones were returned to it."""
    database.executor.release()
    return cast(QueuePool, database.engine.pool).checkedout()


def table_counts(database: Database) -> dict[str, int]:
    """How many rows each table has; the tables of logs and of messages set aside only where they have any."""
    with database.engine.connect() as connection:
        counts = {table: connection.scalar(text(f"SELECT count(*) FROM {table}")) for table in sorted(TABLE_NAMES)}
    return {table: count for table, count in counts.items() if count or table not in RARE_TABLES}


def rename_table(database: Database, name: str, new_name: str) -> None:
    """Rename a table, so that the statements on it fail until it has its name again."""
    with database.engine.begin() as connection:
        connection.execute(text(f"ALTER TABLE {name} RENAME TO {new_name}"))


def address(url: URL) -> str:
    """A URL as people write it, password included."""
    return url.render_as_string(hide_password=False)


def conninfo(url: URL) -> str:
    """A URL as psycopg takes it, for a connection without any part of this package."""
    return address(url.set(drivername="postgresql"))


def _one_line(sql: Any) -> Any:
    return re.sub(r" (?=[,)])", "", re.sub(r"\s+", " ", sql)).strip() if isinstance(sql, str) else sql
