"""Several processes on one database: no message is lost, duplicated or refused, whichever process is killed."""

from __future__ import annotations

import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from eric_sse.exception import NoMessagesException
from eric_sse.message import Message
from sqlalchemy import URL, text

from eric_sse_sql import BlockingSqlQueue, Database, SqlQueue, SqlStorageEngine
from support.processes import (
    CONTRACTS,
    PATIENCE,
    Post,
    commit,
    consume,
    finished,
    fork_server,
    pop_one_later,
    produce,
    produce_until_killed,
    receive,
    repository,
    running,
    stream,
    subscribe,
)
from support.waiting import until

PROCESSES, EACH = 4, 500


def work(url: str, number: int) -> list[int]:
    """Store as many values, and take as many messages, as a process is to."""
    taken = []
    with Database(url) as database:
        storage, queue = SqlStorageEngine(database), SqlQueue(database, "queue")
        for n in range(EACH):
            storage.upsert(f"{number}/{n}", (number, n))
            taken.append(queue.pop().payload)
    return taken  # type: ignore[return-value]


def test_four_processes_that_write_and_pop_neither_lose_nor_duplicate_a_message(shared_url: URL) -> None:
    url = shared_url.render_as_string(hide_password=False)
    with Database(shared_url) as database:
        queue = SqlQueue(database, "queue")
        with database.transaction():
            for n in range(PROCESSES * EACH):
                queue.push(Message("n", n))
        with ProcessPoolExecutor(PROCESSES, fork_server()) as pool:
            taken = list(pool.map(work, [url] * PROCESSES, range(PROCESSES)))
        assert sorted(n for each in taken for n in each) == list(range(PROCESSES * EACH))
        assert all(each == sorted(each) for each in taken)
        stored = sorted(SqlStorageEngine(database).fetch_all())
    assert stored == [(number, n) for number in range(PROCESSES) for n in range(EACH)]


@pytest.fixture
def post(shared_url: URL, tmp_path: Path) -> Post:
    """The post of the test itself."""
    return post_at(shared_url, tmp_path)


def post_at(url: URL, folder: Path) -> Post:
    (folder / "posts").mkdir()
    return Post(url.render_as_string(hide_password=False), folder / "posts", "test")


def posts(post: Post, kind: str, number: int) -> list[Post]:
    """Posts at the same place for a number of processes."""
    return [Post(post.url, post.folder, f"{kind}-{n}") for n in range(number)]


def drained(queue: SqlQueue) -> Iterator[Message]:
    while True:
        try:
            yield queue.pop()  # type: ignore[misc]
        except NoMessagesException:
            return


def killed_at(process: BaseProcess, at: Post, lines: int) -> None:
    """Kill a process as soon as it has logged so many lines, wherever it then is; or soon, if others are faster."""
    with suppress(TimeoutError):
        until(lambda: len(at.lines()) >= lines, seconds=10)
    process.kill()
    process.join(PATIENCE)
    assert process.exitcode == -signal.SIGKILL


# Accounting


def test_two_producers_and_four_consumers_neither_lose_nor_duplicate_nor_reorder_a_message(post: Post) -> None:
    rounds, singly, together = 40, 25, 100
    each = rounds * (singly + together)
    at_producers, at_consumers = posts(post, "producer", 2), posts(post, "consumer", 4)
    with (
        running(consume, at_consumers, 30) as consumers,
        running(produce, at_producers, rounds, singly, together) as producers,
    ):
        post.signal("go")
        finished(producers)
        post.signal("stop")
        finished(consumers)
    taken = [[(producer, int(n)) for producer, n in at.lines()] for at in at_consumers]
    with Database(post.url) as database:
        left = [(message.type, message.payload) for message in drained(SqlQueue(database, "queue"))]
    counted = Counter(message for consumer in [*taken, left] for message in consumer)
    pushed = {(at.name, n) for at in at_producers for n in range(each)}
    assert len(pushed) == 10_000
    assert (pushed - counted.keys(), counted.keys() - pushed) == (set(), set())  # lost, unexpected
    assert [message for message, times in counted.items() if times > 1] == []
    for consumer in taken:
        for producer in at_producers:
            numbers = [n for name, n in consumer if name == producer.name]
            assert numbers == sorted(numbers)


def test_one_consumer_sees_the_messages_of_each_of_four_producers_in_their_order(post: Post) -> None:
    at_producers = posts(post, "producer", 4)
    seen: dict[str, list[object]] = {at.name: [] for at in at_producers}
    with running(produce, at_producers, 10, 25, 10) as producers, Database(post.url) as database:
        queue = BlockingSqlQueue(database, "queue")
        post.signal("go")
        for _ in range(4 * 350):
            message = queue.pop(timeout=PATIENCE)
            seen[message.type].append(message.payload)
        finished(producers)
        assert len(queue) == 0
    assert seen == {at.name: list(range(350)) for at in at_producers}


# Kills

KILLS, SURVIVORS, MESSAGES = 6, 2, 1_200


