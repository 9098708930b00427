"""``status``: what the database has."""

from __future__ import annotations

import argparse
import json
import sys
import time

from eric_sse_sql.cli.database import open_database
from eric_sse_sql.cli.text import WIDTH, age, counted, fitted, pairs, shortened
from eric_sse_sql.overview import busiest_channels, totals
from eric_sse_sql.sql.overview import ChannelStatus, Totals

_COLUMNS = ("CONNECTIONS", 11), ("STREAMING", 9), ("WAITING", 8), ("EVENTS", 8)
_ID_WIDTH = WIDTH - sum(width + 2 for _, width in _COLUMNS)
_CLEAR = "\x1b[H\x1b[2J"


def status(arguments: argparse.Namespace) -> int:
    """Print what the database has: once, or again and again until an interrupt."""
    from eric_sse_sql import migrations  # type: ignore[attr-defined]  # package-dir puts it there

    form = _json if arguments.json else _screen
    clears = arguments.watch is not None and not arguments.json and sys.stdout.isatty()
    with open_database(arguments) as database:
        revision = migrations.newest_revision()
        while True:
            text = form(revision, totals(database), busiest_channels(database, arguments.limit))
            print(f"{_CLEAR}{text}" if clears else text, flush=True)
            if arguments.watch is None:
                return 0
            time.sleep(arguments.watch)


def _screen(revision: str, of_all: Totals, channels: list[ChannelStatus]) -> str:
    waiting = counted(of_all.waiting, "message")
    if of_all.oldest_seconds is not None:
        waiting += f", the first one for {age(of_all.oldest_seconds)}"
    rows: list[tuple[str, object]] = [
        ("Tables", revision),
        ("Channels", of_all.channels),
        ("Connections", of_all.connections),
        ("Streaming", of_all.streaming),
        ("Waiting", waiting),
        ("Events", of_all.events),
        ("Set aside", of_all.set_aside),
    ]
    lines = [pairs(rows), ""]
    if channels:
        lines.append(_line("CHANNEL", *(name for name, _ in _COLUMNS)))
        for each in channels:
            events = "-" if each.events is None else f"{each.events:,}"
            numbers = (f"{number:,}" for number in (each.connections, each.streaming, each.waiting))
            lines.append(_line(each.channel_id, *numbers, events))
    if len(channels) < of_all.channels:
        lines.append(shortened(len(channels), of_all.channels, "channel"))
    return "\n".join(lines).rstrip()


def _line(channel_id: str, *numbers: str) -> str:
    cells = (number.rjust(width) for number, (_, width) in zip(numbers, _COLUMNS, strict=True))
    return "  ".join((fitted(channel_id, _ID_WIDTH), *cells))


def _json(revision: str, of_all: Totals, channels: list[ChannelStatus]) -> str:
    by_channel = [each._asdict() for each in channels]
    return json.dumps({"revision": revision, **of_all._asdict(), "busiest_channels": by_channel})
