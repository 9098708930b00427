"""What eric-sse's ``Queue`` promises: on its own queue in memory, the oracle, and on every queue of this package."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from eric_sse.exception import NoMessagesException
from eric_sse.message import Message, MessageContract, SignedMessage, UniqueMessage
from eric_sse.queues import Queue
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from support.application import Order, Slotted, Versioned
from support.queues import Queues, drain
from support.waiting import PATIENCE, until

PRODUCERS, CONSUMERS, EACH = 3, 3, 40


def test_messages_are_popped_in_the_order_of_their_pushes(queues: Queues) -> None:
    queue = queues.new()
    for n in range(20):
        queue.push(Message("n", n))
    assert drain(queue) == list(range(20))


def test_an_empty_queue_raises_on_every_pop(queues: Queues) -> None:
    queue = queues.new()
    for _ in range(5):
        with pytest.raises(NoMessagesException):
            queue.pop()


def test_a_queue_that_was_emptied_takes_and_returns_later_messages(queues: Queues) -> None:
    queue = queues.new()
    for n in range(3):
        queue.push(Message("n", n))
        assert drain(queue) == [n]


def test_a_message_is_popped_once(queues: Queues) -> None:
    queue = queues.new()
    queue.push(Message("n", 7))
    assert queue.pop().payload == 7
    assert drain(queue) == []


def test_the_same_message_can_be_pushed_again_and_into_other_queues(queues: Queues) -> None:
    one, other, message = queues.new(), queues.new(), Message("n", 7)
    for queue in (one, one, other):
        queue.push(message)
    assert (drain(one), drain(other)) == ([7, 7], [7])


def test_a_queue_returns_only_the_messages_pushed_into_it(queues: Queues) -> None:
    made = [queues.new() for _ in range(3)]
    for n in range(6):
        made[n % 3].push(Message("n", n))
    assert [drain(queue) for queue in made] == [[0, 3], [1, 4], [2, 5]]


# Messages


@pytest.mark.parametrize(
    "payload",
    [None, True, 0, -(2**70), 1.5, float("inf"), "", "text \0 \N{SNOWMAN}", [], [1, [2]], {"a": {"b": [None]}}],
)
def test_a_payload_is_popped_equal(queues: Queues, payload: object) -> None:
    queue = queues.new()
    queue.push(Message("type", payload))  # type: ignore[arg-type]
    popped = queue.pop()
    assert (popped.type, popped.payload, type(popped.payload)) == ("type", payload, type(payload))


def test_messages_of_every_class_are_popped_with_their_class_and_attributes(queues: Queues) -> None:
    queue = queues.new()
    inner = SignedMessage("sender", "inner", {"n": 1})
    pushed: list[MessageContract] = [
        Message("plain", {"n": 1}),
        SignedMessage("sender", "signed", [1]),
        UniqueMessage(message_id="id", message=Message("unique", "text"), sender_id="sender"),
        UniqueMessage(message_id="other", message=inner),
        Order(1, ["a"]),
        Slotted(1.5),
    ]
    for message in pushed:
        queue.push(message)
    popped = [queue.pop() for _ in pushed]
    attributes = ("type", "payload", "sender_id", "id", "number", "items", "weight")
    for before, after in zip(pushed, popped, strict=True):
        assert type(after) is type(before)
        for name in attributes:
            assert getattr(after, name, None) == getattr(before, name, None)


def test_a_message_class_with_a_state_of_its_own_keeps_its_type(queues: Queues) -> None:
    queue = queues.new()
    queue.push(Versioned("type"))
    popped = queue.pop()
    assert (type(popped), popped.type) == (Versioned, "type")


@pytest.mark.parametrize("kind", ["", "a" * 1_000, "a\0b", "\N{SNOWMAN}"])
def test_a_message_type_is_popped_equal(queues: Queues, kind: str) -> None:
    queue = queues.new()
    queue.push(Message(kind))
    assert queue.pop().type == kind


# Several threads


def test_a_message_is_popped_through_another_object_of_the_same_queue(queues: Queues) -> None:
    queue = queues.new()
    queue.push(Message("n", 7))
    assert drain(queues.shared(queue)) == [7]
    assert drain(queue) == []
    queues.shared(queue).push(Message("n", 8))
    assert drain(queue) == [8]


def test_concurrent_consumers_get_each_message_once_and_each_producers_messages_in_order(queues: Queues) -> None:
    queue, is_over = queues.new(), threading.Event()
    popped: list[list[tuple[int, int]]] = [[] for _ in range(CONSUMERS)]
    errors: list[Exception] = []

    def produce(producer: int, own: Queue) -> None:
        for n in range(EACH):
            own.push(Message("n", [producer, n]))

    def consume(consumer: int, own: Queue) -> None:
        while not is_over.is_set():
            try:
                producer, n = own.pop().payload  # type: ignore[misc]
            except NoMessagesException:
                continue
            popped[consumer].append((producer, n))

    def start(work: Callable[[int, Queue], None], number: int) -> threading.Thread:
        def run() -> None:
            try:
                work(number, queues.shared(queue))
            except Exception as error:
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    threads = [start(consume, number) for number in range(CONSUMERS)]
    threads += [start(produce, number) for number in range(PRODUCERS)]
    try:
        until(lambda: errors or sum(map(len, popped)) >= PRODUCERS * EACH, PATIENCE)
    finally:
        is_over.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert errors == []
    assert sorted(pair for each in popped for pair in each) == [(p, n) for p in range(PRODUCERS) for n in range(EACH)]
    for each in popped:
        for producer in range(PRODUCERS):
            numbers = [n for p, n in each if p == producer]
            assert numbers == sorted(numbers)


# Any sequence of calls


class QueuesAndLists(RuleBasedStateMachine):
    """Two queues, and two lists to which the same is done."""

    source: Queues

    @initialize()
    def begin(self) -> None:
        self.queues = [self.source.new(), self.source.new()]
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


def test_any_sequence_of_pushes_and_pops_has_the_results_of_lists(queues: Queues) -> None:
    run_state_machine_as_test(
        type("Machine", (QueuesAndLists,), {"source": queues}),
        settings=settings(
            max_examples=20, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
