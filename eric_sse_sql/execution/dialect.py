"""``Dialect``: how statements are written for a database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

Construct = Any  # a construct of SQLAlchemy, whose releases 2.0 and 2.1 give it different type parameters


class Dialect(Protocol):
    """How statements are written."""

    paramstyle: str
    #: Whether writers lock rows, and not the whole database.
    locks_rows: bool

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

    def pairs(self, name: str) -> Any:
        """A subquery of the names and whole numbers in the bound JSON object: its columns ``id`` and ``number``."""

    def list_value(self, values: Sequence[str]) -> Any:
        """The value to bind for such a list."""

    def ordered_range(
        self, group: Any, number: Any, value: Any, after: str | None = None
    ) -> tuple[Construct, tuple[Any, ...]]:
        """The condition that selects the rows of a group, and the columns that order them by number.

        Both are written so that Postgres reads them from the index over (group, number), in order.

        :param after: the name of the parameter with the number after which they begin, where deleted rows are kept
        """

    def open_writers(self, model: Any) -> Construct:
        """A SELECT of the names of the transactions that write, or have written, to a table and have not ended."""

    def first_of_each(self, rows: Any, key: Any) -> tuple[Any, Construct]:
        """What to join, and on which condition, to get the first rows of a SELECT for each row that it refers to.

        :param rows: the SELECT, with an order and a limit; the key is its first column
        :param key: the key of the rows, as a column of their model
        """

    def lookup_join(self, key: Any, value: Any, *columns: Any) -> tuple[Any, Construct]:
        """What to join, and on which condition, to look up the row of another table by its key, once for each row.

        :param columns: the columns that are read of that row
        """

    def not_exists(self, rows: Any) -> Construct:
        """An anti-join: the condition that a SELECT, correlated with the row, finds nothing. A lookup for each row."""

    def looked_up_rows(self, key: Any, keys: Any) -> Any:
        """The condition that a row of a DELETE has one of the keys of a small SELECT, by a lookup for each key."""

    def looked_up_pairs(self, key: Any, pairs: Any) -> Any:
        """The condition that joins a row of an UPDATE to a row of its small FROM, by a lookup for each of these."""

    def with_notification(self, change: Any) -> Construct:
        """The same change, with a notification of the channel bound as ``notify_channel``, on Postgres."""

    def with_notification_for_each(self, change: Any) -> Construct:
        """The same change, with its rows, and a notification for each of them, on Postgres."""

    def advisory_lock(self, name: str) -> Construct:
        """A SELECT that takes the lock of the bound text until the transaction ends. On SQLite, the transaction that
        writes is the only one, and nothing is locked."""

    def transaction_id(self) -> Construct:
        """The id of the transaction, for :meth:`was_rolled_back`. NULL on SQLite."""

    def was_rolled_back(self, name: str) -> Construct:
        """Whether the transaction of the bound id was rolled back. Not true where that can't be told: on SQLite, and
        where another server has taken over since."""

    def now(self, shift: str | None = None) -> Construct:
        """The clock of the database at the start of the statement, shifted by the bound number of seconds."""

    def seconds_ago(self, seconds: Any) -> Construct:
        """The clock of the database at the start of the statement, less a number of seconds in a column."""

    def seconds_since(self, moment: Any) -> Construct:
        """The whole seconds from a moment to the start of the statement, on the clock of the database."""

    def timestamp_text(self, moment: Any) -> Construct:
        """A moment as text that every session writes in the same way, and reads back as the same moment."""

    def token(self, moment: Any) -> Construct:
        """A moment as text: the same from every session, and precise enough to tell two rows apart."""

    def append(
        self, row: Any, counter: Any, bound: Mapping[str, str], condition: Construct, returned: Construct
    ) -> Any:
        """A statement that appends a row to a group, numbers it by the group's counter, and returns its number.

        Numbers are given in the order of the commits: the counter's row is locked until the transaction ends.

        :param row: the model of the rows; the first column of ``bound`` is the group, ``position`` the number
        :param counter: the model of the counters, with ``last_position``, by group
        :param bound: the name of the parameter that holds the value of each column
        :param condition: under which the row is appended
        :param returned: what is returned beside the number
        """

    def greatest(self, *values: Construct) -> Construct:
        """The greatest of some values."""

    def seconds_value(self, seconds: float) -> Any:
        """The value to bind for such a shift."""
