"""``SqlQueue``: first in, first out, at most once, for any number of processes."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from conftest import Statements, table_counts
from eric_sse.exception import NoMessagesException, RepositoryError
from eric_sse.message import Message, SignedMessage, UniqueMessage
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from sqlalchemy import text

from eric_sse_sql import Database, SqlQueue

Record = Callable[[Database], Statements]


def drain(queue: SqlQueue) -> list[object]:
    payloads = []
    while True:
        try:
            payloads.append(queue.pop().payload)
        except NoMessagesException:
            return payloads


def test_messages_come_out_in_the_order_they_went_in(database: Database) -> None:
    queue = SqlQueue(database)
    for n in range(20):
        queue.push(Message("n", n))
    assert drain(queue) == list(range(20))


def test_push_and_pop_are_one_statement_each(database: Database, statements: Record) -> None:
    queue, seen = SqlQueue(database), statements(database)
    queue.push(Message("m"))
    assert len(seen) == 1
    queue.pop()
    assert len(seen) == 2
    with pytest.raises(NoMessagesException):
        queue.pop()
    assert len(seen) == 3


def test_every_message_class_of_eric_sse_comes_back(database: Database) -> None:
    queue = SqlQueue(database)
    queue.push(Message("plain", {"n": 1}))
    queue.push(SignedMessage("sender", "signed", [1]))
    queue.push(UniqueMessage(message_id="id", message=Message("unique", "text"), sender_id="sender"))
    plain, signed, unique = queue.pop(), queue.pop(), queue.pop()
    assert (plain.type, plain.payload) == ("plain", {"n": 1})
    assert (signed.sender_id, signed.payload) == ("sender", [1])  # type: ignore[attr-defined]
    assert (unique.id, unique.sender_id, unique.payload) == ("id", "sender", "text")  # type: ignore[attr-defined]


def test_queues_of_one_id_share_their_messages(database: Database) -> None:
    SqlQueue(database, "shared").push(Message("m", 1))
    SqlQueue(database, "Shared").push(Message("m", 2))
    assert drain(SqlQueue(database, "shared")) == [1]
    assert drain(SqlQueue(database, "shared2")) == []


def test_each_queue_has_an_id_of_its_own(database: Database) -> None:
    assert SqlQueue(database).id != SqlQueue(database).id
    assert SqlQueue(database, "").id == ""
    with pytest.raises(RepositoryError, match="a queue id must be a str"):
        SqlQueue(database, 7)  # type: ignore[arg-type]


def test_a_message_that_can_not_be_read_stays_at_its_place(database: Database) -> None:
    queue = SqlQueue(database)
    for n in range(3):
        queue.push(Message("m", n))
    with database.engine.begin() as connection:
        good = connection.scalar(text("SELECT message FROM sse_messages ORDER BY id LIMIT 1"))
        first = connection.scalar(text("SELECT min(id) FROM sse_messages"))
        damage = text("UPDATE sse_messages SET message = :blob WHERE id = :id")
        connection.execute(damage, {"blob": good[:-5], "id": first})
    for _ in range(2):
        with pytest.raises(RepositoryError, match="damaged"):
            queue.pop()
        assert table_counts(database)["sse_messages"] == 3
    with database.engine.begin() as connection:
        connection.execute(damage, {"blob": good, "id": first})
    assert drain(queue) == [0, 1, 2]


def test_a_message_that_can_not_be_stored_is_not_pushed(database: Database) -> None:
    queue = SqlQueue(database)
    with pytest.raises(RepositoryError, match=r"function .* can't be stored"):
        queue.push(Message("m", lambda: None))  # type: ignore[arg-type]
    assert table_counts(database)["sse_messages"] == 0


@pytest.mark.parametrize("kind", ["a\0b", "\ud800", "x" * 1_000, 7, None])
def test_any_message_type_can_be_pushed(database: Database, kind: str) -> None:
    queue = SqlQueue(database)
    queue.push(Message(kind))
    assert queue.pop().type == kind


def test_people_see_the_type_of_a_message(database: Database) -> None:
    SqlQueue(database, "q").push(Message("greeting", "hello"))
    with database.engine.connect() as connection:
        row = connection.execute(text("SELECT queue_id, message_type, created_at FROM sse_messages")).one()
    assert row[:2] == ("q", "greeting") and row[2] is not None


def test_numbers_of_messages_are_never_used_again(database: Database) -> None:
    queue = SqlQueue(database)
    numbers = []
    for _ in range(3):
        queue.push(Message("m"))
        with database.engine.connect() as connection:
            numbers.append(connection.scalar(text("SELECT max(id) FROM sse_messages")))
        queue.pop()
    assert numbers == sorted(set(numbers))


def test_threads_share_a_queue_and_no_message_is_lost_or_doubled(database: Database) -> None:
    queue, taken, lock = SqlQueue(database), list[object](), threading.Lock()

    def produce(who: int) -> None:
        for n in range(50):
            queue.push(Message("m", (who, n)))

    def consume() -> None:
        while len(taken) < 100:
            try:
                message = queue.pop()
            except NoMessagesException:
                continue
            with lock:
                taken.append(message.payload)

    threads = [threading.Thread(target=produce, args=(who,)) for who in range(2)]
    threads += [threading.Thread(target=consume) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(taken) == [(who, n) for who in range(2) for n in range(50)]  # type: ignore[type-var]


class LikeAList(RuleBasedStateMachine):
    """Two queues are two lists, whatever is done to them."""

    database: Database

    @initialize()
    def begin(self) -> None:
        self.queues = [SqlQueue(self.database), SqlQueue(self.database)]
        self.lists: list[list[int]] = [[], []]
        self.pushed = 0

    @rule(which=st.integers(0, 1))
    def push(self, which: int) -> None:
        self.pushed += 1
        self.queues[which].push(Message("m", self.pushed))
        self.lists[which].append(self.pushed)

    @rule(which=st.integers(0, 1))
    def pop(self, which: int) -> None:
        if self.lists[which]:
            assert self.queues[which].pop().payload == self.lists[which].pop(0)
        else:
            with pytest.raises(NoMessagesException):
                self.queues[which].pop()


def test_any_sequence_of_pushes_and_pops_is_that_of_lists(database: Database) -> None:
    machine = type("Machine", (LikeAList,), {"database": database})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=20, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
