"""An application with an Alembic history of its own, in the same database: neither touches what is the other's."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from catalog import HEAD, address, alembic, catalog, connected, tables, without
from eric_sse.exception import RepositoryError
from sqlalchemy import URL, make_url, text

from eric_sse_sql import Database, SqlStorageEngine, migrations

OWN_TABLES, VERSIONS = migrations.OWN_TABLES, migrations.VERSIONS

OWN_HISTORY = """
[alembic]
script_location = migrations
prepend_sys_path = .
path_separator = os
"""
SHARED_HISTORY = """
[alembic]
script_location = migrations
version_locations = migrations/versions eric_sse_sql.migrations:versions
path_separator = space
prepend_sys_path = .
"""
MODELS = """
from sqlalchemy import MetaData
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

class Base(DeclarativeBase):
    metadata = MetaData(naming_convention={
        kind: f"app_{kind}_%(table_name)s_%(constraint_name)s" for kind in ("uq", "fk", "ix")
    })

class Order(Base):
    __tablename__ = "orders"
    __table_args__ = {"comment": "of the application"}
    id: Mapped[int] = mapped_column(primary_key=True)
"""
ENV = """
import os
from alembic import context
from sqlalchemy import NullPool, create_engine
from models import Base

engine = create_engine(os.environ["APPLICATION_URL"], poolclass=NullPool)
with engine.begin() as connection:
    context.configure(connection=connection, target_metadata=Base.metadata)
    context.run_migrations()
"""
FIRST_VERSION = """
import sqlalchemy as sa
from alembic import op

revision = "application_1"
down_revision = None

def upgrade():
    op.create_table("orders", sa.Column("id", sa.Integer, primary_key=True), comment="of the application")

def downgrade():
    op.drop_table("orders")
"""
TEMPLATE = """
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
from alembic import op
import sqlalchemy as sa
def upgrade():
    ${upgrades}
