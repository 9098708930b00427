"""A database of the command, and the same one as an application has it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import URL

from eric_sse_sql import Database
from support.catalog import address
from support.command import Command, runner
from support.databases import opened


@pytest.fixture
def command(shared_url: URL, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs the command on a database with empty tables."""
    monkeypatch.setenv("ERIC_SSE_SQL_URL", address(shared_url))
    return runner(capsys)


@pytest.fixture
def application(shared_url: URL) -> Iterator[Database]:
    """The same database, as an application has it."""
    with opened(shared_url) as made:
        yield made
