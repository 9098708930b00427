"""What a process writes about each call, so that the calls of a killed process are accounted for.

A line that was written with ``os.write`` outlives the process. Each call has a line before it, and one after it: a call
whose second line is missing is in doubt.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from eric_sse.exception import RepositoryError

from eric_sse_sql import errors

BEGUN, DONE, FAILED, UNKNOWN, EMPTY, GOT = "begun", "done", "failed", "unknown", "empty", "got"
_UNKNOWN_OUTCOME: type[Exception] | None = getattr(errors, "OutcomeUnknown", None)


class Journal:
    """The journal of this process.

    :param path: of its file
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(self, what: str, *words: object) -> None:
        """Write a line, with the time on the clock that the processes share."""
        os.write(self._file, f"{what} {time.monotonic_ns()} {' '.join(map(str, words))}\n".encode())

    def write_error(self, error: Exception) -> None:
        """Write that a call has failed, or that its outcome is unknown."""
        self.write(UNKNOWN if is_in_doubt(error) else FAILED, type(error).__name__, str(error).replace("\n", " "))


def is_in_doubt(error: Exception) -> bool:
    """Whether a call that has raised an error may have been done."""
    if _UNKNOWN_OUTCOME is None or not isinstance(error, RepositoryError):
        return True  # the errors of the application's own transactions do not tell
    return isinstance(error, _UNKNOWN_OUTCOME)


class Line(NamedTuple):
    """A line of a journal."""

    what: str
    seconds: float  # on the clock of time.monotonic()
    words: tuple[str, ...]


class Call(NamedTuple):
    """A call, and what was written about it until the next one began."""

    words: tuple[str, ...]
    lines: tuple[Line, ...]

    @property
    def outcome(self) -> str:
        """DONE, FAILED, EMPTY or UNKNOWN, which it also is where the process was killed."""
        return next((line.what for line in self.lines if line.what in (DONE, FAILED, EMPTY)), UNKNOWN)

    @property
    def is_interrupted(self) -> bool:
        """Whether a fault has ended it."""
        return self.outcome in (FAILED, UNKNOWN)


def lines(path: Path) -> Iterator[Line]:
    """The complete lines of a journal."""
    if path.exists():
        for text in path.read_text().split("\n")[:-1]:
            what, at, *words = text.split(" ")
            yield Line(what, int(at) / 1e9, tuple(words))


def calls(path: Path) -> Iterator[Call]:
    """The calls of a journal."""
    words: tuple[str, ...] | None = None
    found: list[Line] = []
    for line in lines(path):
        if line.what == BEGUN:
            if words is not None:
                yield Call(words, tuple(found))
            words, found = line.words, []
        else:
            found.append(line)
    if words is not None:
        yield Call(words, tuple(found))


def count_done(folder: Path) -> int:
    """How many calls the journals of a folder show as done."""
    return sum(path.read_bytes().count(b"\ndone ") for path in folder.glob("*.journal"))
