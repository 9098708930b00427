"""Rows that are older than the test."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from sqlalchemy import update

from eric_sse_sql import Database


def backdate(database: Database, column: Any, age: timedelta) -> None:
    """Set the moments in a column of all rows of a table to some time ago."""
    moment = datetime.now(timezone.utc) - age
    with database.engine.begin() as connection:
        connection.execute(update(column.class_).values({column: moment}))
