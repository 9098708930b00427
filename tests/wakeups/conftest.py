"""Two databases in this process, as two processes have them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import URL, text

from eric_sse_sql import Database
from support.databases import opened


@pytest.fixture
def worker(shared_url: URL) -> Iterator[Database]:
    """A database that waits for messages."""
    with opened(shared_url) as made:
        yield made


@pytest.fixture
def producer(shared_url: URL) -> Iterator[Database]:
    """The same database as another process has it: on an engine of its own."""
    with opened(shared_url) as made:
        yield made


@pytest.fixture
def postgres(migrated_postgres: URL) -> Iterator[URL]:
    """The URL of a Postgres database without messages."""
    yield migrated_postgres
    with Database(migrated_postgres) as made, made.engine.begin() as connection:
        connection.execute(text("TRUNCATE sse_messages"))
