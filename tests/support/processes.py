"""What the processes of ``test_processes`` do: each function that takes a :class:`Post` is the life of one process.

Processes communicate through files only: a killed one leaves no lock of ``multiprocessing`` behind.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import count, cycle
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from eric_sse.exception import NoMessagesException, RepositoryError
from eric_sse.listener import MessageQueueListener
from eric_sse.message import Message, MessageContract
from eric_sse.prefabs import SSEChannel

from eric_sse_sql import BlockingSqlQueue, ChannelRepository, Database, SqlQueue, SqlStorageEngine
from eric_sse_sql.contract import ERIC_SSE_2_0, make_connection, register, registered_connections
from support.waiting import PATIENCE, until

# A process is forked from a server that has imported the package and opened nothing: as new as a spawned one, which
# takes most of a second to import it.
_FORK_SERVER = multiprocessing.get_context("forkserver")
_FORK_SERVER.set_forkserver_preload(
    ["eric_sse_sql", "alembic.config", "sqlalchemy.dialects.sqlite", "sqlalchemy.dialects.postgresql.psycopg"]
)


def fork_server() -> ForkServerContext:
    """Start the fork server, unless it runs. It imports the installed package, not the checkout's."""
    folder = Path.cwd()
    os.chdir("/")  # the server's first place to import from is the folder in which it starts
    try:
        forkserver.ensure_running()
    finally:
        os.chdir(folder)
    return _FORK_SERVER


def forked_process(target: Callable[..., object], args: tuple[Any, ...], name: str | None = None) -> BaseProcess:
    """A process of the fork server, not started yet."""
    return fork_server().Process(target=target, args=args, name=name)


@dataclass(frozen=True)
class Post:
    """Where a process works: a database, and a folder in which it keeps a log and looks for signals.

    :param name: of the process, and of its log
    """

    url: str
    folder: Path
    name: str

    def log(self, *words: object) -> None:
        """Write a line that is there whatever happens next to this process."""
        with _opened(self.folder / f"{self.name}.log") as file:
            os.write(file, (" ".join(map(str, words)) + "\n").encode())

    def lines(self) -> list[list[str]]:
        """What was logged."""
        path = self.folder / f"{self.name}.log"
        return [line.split(" ") for line in path.read_text().splitlines()] if path.exists() else []

    def signal(self, name: str) -> None:
        """Give a signal to all processes of the folder."""
        (self.folder / name).touch()

    def has(self, name: str) -> bool:
        """Whether a signal was given."""
        return (self.folder / name).exists()

    def ready(self) -> None:
        """Say so, and wait for the signal that bears the name of this process, or for that to all."""
        self.signal(f"{self.name} is ready")
        until(lambda: self.has("go") or self.has(f"go {self.name}"))


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        yield file
    finally:
        os.close(file)


@contextmanager
def running(life: Callable[..., None], posts: list[Post], *arguments: Any) -> Iterator[list[BaseProcess]]:
    """A process at each post, all of them ready. What is left of them in the end is killed."""
    processes = [forked_process(_live, (life, post, *arguments), post.name) for post in posts]
    try:
        for process in processes:
            process.start()
        for post, process in zip(posts, processes, strict=True):
            until(lambda post=post, process=process: post.has(f"{post.name} is ready") or not process.is_alive())
        yield processes
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join(PATIENCE)


def _live(life: Callable[..., None], *arguments: Any) -> None:
    signal.alarm(PATIENCE)  # ends the process, should the test have come to an end without it
    life(*arguments)


def finished(processes: list[BaseProcess]) -> None:
    """Wait for processes to end by themselves, without fault."""
    for process in processes:
        process.join(PATIENCE)
    assert [process.exitcode for process in processes] == [0] * len(processes)


# Producers


def produce(post: Post, rounds: int, singly: int, together: int) -> None:
    """Push the numbers from 0 on: in each round some one by one, and then some at once."""
    with Database(post.url) as database:
        queue, n = SqlQueue(database, "queue"), 0
        post.ready()
        for _ in range(rounds):
            for _ in range(singly):
                queue.push(Message(post.name, n))
                n += 1
            queue.push_many(Message(post.name, n + i) for i in range(together))
            n += together


