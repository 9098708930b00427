"""The Alembic migrations, and what ``Database`` does with them. Installed as ``eric_sse_sql.migrations``."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from eric_sse.exception import RepositoryError
from sqlalchemy import Connection, inspect, text

from eric_sse_sql.models import TABLE_NAMES

VERSION_TABLE = "eric_sse_sql_version"  # never alembic_version: the application may use Alembic too
VERSIONS = str(Path(__file__).parent / "versions")  # for the version_locations of an application
OWN_TABLES = TABLE_NAMES | {VERSION_TABLE}

UPGRADE = "call Database.upgrade(), or run `alembic upgrade head` where these migrations are configured"


def include_name(name: str | None, type_: str, parent_names: object) -> bool:
    """For the ``include_name`` of an application's ``env.py``: leaves the tables of this package alone."""
    return type_ != "table" or name not in OWN_TABLES


def upgrade(connection: Connection, revision: str, schema: str | None) -> None:
    """Upgrade in the transaction of the connection, and commit it."""
    config = _config()
    config.attributes.update(connection=connection, schema=schema)
    command.upgrade(config, revision)
    connection.commit()


def check(connection: Connection, schema: str | None) -> None:
    """Do nothing, if the tables are at the newest revision.

    :raises RepositoryError: when they are not; it says what to do
    """
    scripts = ScriptDirectory.from_config(_config())
    known = {script.revision for script in scripts.walk_revisions()}
    tables = set(inspect(connection).get_table_names(schema=schema))
    found = _versions(connection, VERSION_TABLE, schema) if VERSION_TABLE in tables else set()
    if not found and "alembic_version" in tables:  # an application that lists VERSIONS keeps both histories there
        found = _versions(connection, "alembic_version", schema) & known
    missing = sorted(TABLE_NAMES - tables)
    if not found or missing:
        raise RepositoryError(f"the tables of eric_sse_sql are missing ({', '.join(missing)}); {UPGRADE}")
    if found - known:
        raise RepositoryError(
            f"the tables of eric_sse_sql are at revision {', '.join(sorted(found))}, newer than this package; "
            "run `pip install --upgrade eric_sse_sql`"
        )
    if found != set(scripts.get_heads()):
        raise RepositoryError(
            f"the tables of eric_sse_sql are at revision {', '.join(sorted(found))}, older than this package; {UPGRADE}"
        )


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


def _versions(connection: Connection, table: str, schema: str | None) -> set[str]:
    quote = connection.dialect.identifier_preparer.quote
    name = f"{quote(schema)}.{quote(table)}" if schema else quote(table)
    return set(connection.scalars(text(f"SELECT version_num FROM {name}")))
