"""``prune`` and ``set-aside``."""

from __future__ import annotations

import argparse
import sys
import textwrap

from eric_sse_sql.cli.database import open_database
from eric_sse_sql.cli.text import PICKLED, WIDTH, age, counted, pairs, printable, shortened
from eric_sse_sql.database import Pruned
from eric_sse_sql.message_codec import PICKLE_START, content_of
from eric_sse_sql.sql.messages import SetAsideMessage

_KINDS = {
    "messages": "messages of queues without a connection",
    "connections": "connections without a live stream",
    "set_aside": "messages set aside",
    "events": "expired events",
    "message_ids": "message ids",
}


def prune(arguments: argparse.Namespace) -> int:
    """Delete what no connection owns any more, or count it."""
    ages = {"older_than": arguments.older_than, "unseen_for": arguments.unseen_for}
    with open_database(arguments) as database:
        if arguments.dry_run:
            print("would delete:", _counts(database.count_prunable(**ages)), sep="\n")
            return 0
        progress = Progress()
        try:
            pruned = database.prune(**ages, on_progress=progress.add)
        finally:
            progress.end()
        print("deleted:", _counts(pruned), sep="\n")
        return 0


def _counts(pruned: Pruned) -> str:
    return pairs([(f"  {kind}", getattr(pruned, name)) for name, kind in _KINDS.items()])


class Progress:
    """A line on stderr with the number of rows that are deleted so far, where that is a terminal."""

    def __init__(self) -> None:
        self._rows = 0
        self._is_shown = sys.stderr.isatty()

    def add(self, rows: int) -> None:
        """Count the rows of a transaction."""
        self._rows += rows
        if self._is_shown:
            print(f"\rdeleted {counted(self._rows, 'row')}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Remove the line."""
        if self._is_shown:
            print(f"\r{'':{WIDTH - 1}}\r", end="", file=sys.stderr, flush=True)


def list_set_aside(arguments: argparse.Namespace) -> int:
    """Print the messages that were set aside."""
    with open_database(arguments) as database:
        found = database.list_set_aside(count=arguments.limit)
        number = database.count_set_aside()
    if not number:
        print("no message is set aside")
    for each in found:
        print(_described(each))
    if len(found) < number:
        print(shortened(len(found), number, "message"))
    return 0


def _described(message: SetAsideMessage) -> str:
    head = f"{message.id}  {age(message.age_seconds)} ago  queue {message.queue_id}  type {message.message_type}"
    lines = [printable(head), *_wrapped(_content(message.head)), *_wrapped(printable(message.reason))]
    return "\n".join(lines)


def _content(head: bytes) -> str:
    """The beginning of a message as it is stored, where it is text; nothing is decoded."""
    content = content_of(head)
    return PICKLED if content.startswith(PICKLE_START) else printable(content.decode(errors="replace"))


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="    ", max_lines=6)


def retry_set_aside(arguments: argparse.Namespace) -> int:
    """Put the messages that were set aside back to their queues."""
    with open_database(arguments) as database:
        print(f"put back {counted(database.retry_set_aside(), 'message')}")
    return 0


def delete_set_aside(arguments: argparse.Namespace) -> int:
    """Delete messages that were set aside, once the user has confirmed it."""
    with open_database(arguments) as database:
        ids = arguments.id or None
        number = database.count_set_aside() if ids is None else len(ids)
        if number and not arguments.yes and not _confirmed(f"delete {counted(number, 'message')} for good?"):
            print("nothing is deleted; --yes confirms it", file=sys.stderr)
            return 1
        deleted = database.delete_set_aside(ids)
    print(f"deleted {counted(deleted, 'message')}")
    if ids is not None and deleted < len(set(ids)):
        print(f"{len(set(ids)) - deleted} of the ids are of no message that is set aside", file=sys.stderr)
        return 1
    return 0


def _confirmed(question: str) -> bool:
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
