"""Calls a function in another process on request."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

ANSWER_SECONDS = 60

_context = multiprocessing.get_context("spawn")


class RemoteFunction:
    """A function of one argument in another process. One call runs at a time."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._is_called = True  # while it is made

    def request(self, argument: object) -> None:
        """Request a call, and return at once: but for the call before, which has to end.

        :raises AssertionError: when that takes too long
        :raises EOFError: when the process has ended
        """
        self.wait()
        self._pipe.send((argument,))
        self._is_called = True

    def wait(self) -> None:
        """Wait for the end of the call."""
        if self._is_called:
            if not self._pipe.poll(ANSWER_SECONDS):
                raise AssertionError("a call in another process does not end")
            self._pipe.recv()
            self._is_called = False


@contextmanager
def remote_function(make: Callable[[], Callable[[Any], object]]) -> Iterator[RemoteFunction]:
    """Start a process, and make the function there. The process ends when the block ends.

    :param make: makes the function
    """
    here, there = _context.Pipe()
    process = _context.Process(target=_serve, args=(there, make), daemon=True)
    process.start()
    there.close()
    function = RemoteFunction(here)
    try:
        function.wait()
        yield function
    finally:
        with suppress(OSError):  # it has failed
            here.send(None)
        process.join()


def _serve(pipe: Connection, make: Callable[[], Callable[[Any], object]]) -> None:
    function = make()
    pipe.send(None)
    while (request := pipe.recv()) is not None:
        (argument,) = request
        function(argument)
        pipe.send(None)