def produce_until_killed(post: Post) -> None:
    """Push the numbers from 0 on, and log each as soon as the push has returned."""
    post.ready()
    with Database(post.url) as database:
        queue = SqlQueue(database, "queue")
        for n in count():
            queue.push(Message(post.name, n))
            post.log(n)


# Consumers


def consume(post: Post, at_once: int = 1) -> None:
    """Pop and log messages, until the queue is empty after the signal to stop.

    :param at_once: how many are popped in every other transaction; they are logged after its commit
    """
    with Database(post.url) as database:
        queue = SqlQueue(database, "queue")
        post.ready()
        for number in cycle((1, at_once)):
            is_last = post.has("stop")
            taken = _popped(database, queue, number)
            for message in taken:
                post.log(message.type, message.payload)
            if is_last and not taken:
                return
            if not taken:
                time.sleep(0.005)


def _popped(database: Database, queue: SqlQueue, number: int) -> list[MessageContract]:
    taken: list[MessageContract] = []
    with nullcontext() if number == 1 else database.transaction(), suppress(NoMessagesException):
        while len(taken) < number:
            taken.append(queue.pop())
    return taken


def receive(post: Post, lease: float) -> None:
    """Receive messages until the signal to stop, and log each, with the number of its delivery, before it is
    acknowledged; and log "expired" where the lease was too short."""
    with Database(post.url) as database:
        queue = SqlQueue(database, "queue")
        post.ready()
        while not post.has("stop"):
            try:
                with queue.receive(lease=lease) as delivery:
                    post.log(delivery.payload, delivery.delivery_count)
            except NoMessagesException:
                time.sleep(0.005)
            except RepositoryError as error:
                if "had expired before the message was acknowledged" not in str(error):
                    raise
                post.log("expired")


def pop_one_later(post: Post) -> None:
    """Find a blocking queue empty, and then wait for a message."""
    with Database(post.url) as database:
        queue = BlockingSqlQueue(database, "queue")
        try:
            queue.pop(timeout=0)
        except NoMessagesException:
            post.log("empty")
        post.ready()
        post.log(queue.pop(timeout=PATIENCE).payload)


# Rivals


def commit(post: Post, seconds: float) -> None:
    """Push or pop, as the name of the post says, as fast as it goes, and log how often it went."""
    with Database(post.url) as database:
        queue, commits = SqlQueue(database, "queue"), 0
        act = queue.pop if post.name == "consumer" else lambda: queue.push(Message("m"))
        act()  # the first one connects
        post.ready()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            act()
            commits += 1
        post.log(commits)


# Channels


def repository(database: Database, of_21: bool) -> Any:
    """The repository of channels that either eric-sse asks for."""
    if of_21:
        from eric_sse_sql import SqlSSEChannelRepository

        return SqlSSEChannelRepository(database)
    return ChannelRepository(SqlStorageEngine(database))


CONTRACTS = [False] if ERIC_SSE_2_0 else [False, True]


def subscribe(post: Post, of_21: bool) -> None:
    """Add a listener to a channel, persist it, and log its id."""
    with Database(post.url) as database:
        channels, channel = repository(database, of_21), SSEChannel(channel_id="c")
        listener = MessageQueueListener()
        listener.start()
        register(channel, make_connection(listener, SqlQueue(database), "k"))
        channels.persist(channel)
        post.log(listener.id)
        post.ready()


def stream(post: Post, of_21: bool) -> None:
    """Stream the listener of a channel, and log its messages, up to the one that says that it is the last."""
    with Database(post.url) as database:
        channel = repository(database, of_21).load_one("c")
        ((_, listener, _),) = registered_connections(channel)
        post.ready()

        async def read() -> None:
            async for event in channel.message_stream(listener):
                post.log(event["event"], event["data"])
                if event["event"] == "last":
                    listener.stop()

        asyncio.run(asyncio.wait_for(read(), PATIENCE))
