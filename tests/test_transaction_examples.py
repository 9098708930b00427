"""The examples of the README's section on transactions, on both databases: once to their end, and once with an error
before the commit, which leaves nothing."""

from __future__ import annotations

import asyncio
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from eric_sse.message import Message
from sqlalchemy import URL, inspect, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from eric_sse_sql import Database, SqlQueue, SqlStorageEngine

README = (Path(__file__).parent.parent / "README.md").read_text()
SECTION = README.split("\n## In a transaction\n")[1].split("\n## ")[0]
EXAMPLES = re.findall(r"^```python\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL)
URL_IN_EXAMPLE = '"sqlite:///app.db"'
COMMIT = "session.commit()"


class ApplicationError(Exception):
    """Of the application, before its commit."""


@pytest.fixture
def database(empty_url: URL) -> Iterator[Database]:
    """What the README has made before the section, in a database of its own."""
    with Database(empty_url) as made:
        made.upgrade()
        yield made


def run(example: str, database: Database) -> None:
    url = database.engine.url.render_as_string(hide_password=False)
    engine, queue = SqlStorageEngine(database), SqlQueue(database, "orders")
    names = {"database": database, "engine": engine, "queue": queue, "Message": Message, "Error": ApplicationError}
    try:
        exec(example.replace(URL_IN_EXAMPLE, repr(url)), names)
    finally:
        if "engine_of_the_shop" in names:
            names["engine_of_the_shop"].dispose()


def failing(example: str) -> str:
    """An example with an error before its commit, or at the end of its block, which commits."""
    return example.replace(COMMIT, "raise Error") if COMMIT in example else f"{example}    raise Error\n"


def stored(database: Database) -> tuple[int, int, int]:
    """How many orders, messages and entries there are."""
    with database.engine.connect() as connection:
        orders = 0
        if inspect(connection).has_table("orders"):
            orders = connection.scalar(text("SELECT count(*) FROM orders"))
    return orders, len(SqlQueue(database, "orders")), len(list(SqlStorageEngine(database).fetch_all()))


def test_each_example_is_one_of_the_two_ways() -> None:
    assert [("database.transaction()" in example, COMMIT in example) for example in EXAMPLES] == [
        (True, False),
        (False, True),
    ]
    assert URL_IN_EXAMPLE in EXAMPLES[1]


@pytest.mark.parametrize(("example", "written"), [*zip(EXAMPLES, [(0, 1, 1), (1, 1, 0)], strict=True)])
def test_an_example_writes_all_or_with_an_error_nothing(
    example: str, written: tuple[int, int, int], database: Database
) -> None:
    with pytest.raises(ApplicationError):
        run(failing(example), database)
    assert stored(database) == (0, 0, 0)
    if "CREATE TABLE" in example:
        with database.engine.connect() as connection:
            connection.execute(text("DROP TABLE orders"))
    run(example, database)
    assert stored(database) == written


def test_the_example_in_asyncio_writes_all_or_with_an_error_nothing(database: Database) -> None:
    assert "await async_session.run_sync(place_order)" in SECTION
    setup, block = EXAMPLES[1].split("with Session(engine_of_the_shop) as session:\n")
    body = textwrap.dedent(block).replace(COMMIT, "")
    names: dict[str, Any] = {"database": database, "queue": SqlQueue(database, "orders"), "Message": Message}
    url = database.engine.url.render_as_string(hide_password=False)
    exec(setup.replace(URL_IN_EXAMPLE, repr(url)), names)
    names["engine_of_the_shop"].dispose()
    exec(f"def place_order(session):\n{textwrap.indent(body, '    ')}", names)
    place_order: Callable[[Any], None] = names["place_order"]

    async def main(fails: bool) -> None:
        driver = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg"}[database.engine.dialect.name]
        engine = create_async_engine(database.engine.url.set(drivername=driver))
        try:
            async with AsyncSession(engine) as async_session:
                await async_session.run_sync(place_order)
                if fails:
                    raise ApplicationError
                await async_session.commit()
        finally:
            await engine.dispose()

    with pytest.raises(ApplicationError):
        asyncio.run(main(fails=True))
    assert stored(database) == (0, 0, 0)
    asyncio.run(main(fails=False))
    assert stored(database) == (1, 1, 0)
