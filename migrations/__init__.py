"""The Alembic migrations, and how ``Database`` runs and checks them. Installed as ``eric_sse_sql.migrations``."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from eric_sse.exception import RepositoryError
from eric_sse_sql.migrations.installation import (
    REVISION_PREFIX,
    VERSION_TABLE,
    Installation,
    find_installation,
    listing,
)
from sqlalchemy import URL, Connection
from sqlalchemy.exc import OperationalError, ProgrammingError

from eric_sse_sql.models import TABLE_NAMES

__all__ = [
    "ALEMBIC_INI",
    "OWN_TABLES",
    "REVISION_PREFIX",
    "VERSIONS",
    "VERSION_TABLE",
    "check",
    "config",
    "include_name",
    "newest_revision",
    "upgrade",
]

#: The path of a file for ``alembic -c``.
ALEMBIC_INI = str(Path(__file__).parent / "alembic.ini")
#: The path of the folder of the migrations, for the ``version_locations`` of an application.
VERSIONS = str(Path(__file__).parent / "versions")
OWN_TABLES = TABLE_NAMES | {VERSION_TABLE}

_UPGRADE = "call Database.upgrade(), or run `eric-sse-sql upgrade`"
_DUPLICATE = {"42P07", "42701", "42710", "42723"}  # SQLSTATEs: a relation, column, function, other object exists

_alembic_lock = threading.Lock()  # Alembic keeps its context in a global, which threads share


def config(url: str | URL | None = None, *, schema: str | None = None) -> Config:
    """A configuration with which Alembic's commands run these migrations, without an ``alembic.ini``.

    ``alembic.command.downgrade(config("sqlite:///app.db"), "base")``. Threads must not run commands at the same time.

    :param url: of the database; by default, the environment variable ``ERIC_SSE_SQL_URL`` names it
    :param schema: as ``Database`` takes it
    """
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    made.attributes.update(url=url, schema=schema)
    return made


def newest_revision() -> str:
    """The newest revision of the tables, which this release needs."""
    return str(ScriptDirectory.from_config(config()).get_current_head())


def include_name(name: str | None, type_: str, parent_names: object) -> bool:
    """For the ``include_name`` of an application's ``env.py``: leaves the tables of this package alone."""
    return type_ != "table" or name not in OWN_TABLES


def upgrade(connection: Connection, revision: str, schema: str | None) -> None:
    """Upgrade in the transaction of the connection, which the caller commits.

    :raises RepositoryError: where the tables can't be upgraded from here; it says what to do
    """
    found = find_installation(connection, schema)
    heads = _check_known(found)
    if found.is_in_host_history:
        if found.revisions != heads:
            raise RepositoryError(_older(found))
        return
    if found.tables and not found.revisions:
        raise RepositoryError(_without_version(found))
    own = config(schema=schema)
    own.attributes["connection"] = connection
    with _alembic_lock, _duplicate_advice(found):
        command.upgrade(own, revision)


def check(connection: Connection, schema: str | None) -> None:
    """Do nothing, if the tables are at the newest revision.

    :raises RepositoryError: when they are not; it says what to do
    """
    found = find_installation(connection, schema)
    heads = _check_known(found)
    if not found.revisions:
        raise RepositoryError(_without_version(found) if found.tables else _missing(found))
    if found.revisions != heads:
        raise RepositoryError(_older(found))


@contextmanager
def _duplicate_advice(found: Installation) -> Iterator[None]:
    """
    :raises RepositoryError: with its cause, where a migration makes what exists already
    """
    try:
        yield
    except (ProgrammingError, OperationalError) as error:
        sqlstate, message = getattr(error.orig, "sqlstate", None), str(error.orig)
        if sqlstate not in _DUPLICATE and "already exists" not in message and "duplicate column" not in message:
            raise
        raise RepositoryError(
            "the tables can't be upgraded: a migration makes a table, view, index or column that exists already; the "
            "attached cause names it. If it is another application's, rename it or use another schema; if "
            f"{found.version_table} is out of date, as an application's own Alembic history upgrades the tables, drop "
            "that version table"
        ) from error.orig


def _check_known(found: Installation) -> frozenset[str]:
    """The newest revision of this package.

    :raises RepositoryError: when the tables are at a revision that this package does not know, or are not those of the
        revision that their version table names
    """
    scripts = ScriptDirectory.from_config(config())
    heads = frozenset(scripts.get_heads())
    missing = TABLE_NAMES - found.tables
    if found.revisions - {script.revision for script in scripts.walk_revisions()}:
        raise RepositoryError(
            f"the tables of eric_sse_sql are at revision {listing(found.revisions)}, newer than this package; "
            "run `pip install --upgrade eric_sse_sql`"
        )
    if found.revisions and not found.tables and found.other_schemas:
        raise RepositoryError(
            f"{found.version_table} names revision {listing(found.revisions)} of eric_sse_sql, but schema "
            f"{found.schema!r} has none of its tables{_elsewhere(found)}"
        )
    if missing and (found.revisions == heads or (found.revisions and not found.tables)):
        raise RepositoryError(
            f"tables of eric_sse_sql were dropped ({listing(missing)}), though {found.version_table} says that they "
            "are there; restore them from a backup"
        )
    return heads


def _missing(found: Installation) -> str:
    return f"the tables of eric_sse_sql are missing ({listing(TABLE_NAMES)}); {_UPGRADE}{_elsewhere(found)}"


def _elsewhere(found: Installation) -> str:
    if not found.other_schemas:
        return ""
    options = " or ".join(f"schema={schema!r}" for schema in found.other_schemas)
    return f". If the tables in another schema are meant, pass {options}"


def _without_version(found: Installation) -> str:
    known = f"tables of eric_sse_sql are there ({listing(found.tables)}), but not their version"
    if found.unreadable:
        return (
            f"{known}, which may be in {', '.join(found.unreadable)}: this role may not read that; let the owner run "
            "GRANT SELECT ON it, and GRANT USAGE ON its schema, TO the role"
        )
    return (
        f"{known}. If they are those of this release, run `alembic stamp head` where these migrations are configured; "
        "if they are of an older one, name its revision instead of head; if they are left over, drop them; if they are "
        f"another application's, {'pass another schema=' if found.schema != 'main' else 'take another file'}"
    )


def _older(found: Installation) -> str:
    advice = _UPGRADE
    if found.is_in_host_history:
        advice = (
            f"the application's own Alembic history keeps them, in {found.version_table}; run its "
            "`alembic upgrade heads`"
        )
    return f"the tables of eric_sse_sql are at revision {listing(found.revisions)}, older than this package; {advice}"
