"""``Outage``: one log line when the database can't be reached, and one when it can be again."""

from __future__ import annotations

import logging
import threading

from eric_sse.exception import RepositoryError

logger = logging.getLogger("eric_sse_sql")


class Outage:
    """The callers that can't reach the database now. Logs when the first one fails, and when none fails any more."""

    def __init__(self) -> None:
        self.after_fork_in_child()

    def begin(self, caller: object, error: BaseException) -> None:
        """A caller has failed to reach the database."""
        with self._lock:
            if not self._failing:
                reason = error if isinstance(error, RepositoryError) else type(error).__name__  # may quote values
                logger.warning("the database can't be queried, and is tried again: %s", reason)
            self._failing.add(caller)

    def forget(self, caller: object) -> None:
        """A caller will not try again."""
        with self._lock:
            self._failing.discard(caller)

    def end(self, caller: object) -> None:
        """A caller has succeeded."""
        if not self._failing:  # the common case, without the lock
            return
        with self._lock:
            if caller in self._failing:
                self._failing.discard(caller)
                if not self._failing:
                    logger.warning("the database can be queried again")

    def before_fork(self) -> None:
        """The lock is replaced in the child."""

    def after_fork_in_parent(self) -> None:
        """The parent's callers go on."""

    def after_fork_in_child(self) -> None:
        """Forget the parent's callers, and replace the lock, which its threads may hold."""
        self._lock = threading.Lock()
        self._failing: set[object] = set()
