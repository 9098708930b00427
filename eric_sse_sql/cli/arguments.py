"""The arguments of the command."""

from __future__ import annotations

import argparse
import json
import os
import re
from datetime import timedelta
from typing import Any

from eric_sse_sql.cli import housekeeping, messages, status, tables
from eric_sse_sql.cli.database import SIGNING_KEY, URL
from eric_sse_sql.cli.text import MAX_LIMIT

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_EPILOG = f"""\
exit codes: 0 done; 1 the database or its content does not allow it;
2 wrong arguments; 129, 130, 143 ended by SIGHUP, SIGINT, SIGTERM;
141 the reader of the output has ended

{SIGNING_KEY}: the keys with which the application signs
"""


class _Parser(argparse.ArgumentParser):
    """A parser that asks for the database, whichever command was given."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed = super().parse_args(args, namespace)
        parsed.url = getattr(parsed, "url", None) or os.environ.get(URL)
        parsed.schema = getattr(parsed, "schema", None)
        if not parsed.url:
            self.error(f"which database? give --url, or set {URL}")
        return parsed


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command. What it returns has a function ``run``, which takes it."""
    common = _Parser(add_help=False)  # before or after the command: what is left out sets nothing
    common.add_argument("--url", help=f"of the database; by default, {URL}", default=argparse.SUPPRESS)
    common.add_argument("--schema", help="of the tables, on Postgres", default=argparse.SUPPRESS)
    parser = _Parser(
        "eric-sse-sql",
        description="Looks after the tables of eric_sse_sql.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)

    def add(name: str, help_text: str, run: Any, to: Any = commands) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = to.add_parser(
            name, help=help_text, description=f"{help_text[0].upper()}{help_text[1:]}.", parents=[common]
        )
        made.set_defaults(run=run)
        return made

    upgrade = add("upgrade", "make or migrate the tables", tables.upgrade)
    upgrade.add_argument("revision", metavar="REVISION", nargs="?", default="head", help="by default, the newest one")
    upgrade.add_argument("--sql", action="store_true", help="print the statements instead of running them")

    add("check", "tell whether the tables are those of this release", tables.check)

    of_status = add("status", "show channels, connections and messages", status.status)
    of_status.add_argument("--json", action="store_true", help="as one line of JSON")
    of_status.add_argument("--limit", type=_number, default=20, metavar="N", help="of channels; by default 20")
    of_status.add_argument(
        "--watch", type=_seconds, nargs="?", const=2.0, metavar="SECONDS", help="again every 2 seconds, or so many"
    )

    send = add("send", "send a message to a channel", messages.send)
    send.add_argument("channel", metavar="CHANNEL")
    send.add_argument("type", metavar="TYPE", help="of the message")
    send.add_argument("payload", metavar="JSON", type=_json, help="the payload")
    send.add_argument("--listener", metavar="ID", help="send it to this listener only")

    tail = add("tail", "show the messages of a channel as they come, until an interrupt", messages.tail)
    tail.add_argument("channel", metavar="CHANNEL")
    tail.add_argument("--json", action="store_true", help="each as one line of JSON")
    tail.add_argument(
        "-n", dest="last", type=_number, default=0, metavar="N", help="begin with the last N, if the channel has a log"
    )

    prune = add("prune", "delete what no connection owns any more", housekeeping.prune)
    duration = "such as 90s, 30m, 12h, 7d or 4w"
    prune.add_argument("--older-than", type=_duration, required=True, metavar="AGE", help=duration)
    prune.add_argument(
        "--unseen-for", type=_duration, metavar="AGE", help="delete connections without a stream for so long, too"
    )
    prune.add_argument("--dry-run", action="store_true", help="count, and delete nothing")

    of_set_aside = "list, retry or delete messages that could not be decoded"
    set_aside = commands.add_parser("set-aside", help=of_set_aside, parents=[common])
    actions = set_aside.add_subparsers(title="commands", metavar="COMMAND", dest="action", required=True)
    listing = add("list", "list them, with the reason", housekeeping.list_set_aside, actions)
    listing.add_argument("--limit", type=_number, default=100, metavar="N", help="of messages; by default 100")
    add("retry", "put all of them back to their queues", housekeeping.retry_set_aside, actions)
    deletion = add("delete", "delete them for good", housekeeping.delete_set_aside, actions)
    deletion.add_argument("id", metavar="ID", type=int, nargs="*", help="of a message; by default all")
    deletion.add_argument("--yes", action="store_true", help="do not ask")
    return parser


def _number(text: str) -> int:
    number = int(text) if text.isascii() and text.isdecimal() else -1
    if not 0 <= number <= MAX_LIMIT:
        raise argparse.ArgumentTypeError(f"write a whole number from 0 to {MAX_LIMIT}")
    return number


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86400:
        raise argparse.ArgumentTypeError("write a number of seconds, more than 0")
    return seconds


def _duration(text: str) -> timedelta:
    found = re.fullmatch(r"([0-9]{1,9})([smhdw])", text, re.ASCII)
    if found is None:
        raise argparse.ArgumentTypeError("write a number and a unit: 90s, 30m, 12h, 7d or 4w")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def _json(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(
            f"""the payload is not JSON ({error}); write '"text"' with both kinds of quotes for a text"""
        ) from error
