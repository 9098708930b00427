"""The Alembic migrations, and what ``Database`` does with them. Installed as ``eric_sse_sql.migrations``."""

from __future__ import annotations

import threading
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from eric_sse.exception import RepositoryError
from sqlalchemy import Connection, String, column, inspect, select, table

from eric_sse_sql.models import TABLE_NAMES

VERSION_TABLE = "eric_sse_sql_version"  # never alembic_version: the application may use Alembic too
HOST_VERSION_TABLE = "alembic_version"  # where an application that lists VERSIONS keeps both histories
VERSIONS = str(Path(__file__).parent / "versions")  # for the version_locations of an application
OWN_TABLES = TABLE_NAMES | {VERSION_TABLE}
REVISION_PREFIX = "eric_sse_sql_"  # of every revision, to tell ours from those of the application

UPGRADE = "call Database.upgrade(), or run `alembic upgrade head` where these migrations are configured"

_in_turn = threading.Lock()  # Alembic's own context and op are one for all threads


def include_name(name: str | None, type_: str, parent_names: object) -> bool:
    """For the ``include_name`` of an application's ``env.py``: leaves the tables of this package alone."""
    return type_ != "table" or name not in OWN_TABLES


def upgrade(connection: Connection, revision: str, schema: str | None) -> None:
    """Upgrade in the transaction of the connection, which its owner commits."""
    scripts = ScriptDirectory.from_config(_config())
    keeper, found = _found(connection, schema)
    _refuse_newer(found, scripts)
    if keeper == HOST_VERSION_TABLE:
        if found != set(scripts.get_heads()):
            raise RepositoryError(
                f"the tables of eric_sse_sql are at revision {_listed(found)}, older than this package, and the "
                "application's own Alembic history keeps them; run its `alembic upgrade heads`"
            )
        return
    config = _config()
    config.attributes.update(connection=connection, schema=schema)
    with _in_turn:
        command.upgrade(config, revision)


def check(connection: Connection, schema: str | None) -> None:
    """Do nothing, if the tables are at the newest revision.

    :raises RepositoryError: when they are not; it says what to do
    """
    scripts = ScriptDirectory.from_config(_config())
    keeper, found = _found(connection, schema)
    _refuse_newer(found, scripts)
    missing = sorted(TABLE_NAMES - set(inspect(connection).get_table_names(schema=schema)))
    if not found and missing:
        raise RepositoryError(f"the tables of eric_sse_sql are missing ({', '.join(missing)}); {UPGRADE}")
    if not found:
        raise RepositoryError(
            "the tables of eric_sse_sql are there, but not their version; if they are those of this release, run "
            "`alembic stamp head` where these migrations are configured"
        )
    if found != set(scripts.get_heads()):
        raise RepositoryError(
            f"the tables of eric_sse_sql are at revision {_listed(found)}, older than this package; {UPGRADE}"
        )
    if missing:
        raise RepositoryError(
            f"tables of eric_sse_sql were dropped ({', '.join(missing)}), though {keeper} says that they are there; "
            "restore them from a backup"
        )


def _found(connection: Connection, schema: str | None) -> tuple[str, set[str]]:
    """The version table that knows our tables, and their revision; none, where they are not made yet."""
    tables = inspect(connection).get_table_names(schema=schema)
    for name in (VERSION_TABLE, HOST_VERSION_TABLE):
        if name in tables:
            versions = connection.scalars(select(column("version_num", String)).select_from(table(name, schema=schema)))
            found = {version for version in versions if version.startswith(REVISION_PREFIX)}
            if found:
                return name, found
    return VERSION_TABLE, set()


def _refuse_newer(found: set[str], scripts: ScriptDirectory) -> None:
    if found - {script.revision for script in scripts.walk_revisions()}:
        raise RepositoryError(
            f"the tables of eric_sse_sql are at revision {_listed(found)}, newer than this package; "
            "run `pip install --upgrade eric_sse_sql`"
        )


def _listed(revisions: set[str]) -> str:
    return ", ".join(sorted(revisions))


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config
