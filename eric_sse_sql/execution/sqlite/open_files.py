"""``OpenFiles``: notices that the files of a connection were deleted or replaced."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Sequence

from eric_sse.exception import RepositoryError

CHECK_SECONDS = 0.05  # between two looks at the files of a connection that is in use


class OpenFiles:
    """The files that a connection has open, by device and inode.

    A process that has a file open reads and writes it after its name was deleted or given to another file. Processes
    that open the path later do not see what it writes.

    :param connection: which has them open
    :param paths: their paths; those that do not exist are left out
    """

    def __init__(self, connection: sqlite3.Connection, paths: Sequence[str]) -> None:
        self._connection = connection
        self._opened = {path: inode for path in paths if (inode := _inode(path)) is not None}
        self._next_check = time.monotonic() + CHECK_SECONDS

    @property
    def is_open(self) -> bool:
        """Whether the connection is open."""
        try:
            return self._connection.total_changes >= 0
        except sqlite3.ProgrammingError:
            return False

    def check(self) -> None:
        """Do nothing, if each path leads to the file that is open. Looks at the files twenty times a second at most.

        :raises RepositoryError: for the first one that does not
        """
        now = time.monotonic()
        if now < self._next_check:
            return
        for path, opened in self._opened.items():
            if _inode(path) != opened:
                raise RepositoryError(
                    f"the file {path} was deleted, moved or replaced while it is open, and what is written now is "
                    "lost; stop all processes that use the database, put its file in place, with the -wal file that "
                    "belongs to it or without any, and start them again"
                ) from FileNotFoundError(path)
        self._next_check = now + CHECK_SECONDS


def _inode(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
