"""``QueueHead``: where the search for the first message of a queue begins, while Postgres keeps deleted rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from eric_sse_sql.execution.statement import Row

SLOW_SECONDS = 0.001  # a longer search from the beginning may have passed many deleted rows
SLOW_SEARCHES = 20  # so many in a row are slow before anything else is asked for
MAX_DUTY_CYCLE = 0.2  # the share of the time that searches from the beginning may take while they are slow
MIN_GAIN = 2.0  # how many times faster the other searches must be
USELESS_SECONDS = 30.0  # until the next attempt, where they are not

Search = Callable[[int], Sequence[Row]]


class _Candidate(NamedTuple):
    """The first message that a search from the beginning has found: later searches may begin with it."""

    message_id: int
    writers: frozenset[str] | None  # the transactions that could still add a message before it; None until asked for


class QueueHead:
    """Where the search for the first message of a queue begins in this process. Threads may share it.

    Postgres keeps deleted rows, and their entries in the index, as long as any open transaction may read them, and a
    search from the beginning passes them all: 100,000 take 13 ms. While such searches are slow, they take a fifth of
    the time, and those in between begin after a message id. Where one of these finds nothing, another follows from the
    beginning.

    No message overtakes an earlier one of its producer: an id is used once all transactions that were writing to the
    table when it was there have ended, and a search from the beginning, begun after that, has found nothing before it.
    No push can commit a smaller id then. A message that gets its place back from another process, by the end of a lease
    or by a rollback, is found by the next search from the beginning.
    """

    def __init__(self) -> None:
        self.after = 0  # searches begin after this id; 0 for the beginning
        self._candidate: _Candidate | None = None
        self._slow = 0  # searches from the beginning in a row that were slow
        self._next_full = 0.0  # when the next search begins at the beginning, on the clock of time.monotonic()
        self._fastest = float("inf")  # seconds of a search that began after an id
        self._attempt_after = 0.0  # when ids may be used again, where that was no faster

    def search(
        self, run: Search, id_of: Callable[[Row], int], open_writers: Callable[[], frozenset[str]]
    ) -> Sequence[Row]:
        """The rows of the first messages.

        :param run: takes the first messages after an id
        :param id_of: the id of the message in a row
        :param open_writers: asks which transactions are writing to the table
        """
        after, began = self.after, time.monotonic()
        if after and began < self._next_full:
            rows = run(after)
            if rows:
                self._fastest = min(self._fastest, time.monotonic() - began)
                return rows
        candidate = self._candidate
        writers = None if candidate is None else open_writers()  # before the search, which may remove a message
        began = time.monotonic()
        rows = run(0)
        ended = time.monotonic()
        self._next_full = ended + (ended - began) / MAX_DUTY_CYCLE
        self._slow = self._slow + 1 if ended - began >= SLOW_SECONDS else 0
        if self._slow < SLOW_SEARCHES or ended < self._attempt_after:
            self.forget()
        elif ended - began < MIN_GAIN * self._fastest < float("inf"):
            self._attempt_after = ended + USELESS_SECONDS
            self.forget()
        elif rows:
            self._advance(candidate, writers, min(map(id_of, rows)))
        return rows

    def forget(self, message_id: int = 0) -> None:
        """Search from the beginning again, where a message with an id got its place back; by default, in any case."""
        candidate = self._candidate
        if candidate is not None and message_id < candidate.message_id:
            self._candidate = None
        if message_id <= self.after:
            self.after, self._fastest = 0, float("inf")

    def _advance(self, candidate: _Candidate | None, writers: frozenset[str] | None, first_id: int) -> None:
        """Draw the conclusion from a search from the beginning.

        :param writers: the transactions that were writing before it
        :param first_id: the first message that it has found
        """
        if candidate is None or candidate is not self._candidate or writers is None:  # or another thread was faster
            self._candidate = self._candidate or _Candidate(first_id, None)
        elif first_id < candidate.message_id:
            self.forget(first_id)
            self._candidate = _Candidate(first_id, None)
        elif candidate.writers is None:
            self._candidate = _Candidate(candidate.message_id, writers)
        elif candidate.writers.isdisjoint(writers):
            self.after = candidate.message_id - 1
            self._candidate = _Candidate(first_id, None)
