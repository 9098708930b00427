"""What a database has, in numbers, for operators: constant numbers of statements, which read whole tables."""

from __future__ import annotations

from eric_sse_sql.arguments import validate_number
from eric_sse_sql.database import Database
from eric_sse_sql.errors import repository_errors
from eric_sse_sql.sql import overview
from eric_sse_sql.sql.overview import ChannelStatus, Totals

STREAMING_SECONDS = 60  # since a stream was last alive: it says so every half minute
MAX_CHANNELS = 2**31 - 1


def totals(database: Database) -> Totals:
    """What a database has. One statement.

    :raises RepositoryError: for any fault of the database
    """
    age = database.executor.dialect.seconds_value(-STREAMING_SECONDS)
    with repository_errors("the status can't be read"):
        return Totals._make(database.executor.run(overview.TOTALS, age=age)[0])


def busiest_channels(database: Database, count: int) -> list[ChannelStatus]:
    """The channels with most messages waiting, and then by id. One statement.

    :param count: how many, at most
    :raises RepositoryError: for any fault of the database
    """
    validate_number("count", count, 0, MAX_CHANNELS, whole=True)
    with repository_errors("the channels can't be listed"):
        return list(map(ChannelStatus._make, database.executor.run(overview.CHANNELS, count=count)))
