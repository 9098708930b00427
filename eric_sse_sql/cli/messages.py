"""``send`` and ``tail``: the messages of a channel of any class."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from types import FrameType
from typing import NamedTuple

from eric_sse.exception import RepositoryError
from eric_sse.listener import MessageQueueListener
from eric_sse.message import Message

from eric_sse_sql.cli.database import SIGNING_KEY, open_database
from eric_sse_sql.cli.text import PICKLED, printable
from eric_sse_sql.database import Database
from eric_sse_sql.errors import repository_errors
from eric_sse_sql.fanout import Fanout, LogFanout, QueueFanout
from eric_sse_sql.identity_map import IdentityMap
from eric_sse_sql.keys import new_id, validate_key
from eric_sse_sql.plain_json import unchecked
from eric_sse_sql.queues import SqlQueue
from eric_sse_sql.repositories.store import ChannelStore, ConnectionRecord
from eric_sse_sql.sql import connections, entries, events
from eric_sse_sql.sql.connections import StoredChannel
from eric_sse_sql.sql.events import Event, LogHead
from eric_sse_sql.sql.messages import TakenMessage
from eric_sse_sql.streams.event_log import context_of, log_of
from eric_sse_sql.wakeups.queue_watch import QueueWatch
from eric_sse_sql.wakeups.watcher import FALLBACK_SECONDS

BATCH = 100  # messages that one statement reads
BATCH_BYTES = 8 * 1024 * 1024
STOP_SECONDS = 0.2  # in which a signal ends a wait
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Shown(NamedTuple):
    """A message, as ``tail`` prints it."""

    position: int | None  # in the log of the channel; None where it has none
    listener_id: str | None  # of the only listener that gets it; None for all
    type: str
    payload: str | None  # as JSON; None where it can't be shown so


def send(arguments: argparse.Namespace) -> int:
    """Give a message to all listeners of a channel, or to one."""
    message = Message(arguments.type, arguments.payload)
    with open_database(arguments) as database:
        fanout = _fanout(database, arguments.channel)
        if arguments.listener is None:
            fanout.broadcast(message)
        else:
            fanout.dispatch(arguments.listener, message)
    return 0


def tail(arguments: argparse.Namespace) -> int:
    """Print the messages of a channel as they come, until a signal."""
    channel_id = arguments.channel
    with open_database(arguments) as database, stopping() as stop:
        has_log = _has_log(database, channel_id)
        if has_log:
            shown = _of_log(database, channel_id, arguments.last, stop)
        else:
            shown = _of_queue(database, channel_id, stop)
        form = _json if arguments.json else _line
        with closing(shown):  # before the database is closed
            for each in shown:
                print(form(each), flush=True)
    return 128 + stop.signal


class Stop:
    """The signal that has asked for the end; 0 before."""

    def __init__(self) -> None:
        self.signal = 0

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler of the signals. A statement that runs is finished before the command ends."""
        self.signal = number


