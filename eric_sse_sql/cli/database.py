"""The database of a command."""

from __future__ import annotations

import argparse
import os

from eric_sse_sql.codec import PickleCodec
from eric_sse_sql.database import Database
from eric_sse_sql.message_codec import JSON

URL = "ERIC_SSE_SQL_URL"
SIGNING_KEY = "ERIC_SSE_SQL_SIGNING_KEY"


def open_database(arguments: argparse.Namespace, *, check: bool = True) -> Database:
    """The database that the arguments name, whose tables are those of this release.

    :param check: whether that is checked
    :raises RepositoryError: when the database can't be used, or the tables are others
    """
    codec = PickleCodec(signing_keys=[key.encode() for key in os.environ.get(SIGNING_KEY, "").split()])
    database = Database(arguments.url, codec=codec, schema=arguments.schema, messages=JSON)
    if check:
        try:
            database.check()
        except BaseException:
            database.close()
            raise
    return database
