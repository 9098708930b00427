"""Neither errors with their causes and contexts, nor logs, nor reprs show passwords or payloads."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from eric_sse.exception import RepositoryError
from eric_sse.message import Message
from sqlalchemy import URL, create_engine, event, make_url, text

from eric_sse_sql import Database, SqlQueue, SqlStorageEngine
from support.catalog import connected

SECRET = "hunter2"
SHOWN = (SECRET, SECRET.encode().hex(), str(list(SECRET.encode())))

ADDRESS = "postgresql+psycopg://me@127.0.0.1:1/db?sslmode=disable"
URLS = {
    "the user's": f"postgresql+psycopg://me:{SECRET}@127.0.0.1:1/db",
    **{
        option: f"{ADDRESS}&{option}={SECRET}"
        for option in ("password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")
    },
    "beside a user": f"postgresql+psycopg:///db?host=127.0.0.1&port=1&user=me&password={SECRET}",
}


def assert_hidden(*texts: str) -> None:
    for shown in SHOWN:
        assert all(shown not in each for each in texts)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and all causes and contexts behind it, whether a traceback shows them or not."""
    if error is not None:
        yield error
        yield from chain(error.__cause__)
        yield from chain(error.__context__)


def assert_no_error_shows_it(error: BaseException) -> None:
    for each in chain(error):
        assert_hidden(str(each), repr(each), *traceback.format_exception(each))


@pytest.mark.parametrize("url", URLS.values(), ids=URLS)
def test_no_repr_and_no_failure_to_connect_shows_a_password(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    try:
        database = Database(url)
    except RepositoryError as error:  # an option that this libpq does not have
        assert_no_error_shows_it(error)
        return
    with database:
        assert_hidden(repr(database), str(database), repr(database.engine), str(database.engine.url))
        for call in (database.check, lambda: SqlStorageEngine(database).upsert("key", 1), database.upgrade):
            with pytest.raises(RepositoryError) as failure:
                call()
            assert_no_error_shows_it(failure.value)
    assert_hidden(caplog.text)


@pytest.mark.parametrize("url", URLS.values(), ids=URLS)
def test_the_repr_of_a_database_on_an_engine_of_the_application_shows_no_password(url: str) -> None:
    engine = create_engine(url)
    with Database(engine) as database:
        assert_hidden(repr(database), str(database))


def test_a_password_among_the_options_of_a_url_is_used(migrated_postgres: URL, new_role: Callable[[URL], URL]) -> None:
    role = new_role(migrated_postgres)
    assert role.password
    url = role.set(password=None, username=None).update_query_dict({"user": role.username, "password": role.password})
    with Database(url) as database, database.engine.connect() as connection:
        assert connection.scalar(text("SELECT current_user")) == role.username


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def refusing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> URL:
    """A database whose tables refuse the message type "refused" and every entry."""
    if request.param == "sqlite":
        path: Path = tmp_path_factory.mktemp("secrets") / "a.db"
        url = make_url(f"sqlite:///{path}")
    else:
        url = request.getfixturevalue("new_postgres")()
    with Database(url) as database:
        database.upgrade()
    with connected(url) as connection:
        if request.param == "sqlite":
            for table, condition in (("sse_messages", "NEW.message_type = 'refused'"), ("kv_entries", "true")):
                connection.execute(
                    text(
                        f"CREATE TRIGGER refuse_{table} BEFORE INSERT ON {table} WHEN {condition} "
                        "BEGIN SELECT RAISE(ABORT, 'refused'); END"
                    )
                )
        else:
            connection.execute(text("ALTER TABLE sse_messages ADD CHECK (message_type <> 'refused')"))
            connection.execute(text("ALTER TABLE kv_entries ADD CHECK (value IS NULL)"))
    return url


def message() -> Message:
    return Message("refused", SECRET)


def push_in_a_joined_transaction(database: Database) -> None:
    engine = create_engine(database.engine.url)
    try:
        with engine.connect() as connection, database.join(connection):
            SqlQueue(database).push(message())
    finally:
        engine.dispose()


CALLS: dict[str, Callable[[Database], object]] = {
    "push": lambda database: SqlQueue(database).push(message()),
    "push_many": lambda database: SqlQueue(database).push_many([Message("m"), message()]),
    "upsert": lambda database: SqlStorageEngine(database).upsert("key", SECRET),
    "join": push_in_a_joined_transaction,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("is_observed", [False, True])
@pytest.mark.parametrize("options", [None, {"hide_parameters": True}, {}], ids=str)
def test_no_error_of_the_database_shows_a_payload(
    refusing: URL,
    call: Callable[[Database], object],
    is_observed: bool,
    options: dict[str, Any] | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    logs_parameters = options == {}
    if not logs_parameters and is_observed:
        caplog.set_level(logging.INFO)
    engine = None if options is None else create_engine(refusing, **options)
    with Database(engine or refusing) as database:
        if is_observed:
            event.listen(database.engine, "before_cursor_execute", lambda *_: None)
        with pytest.raises(RepositoryError) as failure:
            call(database)
        assert failure.value.__cause__ is not None
        assert_no_error_shows_it(failure.value)
        if isinstance(failure.value.__cause__, Exception) and refusing.get_backend_name() == "postgresql":
            assert "violates check constraint" in str(failure.value.__cause__)
    if engine is not None:
        engine.dispose()
    if call is not push_in_a_joined_transaction:  # on an engine that shows parameters
        assert_hidden(caplog.text)


def test_the_detail_that_postgres_gives_is_kept_as_an_attribute(new_postgres: Callable[[], URL]) -> None:
    url = new_postgres()
    with Database(url) as database:
        database.upgrade()
        with connected(url) as connection:
            connection.execute(text("ALTER TABLE kv_entries ADD CHECK (value IS NULL)"))
        with pytest.raises(RepositoryError) as failure:
            SqlStorageEngine(database).upsert("key", SECRET)
        diagnosis: Any = failure.value.__cause__
        assert SECRET.encode().hex() in diagnosis.diag.message_detail
        with closing(database.engine.raw_connection()) as pooled:
            assert_hidden(repr(pooled.driver_connection))
