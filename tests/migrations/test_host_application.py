"""An application with its own Alembic history in the same database: both histories side by side, and both in one."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from eric_sse.exception import RepositoryError
from eric_sse_sql.migrations import OWN_TABLES, VERSIONS
from sqlalchemy import URL, create_engine, make_url, text

from eric_sse_sql import Database, SqlStorageEngine
from support.catalog import HEAD, address, alembic, catalog, connected, tables, without

OLDER = "eric_sse_sql_0002"
ODD_NAME = 'Odd-"Name" :of 100%'

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
    """A host application: a folder with models, migrations and a configuration of Alembic, and a database.

    :param url: the database; in it, ``options=-csearch_path=...`` says where the tables go
    """

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
        """The revisions in its version table."""
        with connected(self.url) as connection:
            return set(connection.scalars(text("SELECT version_num FROM alembic_version")))


def with_version_table(name: str, schema: str | None) -> str:
    """An env.py that keeps the version elsewhere than Alembic does by default."""
    options = f"version_table={name!r}, version_table_schema={schema!r}"
    return WITH_FILTER.replace("include_name=", f"{options}, include_name=")


def execute(url: URL, *statements: str) -> None:
    """Run statements in one transaction."""
    with connected(url) as connection:
        for statement in statements:
            connection.execute(text(statement))


def on_search_path(url: URL, path: str) -> URL:
    return url.update_query_dict({"options": f"-csearch_path={path}"})


def all_tables(url: URL) -> set[tuple[str, str]]:
    """The tables of all schemas of Postgres."""
    listed = "SELECT schemaname, tablename FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
    with connected(url) as connection:
        return {(row[0], row[1]) for row in connection.execute(text(listed))}


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


def test_the_folder_of_our_versions_is_named_for_configurations_made_by_a_program(tmp_path: Path) -> None:
    url = make_url(f"sqlite:///{tmp_path / 'application.db'}")
    listed = f"version_locations = migrations/versions {VERSIONS}".replace("%", "%%")
    host = Application(tmp_path / "application", url, OWN_HISTORY.replace("= os", "= space") + listed, WITH_FILTER)
    host.alembic("upgrade", "heads")
    with Database(url) as database:
        database.check()


# The application's version table, in one history


def use_before_at_behind_and_ahead_of_head(host: Application, version_table: str, schema: str | None = None) -> None:
    """Run ``check()`` and ``upgrade()`` at every state of a shared history; they write nothing.

    :param version_table: as SQL writes its name
    """
    with Database(host.url, schema=schema) as database:
        host.alembic("upgrade", "application_1")
        with pytest.raises(RepositoryError, match=r"missing.*call Database.upgrade\(\)"):
            database.check()

        host.alembic("upgrade", OLDER)
        for call in (database.check, database.upgrade):
            with pytest.raises(RepositoryError) as caught:
                call()
            assert f"{OLDER}, older than this package; the application's own Alembic history" in str(caught.value)
            assert f"in {version_table}; run its `alembic upgrade heads`" in str(caught.value)

        host.alembic("upgrade", "heads")
        made = catalog(host.url)
        for call in (database.check, database.upgrade):
            call()
        assert catalog(host.url) == made
        SqlStorageEngine(database).upsert("key", "value")

        ahead = f"UPDATE {version_table} SET version_num = 'eric_sse_sql_9999' WHERE version_num = '{HEAD}'"
        with connected(host.url) as connection:
            connection.exec_driver_sql(ahead.replace("%", "%%") if connection.dialect.name == "postgresql" else ahead)
        for call in (database.check, database.upgrade):
            with pytest.raises(RepositoryError, match="eric_sse_sql_9999, newer than this package"):
                call()


@pytest.mark.parametrize("name", ["alembic_version", ODD_NAME])
def test_the_version_table_of_a_shared_history_may_have_any_name(empty_url: URL, tmp_path: Path, name: str) -> None:
    host = Application(tmp_path / "application", empty_url, SHARED_HISTORY, with_version_table(name, None))
    quoted = '"' + name.replace('"', '""') + '"' if name == ODD_NAME else name
    is_postgres = empty_url.get_backend_name() == "postgresql"
    use_before_at_behind_and_ahead_of_head(host, f"public.{quoted}" if is_postgres else quoted)


@pytest.mark.parametrize(
    ("name", "schema", "tables_in"), [("alembic_version", "meta", "public"), ("versions", ODD_NAME, "sse")]
)
def test_the_version_table_of_a_shared_history_may_be_in_another_schema(
    new_postgres: Callable[[], URL], tmp_path: Path, name: str, schema: str, tables_in: str
) -> None:
    url = new_postgres()
    quoted = '"' + schema.replace('"', '""') + '"' if schema == ODD_NAME else schema
    with connected(url) as connection:
        for each in (quoted, "sse"):
            connection.exec_driver_sql(f"CREATE SCHEMA {each}".replace("%", "%%"))
    env = with_version_table(name, schema)
    host = Application(tmp_path / "application", on_search_path(url, tables_in), SHARED_HISTORY, env)
    use_before_at_behind_and_ahead_of_head(host, f"{quoted}.{name}", None if tables_in == "public" else "sse")


def test_the_command_of_a_checkout_leaves_a_shared_history_to_the_application(application: Any) -> None:
    host = application(SHARED_HISTORY, WITH_FILTER)
    host.alembic("upgrade", OLDER)
    before = catalog(host.url)
    for arguments in (("upgrade", "head"), ("downgrade", "base"), ("current",)):
        printed = alembic(*arguments, fails=True, ERIC_SSE_SQL_URL=address(host.url))
        assert f"names revision {OLDER} of eric_sse_sql; run `alembic` where that application configures it" in printed
    assert catalog(host.url) == before


def test_our_own_version_table_that_a_shared_history_has_overtaken_is_an_error_that_says_so(application: Any) -> None:
    host = application(SHARED_HISTORY, WITH_FILTER)
    host.alembic("upgrade", "heads")
    with Database(host.url) as database:
        alembic_version = "CREATE TABLE eric_sse_sql_version (version_num VARCHAR(32) NOT NULL)"
        execute(host.url, alembic_version, f"INSERT INTO eric_sse_sql_version VALUES ('{OLDER}')")
        with pytest.raises(RepositoryError, match=f"{OLDER}, older"):
            database.check()
        with pytest.raises(RepositoryError, match=r"eric_sse_sql_version is out of date.*drop that version") as caught:
            database.upgrade()
        assert isinstance(caught.value.__cause__, sqlite3.OperationalError | psycopg.errors.DuplicateColumn)
        execute(host.url, "DROP TABLE eric_sse_sql_version")
        database.check()


# Tenants: several schemas with tables of this package


@pytest.fixture
def tenants(new_postgres: Callable[[], URL]) -> URL:
    """A database with the schemas a, b, meta_a and meta_b."""
    url = new_postgres()
    execute(url, *(f"CREATE SCHEMA {schema}" for schema in ("a", "b", "meta_a", "meta_b")))
    return url


def outcome(url: URL, schema: str | None) -> str:
    """What ``check()`` says about the tables in a schema."""
    with Database(url, schema=schema) as database:
        try:
            database.check()
        except RepositoryError as error:
            return str(error)
    return "right"


def test_each_schema_has_the_version_table_that_is_in_it(tenants: URL, tmp_path: Path) -> None:
    host = Application(tmp_path / "a", on_search_path(tenants, "a"), SHARED_HISTORY, WITH_FILTER)
    host.alembic("upgrade", OLDER)
    with Database(tenants, schema="b") as database:
        database.upgrade()
        database.check()
    assert "a.alembic_version; run its" in outcome(tenants, "a")
    host.alembic("upgrade", "heads")
    execute(tenants, f"UPDATE b.eric_sse_sql_version SET version_num = '{OLDER}'")
    assert outcome(tenants, "a") == "right"
    assert f"{OLDER}, older than this package; call Database.upgrade()" in outcome(tenants, "b")


def test_a_new_schema_beside_a_shared_history_gets_tables_and_a_version_table(tenants: URL, tmp_path: Path) -> None:
    env = with_version_table("alembic_version", "meta_a")
    Application(tmp_path / "a", on_search_path(tenants, "a"), SHARED_HISTORY, env).alembic("upgrade", "heads")
    assert "missing" in outcome(tenants, "b") and "pass schema='a'" in outcome(tenants, "b")
    with Database(tenants, schema="b") as database:
        database.upgrade()
    assert (outcome(tenants, "a"), outcome(tenants, "b")) == ("right", "right")
    assert ("b", "eric_sse_sql_version") in all_tables(tenants)
    assert ("a", "eric_sse_sql_version") not in all_tables(tenants)


def test_a_version_table_beside_the_tables_of_another_schema_is_theirs(tenants: URL, tmp_path: Path) -> None:
    for schema, revision in (("a", "heads"), ("b", OLDER)):
        host = Application(tmp_path / schema, on_search_path(tenants, schema), SHARED_HISTORY, WITH_FILTER)
        host.alembic("upgrade", revision)
    execute(tenants, "DROP TABLE b.alembic_version")
    assert "but not their version" in outcome(tenants, "b")


def test_our_own_version_table_of_another_schema_is_not_taken(tenants: URL) -> None:
    with Database(tenants) as database:
        database.upgrade()
        ours = [name for schema, name in all_tables(tenants) if (schema, name) != ("public", "eric_sse_sql_version")]
        execute(tenants, *(f"ALTER TABLE {name} SET SCHEMA a" for name in ours))
        assert "but not their version" in outcome(tenants, "a")
        execute(tenants, "ALTER TABLE eric_sse_sql_version SET SCHEMA a")
        assert outcome(tenants, "a") == "right"


def test_a_shared_history_may_keep_its_version_beside_tables_with_our_own_version_table(
    tenants: URL, tmp_path: Path
) -> None:
    with Database(tenants) as database:
        database.upgrade()
    env = with_version_table("alembic_version", "public")
    host = Application(tmp_path / "a", on_search_path(tenants, "a"), SHARED_HISTORY, env)
    host.alembic("upgrade", OLDER)
    assert outcome(tenants, None) == "right"
    assert "public.alembic_version; run its" in outcome(tenants, "a")


def test_tables_that_are_looked_for_beside_the_version_table_are_an_error_that_names_their_schema(
    tenants: URL, tmp_path: Path
) -> None:
    env = with_version_table("alembic_version", "public")
    host = Application(tmp_path / "a", on_search_path(tenants, "a"), SHARED_HISTORY, env)
    host.alembic("upgrade", "heads")
    with Database(tenants) as database:
        for call in (database.check, database.upgrade):
            with pytest.raises(RepositoryError, match=r"schema 'public' has none of its tables.*pass schema='a'"):
                call()
    assert outcome(tenants, "a") == "right"


def test_version_tables_of_equal_rank_that_disagree_are_an_error_that_says_how_to_tell_them_apart(
    tenants: URL, tmp_path: Path
) -> None:
    for schema, revision in (("a", "heads"), ("b", OLDER)):
        env = with_version_table("versions", f"meta_{schema}")
        host = Application(tmp_path / schema, on_search_path(tenants, schema), SHARED_HISTORY, env)
        host.alembic("upgrade", revision)
    for schema in ("a", "b"):
        with Database(tenants, schema=schema) as database:
            for call in (database.check, database.upgrade):
                with pytest.raises(RepositoryError, match="disagree") as caught:
                    call()
                assert f"meta_a.versions ({HEAD}), meta_b.versions ({OLDER})" in str(caught.value)
    # What the error says to do, for one of the two:
    execute(tenants, "ALTER TABLE meta_b.versions SET SCHEMA b", "ALTER TABLE b.versions RENAME TO alembic_version")
    assert outcome(tenants, "a") == "right"
    assert "b.alembic_version; run its" in outcome(tenants, "b")


def test_a_version_table_that_the_role_may_not_read_is_passed_over_and_spoils_no_transaction(
    tenants: URL, tmp_path: Path, new_role: Callable[[URL], URL]
) -> None:
    env = with_version_table("alembic_version", "meta_a")
    Application(tmp_path / "a", on_search_path(tenants, "a"), SHARED_HISTORY, env).alembic("upgrade", "heads")
    role = new_role(tenants)
    execute(
        tenants,
        # Two that the role may not read: without the right, and under a policy that fails instead of filtering.
        "CREATE TABLE meta_b.alembic_version (version_num VARCHAR(32))",
        "INSERT INTO meta_b.alembic_version VALUES ('eric_sse_sql_0001')",
        "CREATE TABLE meta_a.versions (version_num VARCHAR(32))",
        "INSERT INTO meta_a.versions VALUES ('eric_sse_sql_0001')",
        "ALTER TABLE meta_a.versions ENABLE ROW LEVEL SECURITY",
        f"GRANT USAGE ON SCHEMA a, meta_a, meta_b TO {role.username}",
        f"GRANT SELECT ON ALL TABLES IN SCHEMA meta_a TO {role.username}",
        f"GRANT SELECT ON ALL TABLES IN SCHEMA a TO {role.username}",
        f"ALTER ROLE {role.username} SET row_security = off",
    )
    engine = create_engine(role)
    with Database(engine, schema="a") as database, engine.begin() as connection, database.join(connection):
        database.check()
        assert SqlStorageEngine(database).fetch_all() is not None
        assert connection.scalar(text("SELECT 1")) == 1
    engine.dispose()


def test_a_version_table_that_the_role_may_not_read_is_an_error_that_says_what_to_grant(
    tenants: URL, new_role: Callable[[URL], URL]
) -> None:
    with Database(tenants, schema="a") as database:
        database.upgrade()
    role = new_role(tenants)
    grant = f"GRANT SELECT ON a.eric_sse_sql_version TO {role.username}", f"GRANT USAGE ON SCHEMA a TO {role.username}"
    for each in grant:
        assert "may be in a.eric_sse_sql_version: this role may not read that" in outcome(role, "a")
        execute(tenants, each)
    assert outcome(role, "a") == "right"
    execute(
        tenants,
        "ALTER TABLE a.eric_sse_sql_version SET SCHEMA meta_a",
        "ALTER TABLE meta_a.eric_sse_sql_version RENAME TO alembic_version",
    )
    assert "may be in meta_a.alembic_version: this role may not read that" in outcome(role, "a")
    execute(tenants, f"GRANT USAGE ON SCHEMA meta_a TO {role.username}")
    assert outcome(role, "a") == "right"


def test_a_column_version_num_of_another_kind_is_no_version(empty_url: URL) -> None:
    execute(empty_url, "CREATE TABLE documents (version_num INTEGER)", "INSERT INTO documents VALUES (1)")
    execute(empty_url, "CREATE TABLE papers (version_num VARCHAR(32))", "INSERT INTO papers VALUES ('draft')")
    with Database(empty_url) as database:
        assert "missing" in outcome(empty_url, None)
        database.upgrade()
        database.check()


def test_a_virtual_table_whose_module_is_not_loaded_is_passed_over(tmp_path: Path) -> None:
    url = make_url(f"sqlite:///{tmp_path / 'application.db'}")
    with Database(url) as database:
        database.upgrade()
        with sqlite3.connect(str(url.database)) as connection:
            connection.execute("PRAGMA writable_schema = ON")
            row = "'table', 'places', 'places', 0, 'CREATE VIRTUAL TABLE places USING not_loaded(version_num)'"
            connection.execute(f"INSERT INTO sqlite_master VALUES ({row})")
        connection.close()
    with Database(url) as database:
        database.check()
