"""The engine of a Postgres URL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg
from eric_sse.exception import RepositoryError
from psycopg.conninfo import make_conninfo
from sqlalchemy import URL, Engine, create_engine

from eric_sse_sql.execution.pool import FairPool

# With these settings, libpq gives up a vanished server within a minute
# (https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS).
NOTICE_VANISHED = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}
# The options of libpq that are secrets.
SECRETS = ("password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")


def make_engine(url: URL, options: Mapping[str, Any]) -> Engine:
    """An engine for a URL, with keep-alives. Its own URL has no secret beside the password, which SQLAlchemy hides."""
    arguments: dict[str, Any] = {name: value for name, value in NOTICE_VANISHED.items() if name not in url.query}
    arguments.update((name, value) for name, value in url.query.items() if name in SECRETS)
    engine = create_engine(
        url.difference_update_query(SECRETS).set(password=arguments.pop("password", url.password)),
        poolclass=FairPool,
        connect_args=arguments,
        **options,
    )
    _check_query(url)
    return engine


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