"""
WITH_FILTER = ENV.replace("from models", "from eric_sse_sql.migrations import include_name\nfrom models").replace(
    "Base.metadata)", "Base.metadata, include_name=include_name)"
)


class Application:
    """A host application: a folder with models, migrations and a configuration of Alembic, and a database."""

    def __init__(self, folder: Path, url: URL, configuration: str, env: str) -> None:
        self.folder, self.url = folder, url
        self.versions = folder / "migrations" / "versions"
        self.versions.mkdir(parents=True)
        for name, content in (
            ("alembic.ini", configuration),
            ("models.py", MODELS),
            ("migrations/env.py", env),
            ("migrations/script.py.mako", TEMPLATE),
            ("migrations/versions/application_1.py", FIRST_VERSION),
        ):
            (folder / name).write_text(content.lstrip())

    def alembic(self, *arguments: str, fails: bool = False) -> str:
        return alembic(*arguments, folder=self.folder, fails=fails, APPLICATION_URL=address(self.url))

    def history(self) -> set[str]:
        """What its version table says."""
        with connected(self.url) as connection:
            return set(connection.scalars(text("SELECT version_num FROM alembic_version")))


@pytest.fixture
def application(empty_url: URL, tmp_path: Path) -> Callable[[str, str], Application]:
    return lambda configuration, env: Application(tmp_path / "application", empty_url, configuration, env)


def test_an_application_and_this_package_keep_a_history_each(application: Any) -> None:
    host = application(OWN_HISTORY, WITH_FILTER)
    host.alembic("upgrade", "head")
    theirs = catalog(host.url)
    with Database(host.url) as database:
        database.upgrade()
        database.check()
        assert tables(host.url) == {"orders", "alembic_version", *OWN_TABLES}
        together = catalog(host.url)
        assert all(rows <= together[what] for what, rows in theirs.items())
        assert "No new upgrade operations detected" in host.alembic("check")

        SqlStorageEngine(database).upsert("key", "value")
        host.alembic("downgrade", "base")
        assert tables(host.url) == {"alembic_version", *OWN_TABLES}
        host.alembic("upgrade", "head")
        assert host.history() == {"application_1"}
        database.check()
        assert SqlStorageEngine(database).fetch_one("key") == "value"


def test_without_the_filter_autogenerate_would_drop_our_tables(application: Any) -> None:
    host = application(OWN_HISTORY, ENV)
    host.alembic("upgrade", "head")
    with Database(host.url) as database:
        database.upgrade()
    printed = host.alembic("check", fails=True)
    assert all(f"'remove_table', Table('{table}'" in printed for table in OWN_TABLES)


def test_an_application_can_list_our_versions_in_its_own_history(application: Any) -> None:
    host = application(SHARED_HISTORY, WITH_FILTER)
    host.alembic("upgrade", "heads")
    assert host.history() == {"application_1", HEAD}
    assert tables(host.url) == {"orders", "alembic_version", *OWN_TABLES} - {"eric_sse_sql_version"}
    assert "No new upgrade operations detected" in host.alembic("check")
    with Database(host.url) as database:
        database.check()
        database.upgrade()  # has nothing to do
        SqlStorageEngine(database).upsert("key", "value")
    assert host.history() == {"application_1", HEAD}
    assert "eric_sse_sql_version" not in tables(host.url)


def test_our_branch_of_a_shared_history_goes_up_and_down_by_itself(application: Any) -> None:
    host = application(SHARED_HISTORY, WITH_FILTER)
    host.alembic("upgrade", "application_1")
    with Database(host.url) as database:
        with pytest.raises(RepositoryError, match="missing"):
            database.check()
        host.alembic("upgrade", "eric_sse_sql@head")
        database.check()
        made = without("alembic_version", catalog(host.url))
        host.alembic("downgrade", "eric_sse_sql@base")
        assert host.history() == {"application_1"}
        assert tables(host.url) == {"orders", "alembic_version"}
        with pytest.raises(RepositoryError, match="missing"):
            database.check()

        database.upgrade()  # from now on, our own history: the same tables, constraints and names
        database.check()
        assert without("eric_sse_sql_version", without("alembic_version", catalog(host.url))) == made


def test_the_application_adds_its_own_revisions_to_a_shared_history(application: Any) -> None:
    host = application(SHARED_HISTORY, WITH_FILTER)
    host.alembic("upgrade", "heads")
    models = host.folder / "models.py"
    models.write_text(models.read_text() + "    weight: Mapped[int | None]\n")
    host.alembic("revision", "--autogenerate", "--rev-id", "application_2", "--head", "application_1@head")
    script = (host.versions / "application_2_.py").read_text()
    assert "add_column" in script and "drop" not in script
    host.alembic("upgrade", "heads")
    assert host.history() == {"application_2", HEAD}


def test_a_shared_history_that_is_behind_or_ahead_is_an_error_that_says_so(
    application: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = application(SHARED_HISTORY, WITH_FILTER)
    host.alembic("upgrade", "heads")
    later = Path(shutil.copytree(Path(VERSIONS).parent, tmp_path / "later"))
    revision = f'revision = "eric_sse_sql_8888"\ndown_revision = "{HEAD}"\n'
    (later / "versions" / "eric_sse_sql_8888_later.py").write_text(revision)
    config = migrations._config()
    config.set_main_option("script_location", str(later))
    with Database(host.url) as database:
        with monkeypatch.context() as patch:
            patch.setattr(migrations, "_config", lambda: config)
            with pytest.raises(RepositoryError, match=f"{HEAD}, older than this package"):
                database.check()
            with pytest.raises(RepositoryError, match="history keeps them; run its `alembic upgrade heads`"):
                database.upgrade()
        with connected(host.url) as connection:
            ahead = "UPDATE alembic_version SET version_num = 'eric_sse_sql_8888' WHERE version_num <> 'application_1'"
            connection.execute(text(ahead))
        for call in (database.check, database.upgrade):
            with pytest.raises(RepositoryError, match="eric_sse_sql_8888, newer than this package"):
                call()


def test_the_folder_of_our_versions_is_named_for_configurations_made_by_a_program(tmp_path: Path) -> None:
    url = make_url(f"sqlite:///{tmp_path / 'application.db'}")
    listed = f"version_locations = migrations/versions {VERSIONS}".replace("%", "%%")
    host = Application(tmp_path / "application", url, OWN_HISTORY.replace("= os", "= space") + listed, WITH_FILTER)
    host.alembic("upgrade", "heads")
    with Database(url) as database:
        database.check()