@contextmanager
def consumers_killed(
    post: Post, life: Callable[..., None], *arguments: object
) -> Iterator[tuple[list[Post], list[BaseProcess]]]:
    """Consumers of a full queue, some of which are killed after a random number of messages.

    Yields all their posts, and those processes that live.
    """
    with Database(post.url) as database:
        SqlQueue(database, "queue").push_many(Message("m", n) for n in range(MESSAGES))
    at = posts(post, "consumer", KILLS + SURVIVORS)
    with running(life, at, *arguments) as processes:
        post.signal("go")
        for one, process in zip(at, processes[:KILLS], strict=False):
            killed_at(process, one, random.randint(1, 60))
        yield at, processes[KILLS:]


def test_a_killed_consumer_that_pops_loses_one_message_at_most(post: Post) -> None:
    with consumers_killed(post, consume) as (at, survivors):
        post.signal("stop")
        finished(survivors)
    taken = [int(n) for each in at for _, n in each.lines()]
    with Database(post.url) as database:
        taken += [message.payload for message in drained(SqlQueue(database, "queue"))]  # type: ignore[misc]
    assert len(taken) == len(set(taken))
    assert set(taken) <= set(range(MESSAGES))
    assert MESSAGES - len(taken) <= KILLS  # popped, and not logged


def test_a_killed_consumer_that_receives_loses_no_message(post: Post) -> None:
    with Database(post.url) as database, consumers_killed(post, receive, 1.0) as (at, survivors):
        until(lambda: rows(database) == 0)
        post.signal("stop")
        finished(survivors)
    lines = [line for each in at for line in each.lines()]
    deliveries = Counter((int(line[0]), int(line[1])) for line in lines if line != ["expired"])
    assert {n for n, _ in deliveries} == set(range(MESSAGES))
    assert set(deliveries.values()) == {1}  # no two consumers ever held one lease
    doubled = len(deliveries) - MESSAGES  # of consumers that were killed after the work and before the acknowledgement
    assert doubled <= KILLS + lines.count(["expired"])


def rows(database: Database) -> int:
    with database.engine.connect() as connection:
        return connection.scalar(text("SELECT count(*) FROM sse_messages"))  # type: ignore[return-value]


def test_a_push_that_has_returned_survives_the_kill_of_its_producer(post: Post) -> None:
    at_producers = posts(post, "producer", 12)
    with running(produce_until_killed, at_producers) as producers:
        for at, producer in zip(at_producers, producers, strict=True):  # each finds what the one before has left
            post.signal(f"go {at.name}")
            killed_at(producer, at, random.randint(1, 60))
    found: dict[str, list[object]] = {at.name: [] for at in at_producers}
    with Database(post.url) as database:
        for message in drained(SqlQueue(database, "queue")):
            found[message.type].append(message.payload)
    for at in at_producers:
        acknowledged = len(at.lines())
        assert found[at.name] in (list(range(acknowledged)), list(range(acknowledged + 1)))


# Fairness


@pytest.mark.parametrize("rivals", [("producer", "consumer"), ("producer", "other producer")])
def test_on_sqlite_two_processes_that_write_in_a_loop_share_the_lock_fairly(
    tmp_path: Path, rivals: tuple[str, str]
) -> None:
    post = post_at(URL.create("sqlite", database=str(tmp_path / "test.db")), tmp_path)
    with Database(post.url) as database:
        database.upgrade()
        SqlQueue(database, "queue").push_many(Message("m") for _ in range(30_000))  # it never runs dry
        with database.engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
    at = [Post(post.url, post.folder, name) for name in rivals]
    with running(commit, at, 2.0) as processes:
        post.signal("go")
        finished(processes)
    commits = [int(each.lines()[0][0]) for each in at]
    assert min(commits) >= sum(commits) / 5


# Channels


@pytest.mark.parametrize("of_21", CONTRACTS)
def test_a_listener_that_one_process_persisted_is_streamed_by_another(post: Post, of_21: bool) -> None:
    ((at_front,), (at_back,)) = posts(post, "front", 1), posts(post, "back", 1)
    with running(subscribe, [at_front], of_21) as front:
        post.signal("go")
        finished(front)
    with running(stream, [at_back], of_21) as back, Database(post.url) as database:
        channel = repository(database, of_21).load_one("c")
        for kind, payload in (("first", 1), ("second", 2), ("last", 3)):
            channel.dispatch(at_front.lines()[0][0], Message(kind, payload))
        finished(back)
    assert at_back.lines() == [["first", "1"], ["second", "2"], ["last", "3"]]


def test_a_blocking_queue_wakes_when_another_process_pushes(post: Post) -> None:
    (at_consumer,) = posts(post, "consumer", 1)
    with running(pop_one_later, [at_consumer]) as consumers, Database(post.url) as database:
        post.signal("go")
        SqlQueue(database, "queue").push(Message("m", "hello"))
        finished(consumers)
    assert at_consumer.lines() == [["empty"], ["hello"]]
