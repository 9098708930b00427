"""``BoundedConnection``: the connections of an engine that this package makes."""

from __future__ import annotations

import time
from collections.abc import Generator
from inspect import signature
from typing import Any, TypeVar

import psycopg
from psycopg import postgres, waiting
from psycopg.abc import PQGen
from psycopg.adapt import AdaptersMap
from psycopg.rows import TupleRow, tuple_row
from psycopg.types import TypesRegistry
from psycopg.types.array import register_all_arrays

Result = TypeVar("Result")

#: Earlier releases of psycopg wait in C, and do not resume a generator whose socket is not ready.
RESUMES = "timeout" in signature(psycopg.Connection.wait).parameters
INTERVAL_SECONDS = 0.1  # as psycopg's own


class BoundedConnection(psycopg.Connection[TupleRow]):
    """A connection that is closed when the server does not answer in time.

    Keep-alives notice a peer that has vanished; this notices a peer whose TCP still answers.
    """

    answer_seconds: float | None = None  # in which the server must answer; None for no limit

    def wait(self, gen: PQGen[Result], *arguments: Any, **options: Any) -> Result:
        if self.answer_seconds is None:
            return super().wait(gen, *arguments, **options)
        bounded = self._bounded(gen, self.answer_seconds)
        if RESUMES:
            return super().wait(bounded, *arguments, **options)
        return waiting.wait_selector(bounded, self.pgconn.socket, interval=INTERVAL_SECONDS)

    def _bounded(self, gen: PQGen[Result], seconds: float) -> Generator[Any, Any, Result]:
        """The same generator. psycopg resumes it when the socket is ready, and otherwise ten times a second.

        :raises psycopg.OperationalError: when the socket was not ready for so long
        """
        try:
            wanted = next(gen)
            give_up: float | None = None
            while True:
                ready = yield wanted
                if ready:
                    give_up = None
                elif give_up is None:
                    give_up = time.monotonic() + seconds
                elif time.monotonic() > give_up:
                    self.close()
                    raise psycopg.OperationalError(f"no answer within {seconds:g} seconds, which ?timeout= sets")
                wanted = gen.send(ready)
        except StopIteration as end:
            result: Result = end.value
            return result


def _default_adapters() -> AdaptersMap:
    adapters = AdaptersMap(types=TypesRegistry())
    postgres.register_default_types(adapters.types)
    postgres.register_default_adapters(adapters)
    register_all_arrays(adapters)  # after all types
    return adapters


#: What psycopg reads and writes values with, whatever the application has registered with it. Connections copy them.
ADAPTERS = _default_adapters()


class PlainCursor(psycopg.Cursor[TupleRow]):
    """A cursor that returns tuples, and reads and writes values as psycopg does by itself, on any connection.

    :param connection: whose factories and adapters may be the application's
    """

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        super().__init__(connection, row_factory=tuple_row)

    @property
    def adapters(self) -> AdaptersMap:
        return ADAPTERS
