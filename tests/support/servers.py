"""Servers of the examples: each is a process, which is asked over HTTP."""

from __future__ import annotations

import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import httpx
from sqlalchemy import URL

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
PATIENCE = 20.0  # seconds until a wait fails


class Server:
    """A process that serves an example on a free port. It starts at once; the first question waits until it is up.

    :param url: of its database
    :param command: the arguments of Python
    """

    def __init__(self, url: URL, command: Sequence[str]) -> None:
        environment = {**os.environ, "ERIC_SSE_SQL_URL": url.render_as_string(hide_password=False)}
        self.process = subprocess.Popen(
            [sys.executable, *command], cwd=EXAMPLES, env=environment, stderr=subprocess.PIPE, text=True
        )
        self.log: list[str] = []
        self._news: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read_log)
        self._reader.start()

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._news.put(line)
        self._news.put(None)

    def logged(self, pattern: str) -> re.Match[str]:
        """Wait for a line of the log that has not been read yet."""
        deadline = time.monotonic() + PATIENCE
        while (line := self._news.get(timeout=max(0, deadline - time.monotonic()))) is not None:
            self.log.append(line)
            if match := re.search(pattern, line):
                return match
        raise AssertionError("the server has ended:\n" + "".join(self.log))

    @cached_property
    def http(self) -> httpx.Client:
        address = self.logged(r"unning on (http://127\.0\.0\.1:\d+)")[1]
        return httpx.Client(base_url=address, timeout=PATIENCE, trust_env=False)

    def end(self) -> None:
        """Wait for the end of the process, and end what reads from it."""
        if "http" in vars(self):
            self.http.close()
        try:
            self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self._reader.join(PATIENCE)
            assert self.process.stderr is not None
            self.process.stderr.close()
        while (line := self._news.get(timeout=PATIENCE)) is not None:
            self.log.append(line)
