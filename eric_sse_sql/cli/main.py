"""``main``: runs a command, and makes an exit code of what it raises."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from alembic.util import CommandError
from eric_sse.exception import InvalidListenerException, RepositoryError

from eric_sse_sql.cli.arguments import make_parser
from eric_sse_sql.cli.text import printable
from eric_sse_sql.contract import ItemNotFound

REFUSED = 1
INTERRUPTED = 130  # 128 and the number of the signal, as shells have it
BROKEN_PIPE = 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit code: 0 when it is done, 1 when the database or its content does not allow
    it (with a line on stderr), 129, 130 or 143 when SIGHUP, SIGINT or SIGTERM has ended it, and 141 when the reader of
    its output has ended. SIGHUP and SIGTERM end all commands but ``tail`` without a return.

    :param arguments: by default those of the process
    :raises SystemExit: with the code 2, for arguments that are wrong
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for an encoding that does not have every character
    parsed = make_parser().parse_args(arguments)
    try:
        code: int = parsed.run(parsed)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit would fail once more
        return BROKEN_PIPE
    except (RepositoryError, ItemNotFound, InvalidListenerException, CommandError) as error:
        print(f"eric-sse-sql: {printable(_text(error))}", file=sys.stderr)
        return REFUSED


def _text(error: Exception) -> str:
    """The text of an error, with the first line of the attached cause, where it refers to that."""
    cause, text = error.__cause__, str(error)
    if cause is None or "attached cause" not in text:
        return text
    return f"{text} ({type(cause).__name__}: {str(cause).partition(chr(10))[0]})"
