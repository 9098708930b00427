"""Two databases in this process, as two processes have them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import URL

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
