"""The command ``eric-sse-sql``, run in the process of the test, or in another one."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import pytest

from eric_sse_sql.cli.main import main
from support.processes import forked_process
from support.waiting import PATIENCE, until


class Done(NamedTuple):
    """What a command has returned and printed."""

    code: int
    out: str
    err: str


Command = Callable[..., Done]


def runner(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command with some arguments, in this process."""

    def run(*arguments: str) -> Done:
        try:
            code = main(arguments)
        except SystemExit as end:
            code = int(end.code or 0)
        return Done(code, *capsys.readouterr())

    return run


class Running(NamedTuple):
    """A command that runs in a process of its own."""

    process: BaseProcess
    out: Path
    err: Path

    def end(self, number: int) -> Done:
        """Send it a signal, and wait for its end."""
        os.kill(self.process.pid or 0, number)
        self.process.join(PATIENCE)
        return Done(self.process.exitcode or 0, self.out.read_text(), self.err.read_text())


@contextmanager
def running(folder: Path, *arguments: str) -> Iterator[Running]:
    """The command in a process of its own, which is killed in the end."""
    command = Running(forked_process(_run, (arguments, folder)), folder / "out", folder / "err")
    try:
        command.process.start()
        until(lambda: command.err.exists() or not command.process.is_alive())
        yield command
    finally:
        command.process.kill()
        command.process.join(PATIENCE)


def _run(arguments: tuple[str, ...], folder: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell in the background ignores
    signal.alarm(PATIENCE)  # ends the process, should the test have come to an end without it
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout, sys.stderr = open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115 - until the process ends
    sys.exit(main(arguments))