@contextmanager
def stopping() -> Iterator[Stop]:
    """Let signals ask for the end."""
    stop = Stop()
    before = {number: signal.signal(number, stop.note) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _has_log(database: Database, channel_id: str) -> bool:
    """Whether a channel that is stored has a log.

    :raises RepositoryError: when there is no such channel, and when it is signed in another way than the command signs:
        the application could not read what the command writes
    """
    executor = database.executor
    with repository_errors("the channel can't be looked up"):
        rows = executor.run(connections.CHANNEL_ALONE, channel_id=validate_key("a channel id", channel_id))
        logs = executor.run(events.LAST_POSITIONS, channel_ids=executor.dialect.list_value([channel_id]))
    if not rows:
        raise RepositoryError(f"no channel {channel_id} is stored in the database")
    channel = StoredChannel._make(rows[0])
    try:
        database.codec.verify(channel.value, entries.CONTEXT + channel.entry_key)
    except RepositoryError as error:
        raise RepositoryError(f"{error}; the command takes the key from {SIGNING_KEY}") from error
    return bool(logs)


def _fanout(database: Database, channel_id: str) -> Fanout:
    has_log = _has_log(database, channel_id)
    held = IdentityMap(channel_id, has_log=has_log)
    held.store = ChannelStore(database)
    return LogFanout(log_of(database, channel_id), held) if has_log else QueueFanout(database, channel_id, held)


def _of_queue(database: Database, channel_id: str, stop: Stop) -> Generator[Shown, None, None]:
    """The messages of a temporary listener, which is deleted at the end."""
    store, queue = ChannelStore(database), SqlQueue(database)
    connection = ConnectionRecord(new_id(), MessageQueueListener(), queue)
    queue.note_listener(channel_id, connection.listener.id)
    opened = database.watcher.presence.open(str(connection.id))
    try:
        store.persist_connection(connection, channel_id)
        _announce(channel_id)
        database.background.poller.start()
        while not stop.signal:
            version = queue.watch.arm()
            rows = queue.take(BATCH, BATCH_BYTES)
            for row in rows:
                yield _shown(database, None, None, row, queue.context)
            if opened.is_deleted:
                raise RepositoryError(f"channel {channel_id} was deleted")
            if not rows:
                _wait(queue.watch, version, stop)
    finally:
        database.watcher.presence.close(opened)
        store.delete_connection(str(connection.id))


def _of_log(database: Database, channel_id: str, last: int, stop: Stop) -> Generator[Shown, None, None]:
    """The events of a channel's log, for all its listeners. Nothing is written."""
    watch = database.watcher.watch_channel(channel_id)
    with repository_errors("the events can't be read"):
        ((position,),) = database.executor.run(events.TAIL_START, channel_id=channel_id, count=last, bytes=BATCH_BYTES)
    database.background.poller.start()
    _announce(channel_id)
    epoch, token = None, None
    while not stop.signal:
        version = watch.arm((position, token))
        with repository_errors("the events can't be read"):
            rows = database.executor.run(
                events.AFTER, channel_id=channel_id, after=position, count=BATCH, bytes=BATCH_BYTES
            )
        if not rows:  # nothing was ever broadcast, or the channel is deleted
            _has_log(database, channel_id)
            _wait(watch, version, stop)
            continue
        head = LogHead._make(rows[0][: len(LogHead._fields)])
        if epoch not in (None, head.epoch) or head.last_position < position:
            position = 0  # another log: the channel was deleted and made again, or restored from a backup
            epoch = head.epoch
            continue
        epoch = head.epoch
        found = [each for row in rows if (each := Event(*row[len(LogHead._fields) :])).position is not None]
        for event in found:
            position, token = event.position, event.token
            context = context_of(channel_id, event.listener_id)
            yield _shown(database, event.position, event.listener_id, event, context)
        if not found:
            token = head.last_token if position == head.last_position else token
            _wait(watch, version, stop)


def _announce(channel_id: str) -> None:
    """Say that every message from now on is shown."""
    print(f"waiting for messages of channel {printable(channel_id)}; Ctrl-C ends it", file=sys.stderr, flush=True)


def _shown(
    database: Database, position: int | None, listener_id: str | None, row: TakenMessage | Event, context: str
) -> Shown:
    """The message of a row. Its payload is not shown where it is no plain data, or can't be decoded: its class is the
    application's own, it is damaged, or it is signed with another key."""
    payload = None
    with suppress(RepositoryError, TypeError, ValueError, RecursionError):
        message = database.message_codec.decode(row.message_type, row.message, context, database)
        payload = unchecked(message.payload)
    return Shown(position, listener_id, row.message_type, payload)


def _wait(watch: QueueWatch, version: int, stop: Stop) -> None:
    """Wait until there may be news, or a signal has come."""
    give_up = time.monotonic() + FALLBACK_SECONDS
    while not stop.signal and watch.version == version and time.monotonic() < give_up:
        watch.wait_for_change(version, STOP_SECONDS)


def _line(shown: Shown) -> str:
    position = [] if shown.position is None else [str(shown.position)]
    listener = [] if shown.listener_id is None else [f"to {shown.listener_id}"]
    return printable("  ".join((*position, *listener, shown.type, shown.payload or PICKLED)))


def _json(shown: Shown) -> str:
    payload = None if shown.payload is None else json.loads(shown.payload)
    return json.dumps({**shown._asdict(), "payload": payload, "is_shown": shown.payload is not None})
