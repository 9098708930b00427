"""``Dialect``: how statements are written for a database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

Construct = Any  # a construct of SQLAlchemy, whose releases 2.0 and 2.1 give it different type parameters


class Dialect(Protocol):
    """How statements are written."""

    paramstyle: str

    def rendered(self, sql: str) -> str:
        """The compiled SQL as the driver takes it."""

    def insert(self, table: Any) -> Any:
        """An INSERT that takes ``on_conflict_do_update``."""

    def insert_rows(self, model: Any, bound: Mapping[str, str]) -> Any:
        """An INSERT of many rows in order: executed for each row on SQLite, with an array for each column on Postgres.

        :param bound: the name of the parameter that holds the value of each column
        """

    def in_list(self, column: Any, name: str) -> Construct:
        """The condition that a column is in the bound list, of any length."""

    def unnest(self, name: str) -> Construct:
        """A SELECT of the values of the bound list, in their order."""

    def list_value(self, values: Sequence[str]) -> Any:
        """The value to bind for such a list."""

    def ordered_range(self, group: Any, number: Any, name: str) -> tuple[Construct, tuple[Any, ...]]:
        """The condition that selects the rows of the bound group, and the columns that order them by number.

        Both are written so that Postgres reads them from the index over (group, number), in order.
        """

    def lookup_join(self, key: Any, value: Any, *columns: Any) -> tuple[Any, Construct]:
        """What to join, and on which condition, to look up the row of another table by its key, once for each row.

        :param columns: the columns that are read of that row
        """

    def not_exists(self, rows: Any) -> Construct:
        """An anti-join: the condition that a SELECT, correlated with the row, finds nothing. A lookup for each row."""

    def looked_up_rows(self, key: Any, keys: Any) -> Any:
        """The condition that a row of a DELETE has one of the keys of a small SELECT, by a lookup for each key."""

    def with_notification(self, change: Any) -> Construct:
        """The same change, with a notification of the channel bound as ``notify_channel``, on Postgres."""

    def advisory_lock(self, name: str) -> Construct:
        """A SELECT that takes the lock of the bound text until the transaction ends. On SQLite, the transaction that
        writes is the only one, and nothing is locked."""

    def now(self, shift: str | None = None) -> Construct:
        """The clock of the database at the start of the statement, shifted by the bound number of seconds."""

    def seconds_value(self, seconds: float) -> Any:
        """The value to bind for such a shift."""
