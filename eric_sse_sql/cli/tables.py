"""``upgrade`` and ``check``."""

from __future__ import annotations

import argparse

from alembic import command

from eric_sse_sql.cli.database import open_database


def upgrade(arguments: argparse.Namespace) -> int:
    """Make or migrate the tables, or print the SQL that does so."""
    from eric_sse_sql import migrations  # type: ignore[attr-defined]  # package-dir puts it there

    with open_database(arguments, check=False) as database:
        if arguments.sql:  # without a connection
            command.upgrade(migrations.config(arguments.url, schema=arguments.schema), arguments.revision, sql=True)
            return 0
        database.upgrade(arguments.revision)
    revision = migrations.newest_revision() if arguments.revision == "head" else arguments.revision
    print(f"the tables are at {revision}")
    return 0


def check(arguments: argparse.Namespace) -> int:
    """Print a line, if the database can be reached and its tables are those of this release."""
    from eric_sse_sql import migrations  # type: ignore[attr-defined]  # package-dir puts it there

    with open_database(arguments):
        print(f"the tables are at {migrations.newest_revision()}, as this release needs them")
    return 0
