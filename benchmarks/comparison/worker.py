"""Times the compared measures in one installation: ``python -m benchmarks.comparison.worker``.

Each line of the standard input is a call, as JSON: the name of a method of :class:`Worker` and its arguments. Each line
of the standard output is its result.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from sqlalchemy import make_url

import eric_sse_sql
from benchmarks.comparison.measures import SIZES, SUITES, Measure
from benchmarks.harness.locations import OPENERS, Location, close
from benchmarks.harness.machine import describe_installation
from benchmarks.harness.timing import timed
from eric_sse_sql import Database


class Worker:
    """The measures of one installation on one database."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._measures: dict[str, Measure] = {}

    def describe(self) -> dict[str, str]:
        """Where the package was imported from, and the versions that it runs with."""
        return {"eric_sse_sql": str(eric_sse_sql.__file__), **describe_installation()}

    def upgrade(self, url: str, pragmas: Sequence[str], size: str) -> None:
        """Create the tables of this installation's version in an empty database."""
        self._location = Location(make_url(url), tuple(pragmas))
        self._sizes = SIZES[size]
        with Database(self._location.url) as database:
            database.upgrade()

    def open(self, suite: str, engine: str) -> list[str]:
        """Open the database, and return the names of the measures of a suite.

        :param engine: how to open it: a key of ``OPENERS``
        """
        database = OPENERS[engine](self._location)
        self._stack.callback(close, database)
        measures = SUITES[suite].measures(database, self._sizes, self._stack)
        self._measures = {measure.name: measure for measure in measures}
        return list(self._measures)

    def prepare(self, name: str) -> None:
        """Prepare a measure."""
        self._measures[name].prepare()
        gc.unfreeze()
        gc.collect()
        gc.freeze()

    def time(self, name: str, round_number: int) -> list[int]:
        """Run a round of a measure, and return the time of each step in nanoseconds."""
        measure = self._measures[name]
        first = round_number * measure.block
        return timed(measure.step, range(first, first + measure.block))

    def close(self) -> None:
        """Delete what the measures have left, and close the database."""
        self._measures = {}
        self._stack.close()


def main() -> None:
    worker, output = Worker(), sys.stdout
    sys.stdout = sys.stderr  # a library that prints must not end up in the protocol
    for line in sys.stdin:
        method, arguments = json.loads(line)
        print(json.dumps(getattr(worker, method)(*arguments)), file=output, flush=True)


if __name__ == "__main__":
    main()
