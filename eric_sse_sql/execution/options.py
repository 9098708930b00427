"""Options of engines and connections that this package's statements would ignore or fail on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eric_sse.exception import RepositoryError
from sqlalchemy import AssertionPool, Engine, SingletonThreadPool, StaticPool

_SERVER_CURSOR = (
    "for which Postgres declares a cursor, and it declares none for a statement that writes; set it on your own "
    "statements instead, or pass engine.execution_options({option}=None)"
)
# By execution option: what to write instead.
_REFUSED: Mapping[str, str] = {
    "stream_results": _SERVER_CURSOR.format(option="stream_results"),
    "yield_per": _SERVER_CURSOR.format(option="yield_per"),
}
_REFUSED_ON_ENGINES: Mapping[str, str] = {
    "postgresql_readonly": (
        "which single statements, in autocommit, do not follow; give an engine without it, and a role that may only "
        "read where nothing is to be written"
    ),
}
_REFUSED_POOLS: Mapping[type, str] = {
    StaticPool: "which gives all threads the same connection, so that one ends the transaction of another",
    SingletonThreadPool: "which closes the connections of threads that are using them",
    AssertionPool: "which gives out one connection at a time, and a background thread of this package needs another",
}


def check_execution_options(options: Mapping[str, Any], schema: str | None, subject: str) -> None:
    """Do nothing for the options of an engine or a connection that change no statement of this package.

    :param schema: of the tables; None for the search path
    :param subject: what has the options
    :raises RepositoryError: for the first other one
    """
    translation = options.get("schema_translate_map") or {}
    if translation.get(None, schema) != schema or translation.get(schema, schema) != schema:
        raise RepositoryError(
            f"{subject} has a schema_translate_map, which this package's statements do not follow; "
            "name the schema of the tables with Database(engine, schema=...)"
        ) from NotImplementedError("schema_translate_map")
    _refuse(_REFUSED, options, subject)


def check_engine_options(engine: Engine, schema: str | None, *, is_in_memory: bool) -> None:
    """Do nothing for an engine whose options are honoured.

    :param is_in_memory: whether the pool decides which threads share a database
    :raises RepositoryError: for the first option that is not
    """
    check_execution_options(engine.get_execution_options(), schema, "the engine")
    _refuse(_REFUSED_ON_ENGINES, engine.get_execution_options(), "the engine")
    for pool, reason in _REFUSED_POOLS.items():
        if isinstance(engine.pool, pool) and not is_in_memory:
            raise RepositoryError(
                f"the engine has {pool.__name__}, {reason}; make it without poolclass, or with NullPool"
            ) from NotImplementedError(pool.__name__)


def _refuse(refused: Mapping[str, str], options: Mapping[str, Any], subject: str) -> None:
    for option, advice in refused.items():
        if options.get(option):
            raise RepositoryError(f"{subject} has {option}, {advice}") from NotImplementedError(option)
