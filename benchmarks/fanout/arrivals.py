"""Counts the streams that a message has reached, and how long that took."""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple


class Clocks(NamedTuple):
    """The time and the CPU time of this process, in seconds."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Clocks:
        return cls(time.perf_counter(), time.process_time())

    def since(self, earlier: Clocks) -> Clocks:
        """How much has passed."""
        return Clocks(self.wall - earlier.wall, self.cpu - earlier.cpu)


class Arrivals:
    """Counts the streams that have a message."""

    def __init__(self) -> None:
        self.expect(0)

    def expect(self, count: int) -> None:
        """Expect that this many streams get a message."""
        self._expected = self._missing = count
        self._all = asyncio.Event()
        self._last: Clocks | None = None

    def note(self) -> None:
        """Count a stream.

        :raises AssertionError: when there are more than expected
        """
        self._missing -= 1
        if self._missing == 0:
            self._last = Clocks.now()
            self._all.set()
        elif self._missing < 0:
            raise AssertionError("a stream got a message that it does not expect")

    async def wait(self, seconds: float) -> Clocks:
        """Wait until all streams were counted, and return when the last one was.

        :raises AssertionError: when one was not within that time
        """
        try:
            await asyncio.wait_for(self._all.wait(), seconds)
        except asyncio.TimeoutError as error:
            raise AssertionError(f"{self._missing} streams of {self._expected} got no message") from error
        assert self._last is not None
        return self._last
