"""The databases of a run: a SQLite file, and a database on a Postgres server of the run's own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine, text

from eric_sse_sql import Database
from torture.cluster import Cluster
from torture.sizes import Sizes

SQLITE, POSTGRES = "SQLite", "Postgres"


@dataclass(frozen=True)
class Target:
    """A database with the tables of the package, and a folder for what its processes write.

    :param url: how the processes connect
    :param name: of the kind of database
    :param folder: deleted with the database
    :param cluster: the server, on Postgres
    :param database: the name of the database on the server
    """

    url: str
    name: str
    folder: Path
    cluster: Cluster | None = None
    database: str = ""

    def rows(self, sql: str) -> list[Any]:
        """The result of a query, on a connection of its own that no fault concerns."""
        with self._connected() as connection:
            return list(connection.execute(text(sql)))

    def execute(self, sql: str) -> None:
        """Execute a statement in the same way."""
        with self._connected() as connection:
            connection.execute(text(sql))

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        engine = create_engine(self.direct_url)
        try:
            with engine.begin() as connection:
                yield connection
        finally:
            engine.dispose()

    @property
    def direct_url(self) -> str:
        """Leads to the database whatever stands between it and the processes."""
        return self.url if self.cluster is None else self.cluster.url(self.database)

    def connections(self) -> int:
        """The connections of the server to the database, without the one that asks; 0 on SQLite."""
        if self.cluster is None:
            return 0
        with closing(self.cluster.connect()) as connection:
            found: Any = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = %s", [self.database]
            ).fetchone()
        return int(found[0])


@dataclass(frozen=True)
class Bench:
    """What the parts of a run share.

    :param databases: the names of the kinds of database
    :param cluster: the server, where Postgres is among them
    """

    sizes: Sizes
    databases: tuple[str, ...]
    cluster: Cluster | None

    def targets(self, *names: str) -> Iterator[Target]:
        """A new database of each kind, or of those named, which is deleted when the next one is asked for."""
        for name in self.databases:
            if not names or name in names:
                with self.target(name) as target:
                    yield target

    @contextmanager
    def target(self, name: str, *, has_tables: bool = True) -> Iterator[Target]:
        """A new database of one kind, deleted when the block ends."""
        with tempfile.TemporaryDirectory(prefix="essql-torture-", ignore_cleanup_errors=True) as temporary:
            folder = Path(temporary)
            if name == SQLITE:
                made = Target(f"sqlite:///{folder / 'torture.db'}", name, folder)
            else:
                assert self.cluster is not None
                database = self.cluster.new_database()
                made = Target(self.cluster.url(database), name, folder, self.cluster, database)
            if has_tables:
                with Database(made.url) as opened:
                    opened.upgrade()
            try:
                yield made
            finally:
                if self.cluster is not None and made.database:
                    self.cluster.drop_database(made.database)
