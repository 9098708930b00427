"""The engine of a Postgres URL."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import psycopg
from eric_sse.exception import RepositoryError
from psycopg.conninfo import make_conninfo
from sqlalchemy import URL, Engine, create_engine

from eric_sse_sql.execution.pool import FairPool
from eric_sse_sql.execution.postgres.connection import ADAPTERS, BoundedConnection

TIMEOUT = "timeout"  # the option of a URL: the seconds in which the server must answer, and accept a connection
TIMEOUT_SECONDS = 60.0  # by default
MAX_TIMEOUT_SECONDS = 24 * 60 * 60
# With these settings, libpq gives up a vanished server within a minute
# (https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS).
NOTICE_VANISHED = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}
# The options of libpq that are secrets.
SECRETS = ("password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")


def make_engine(url: URL, options: Mapping[str, Any]) -> Engine:
    """An engine for a URL, with keep-alives, limits for what the server answers, and psycopg's own adapters.

    Its own URL has no secret beside the password, which SQLAlchemy hides.

    :raises RepositoryError: for an option of the URL that does not exist, or has no valid value
    """
    seconds = _timeout(url)
    url = url.difference_update_query([TIMEOUT])
    arguments: dict[str, Any] = {"context": ADAPTERS}
    arguments.update((name, value) for name, value in NOTICE_VANISHED.items() if name not in url.query)
    if "connect_timeout" not in url.query and "PGCONNECT_TIMEOUT" not in os.environ:
        arguments["connect_timeout"] = math.ceil(seconds)
    arguments.update((name, value) for name, value in url.query.items() if name in SECRETS)
    password = arguments.pop("password", url.password)

    def connect() -> BoundedConnection:
        positional, named = engine.dialect.create_connect_args(engine.url)
        connection = BoundedConnection.connect(*positional, **{**named, **arguments})
        connection.answer_seconds = seconds
        return connection

    engine = create_engine(
        url.difference_update_query(SECRETS).set(password=password), poolclass=FairPool, creator=connect, **options
    )
    _check_query(url)
    return engine


def _timeout(url: URL) -> float:
    """
    :raises RepositoryError: for a value that is no number of seconds, or out of range
    """
    try:
        seconds = float(str(url.query.get(TIMEOUT, TIMEOUT_SECONDS)))
        if not 0 < seconds <= MAX_TIMEOUT_SECONDS:
            raise ValueError("out of range")
    except ValueError as error:
        raise RepositoryError(
            f"timeout in the URL is how many seconds a statement may take: more than 0, at most {MAX_TIMEOUT_SECONDS:,}"
        ) from error
    return seconds


def _check_query(url: URL) -> None:
    """
    :raises RepositoryError: for an option in a URL that libpq does not have
    """
    try:
        make_conninfo(**dict.fromkeys(url.query, ""))
    except psycopg.ProgrammingError as error:
        raise RepositoryError(
            "the URL has an option that psycopg does not take in a URL; each one after the ? must be a keyword of "
            "https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS, as sslmode is"
        ) from error
