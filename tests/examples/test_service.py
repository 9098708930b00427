"""examples/service.py, asked over HTTP: each worker is a process, and all are on one database."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from sqlalchemy import URL, create_engine, text

from eric_sse_sql.contract import ERIC_SSE_2_0
from support.servers import PATIENCE, Server
from support.waiting import until

pytestmark = pytest.mark.skipif(ERIC_SSE_2_0, reason="the service is built on the repositories of eric-sse 2.1")

Event = tuple[str, Any]


class Worker(Server):
    """A worker of the service."""

    def __init__(self, url: URL) -> None:
        super().__init__(url, ["-m", "uvicorn", "service:app", "--port", "0", "--no-access-log"])

    def ask(self, method: str, path: str, body: object = None, **query: str) -> Any:
        """The answer to a question that succeeds."""
        answer = self.http.request(method, path, json=body, params=query)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def refusal(self, method: str, path: str, body: bytes | None = None, **query: str) -> tuple[int, str]:
        """The status and the message of an answer to a question that fails."""
        answer = self.http.request(method, path, content=body, params=query)
        return answer.status_code, answer.json()["message"]

    def subscribe(self, channel_id: str) -> str:
        listener_id: str = self.ask("POST", "/subscribe", channel_id=channel_id)["listener_id"]
        return listener_id

    def dispatch(self, listener_id: str, kind: str, payload: object = None) -> None:
        self.ask("POST", "/dispatch", {"type": kind, "payload": payload}, channel_id="news", listener_id=listener_id)

    def broadcast(self, kind: str, payload: object = None) -> None:
        self.ask("POST", "/broadcast", {"type": kind, "payload": payload}, channel_id="news")

    @contextmanager
    def stream(self, listener_id: str) -> Iterator[Iterator[Event]]:
        """The events of a listener, as they come. At the end the worker has noticed that its client is disconnected."""
        with self.http.stream("GET", f"/stream/news/{listener_id}") as answer:
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
            yield events(answer.iter_lines())
        if self.process.poll() is None:
            self.logged(f"stream of listener {listener_id} has ended")

    def streamed(self, listener_id: str) -> list[Event]:
        """The events of a listener, up to one that is sent to it here: all there are."""
        self.dispatch(listener_id, "end")
        with self.stream(listener_id) as stream:
            return until_end(stream)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)


def events(lines: Iterator[str]) -> Iterator[Event]:
    """Type and data of each server-sent event. Lines that begin with a colon are there to keep the connection open."""
    fields: dict[str, str] = {}
    pings = 0  # one every 15 seconds
    for line in lines:
        if line.startswith(":"):
            pings += 1
            assert pings < 4, "the stream goes on without an event"
        elif line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "event" in fields:
            yield fields["event"], json.loads(fields["data"])
            fields, pings = {}, 0


def until_end(stream: Iterator[Event]) -> list[Event]:
    return list(iter(lambda: next(stream), ("end", None)))


@pytest.fixture
def new_worker() -> Iterator[Callable[[URL], Worker]]:
    """Starts workers. They end with the test."""
    workers: list[Worker] = []
    with ExitStack() as ending:

        def start(url: URL) -> Worker:
            workers.append(Worker(url))
            ending.callback(workers[-1].end)
            return workers[-1]

        yield start
        for worker in workers:
            worker.process.terminate()


@pytest.fixture
def start(new_worker: Callable[[URL], Worker], shared_url: URL) -> Callable[[], Worker]:
    """Starts workers on one database."""
    return lambda: new_worker(shared_url)


def test_a_channel_made_by_one_worker_is_streamed_by_any_in_order_and_once(start: Callable[[], Worker]) -> None:
    first, second = start(), start()
    assert first.ask("PUT", "/create", channel_id="news") == {"channel_id": "news"}
    ada, bob = first.subscribe("news"), first.subscribe("news")
    first.dispatch(ada, "letter", "before she listens")
    with second.stream(ada) as to_ada, second.stream(bob) as to_bob:
        assert next(to_ada) == ("letter", "before she listens")
        for n in range(3):
            for worker, name in ((first, "first"), (second, "second")):
                worker.dispatch(ada, "letter", {"to": "Ada", "by": name, "n": n})
                worker.broadcast("weather", [name, n, "18 °C\r\n"])
        first.broadcast("end")
        sent = [(name, n) for n in range(3) for name in ("first", "second")]
        weather = [("weather", [name, n, "18 °C\r\n"]) for name, n in sent]
        letters = [("letter", {"to": "Ada", "by": name, "n": n}) for name, n in sent]
        assert until_end(to_ada) == [event for pair in zip(letters, weather, strict=True) for event in pair]
        assert until_end(to_bob) == weather
    for n in (1, 2):
        second.broadcast("while no stream is open", n)  # to the worker whose streams have ended
    assert first.streamed(ada) == second.streamed(bob) == [("while no stream is open", n) for n in (1, 2)]
    assert second.streamed(ada) == first.streamed(bob) == []


def test_a_killed_worker_loses_no_message_that_waits(start: Callable[[], Worker]) -> None:
    first, second = start(), start()
    first.ask("PUT", "/create", channel_id="news")
    listening, absent = first.subscribe("news"), first.subscribe("news")
    with first.stream(listening) as stream:
        second.broadcast("n", 0)
        assert next(stream) == ("n", 0)
        for n in (1, 2, 3):
            second.dispatch(absent, "n", n)
        first.kill()
        for n in (4, 5, 6):
            second.broadcast("n", n)
    restarted = start()
    assert restarted.streamed(absent) == [("n", n) for n in range(7)]
    assert restarted.streamed(listening) == [("n", n) for n in (4, 5, 6)]
    assert second.streamed(absent) == second.streamed(listening) == []


def test_a_channel_deleted_by_one_worker_is_unknown_to_the_other(start: Callable[[], Worker]) -> None:
    first, second = start(), start()
    channel = first.ask("PUT", "/create")["channel_id"]
    first.ask("PUT", "/create", channel_id="news")
    kept, gone = first.subscribe("news"), second.subscribe("news")
    assert first.ask("PUT", "/create", channel_id="news") == {"channel_id": "news"}  # once more: nothing changes
    assert sorted(second.ask("GET", "/channels")) == sorted([channel, "news"])
    second.broadcast("weather")
    assert first.ask("GET", "/") == {
        channel: {"listeners": 0, "streams": 0, "waiting": 0},
        "news": {"listeners": 2, "streams": 0, "waiting": 2},
    }

    first.ask("DELETE", f"/listener/news/{gone}")
    assert second.ask("GET", "/")["news"] == {"listeners": 1, "streams": 0, "waiting": 1}
    body = b'{"type": "letter"}'
    assert second.refusal("POST", "/dispatch", body, channel_id="news", listener_id=gone)[0] == 400
    assert second.refusal("GET", f"/stream/news/{gone}")[0] == 404

    old = [kept, *(second.subscribe("news") for _ in range(7))]
    workers = [first, second] * 4
    with ThreadPoolExecutor(4) as threads:  # at once: no new one is lost, and no old one comes back
        deleted = threads.map(lambda worker, each: worker.ask("DELETE", f"/listener/news/{each}"), workers, old)
        new = list(threads.map(lambda worker: worker.subscribe("news"), workers))
        assert list(deleted) == [None] * 8
    assert first.ask("GET", "/")["news"]["listeners"] == second.ask("GET", "/")["news"]["listeners"] == len(new)
    for worker, each in zip(workers, new, strict=True):
        worker.dispatch(each, "letter")

    second.ask("DELETE", "/channel/news")
    assert first.ask("GET", "/channels") == [channel]
    assert first.refusal("GET", f"/stream/news/{new[0]}")[0] == 404
    assert first.refusal("POST", "/broadcast", body, channel_id="news")[0] == 404


def test_the_open_streams_of_what_one_worker_deletes_end_in_the_other(start: Callable[[], Worker]) -> None:
    first, second = start(), start()
    first.ask("PUT", "/create", channel_id="news")
    gone, kept = first.subscribe("news"), first.subscribe("news")
    with second.stream(kept) as to_kept, second.stream(gone) as to_gone:  # which ends first
        first.dispatch(gone, "letter", "the last one")
        assert next(to_gone) == ("letter", "the last one")
        until(lambda: first.ask("GET", "/")["news"]["streams"] == 2)
        first.ask("DELETE", f"/listener/news/{gone}")
        assert list(to_gone) == [("gone", "the listener is deleted")]
        first.dispatch(kept, "letter")
        assert next(to_kept) == ("letter", None)
        first.ask("DELETE", "/channel/news")
        assert list(to_kept) == [("gone", "the listener is deleted")]


def test_a_worker_that_is_told_to_end_ends_its_streams(start: Callable[[], Worker]) -> None:
    worker = start()
    worker.ask("PUT", "/create", channel_id="news")
    listener = worker.subscribe("news")
    with worker.http.stream("GET", f"/stream/news/{listener}") as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("retry")
        worker.process.terminate()
        assert list(events(lines)) == []
        worker.process.wait(PATIENCE)


def test_a_listener_without_a_stream_is_forgotten_after_a_time(
    start: Callable[[], Worker], shared_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORGET_SECONDS", "60")  # so that they are looked for each second
    first, second = start(), start()
    first.ask("PUT", "/create", channel_id="news")
    gone, streaming, new = (first.subscribe("news") for _ in range(3))
    first.broadcast("weather")
    engine = create_engine(shared_url)
    with second.stream(streaming) as stream:
        assert next(stream) == ("weather", None)
        until(lambda: first.ask("GET", "/")["news"]["streams"] == 1)
        with engine.begin() as connection:  # as if a minute had gone by without a stream of one of them
            connection.execute(
                text("UPDATE sse_connections SET created_at = '2000-01-01 00:00:00' WHERE listener_id != :new"),
                {"new": new},
            )
        until(lambda: first.ask("GET", "/")["news"] == {"listeners": 2, "streams": 1, "waiting": 1})
        second.broadcast("end")
        assert until_end(stream) == []
    assert first.refusal("GET", f"/stream/news/{gone}")[0] == 404
    assert second.streamed(new) == [("weather", None)]
    engine.dispose()


def test_an_unknown_or_malformed_request_is_refused_and_the_answer_says_why(start: Callable[[], Worker]) -> None:
    worker = start()
    worker.ask("PUT", "/create", channel_id="news")
    listener, stranger, body = worker.subscribe("news"), "unknown", b'{"type": "letter"}'

    unknown_channel = 404, "there is no channel sports"
    assert worker.refusal("POST", "/subscribe", channel_id="sports") == unknown_channel
    assert worker.refusal("POST", "/broadcast", body, channel_id="sports") == unknown_channel
    assert worker.refusal("POST", "/dispatch", body, channel_id="sports", listener_id=listener) == unknown_channel
    assert worker.refusal("GET", f"/stream/sports/{listener}") == unknown_channel
    assert worker.refusal("DELETE", f"/listener/sports/{listener}") == unknown_channel
    assert worker.refusal("DELETE", "/channel/sports") == unknown_channel

    unknown_listener = 400, "the channel has no such listener"
    assert worker.refusal("POST", "/dispatch", body, channel_id="news", listener_id=stranger) == unknown_listener
    assert worker.refusal("GET", f"/stream/news/{stranger}") == (404, "the channel has no such listener")
    assert worker.refusal("DELETE", f"/listener/news/{stranger}") == unknown_listener

    for bad in ("", "\0", "a b", "x" * 65, "a/b", "é"):
        status, message = worker.refusal("PUT", "/create", channel_id=bad)
        assert (status, message.split()[:3]) == (400, ["channel_id", "must", "be"])
    assert worker.refusal("POST", "/subscribe")[0] == 400
    assert worker.refusal("POST", "/dispatch", body, channel_id="news")[1].startswith("listener_id must be")

    for bad_body, why in (
        (b"", "must be JSON"),
        (b"{", "must be JSON"),
        (b"\xff", "must be JSON"),
        (b'{"type": "n", "payload": NaN}', "must be JSON"),
        (b"[" * 100_000, "must be JSON"),
        (b'{"type": "n", "payload": ' + b"[" * 900 + b"]" * 900 + b"}", "nested too deeply"),
        (b'{"type": "n", "payload": "\\ud800"}', "a lone surrogate"),
        (b'"' + b"x" * (1 << 20) + b'"', "must be at most 1048576 bytes"),
        (b"[]", 'must be {"type": ..., "payload": ...}'),
        (b'{"payload": 1}', 'must be {"type": ..., "payload": ...}'),
        (b'{"type": "n", "load": 1}', 'must be {"type": ..., "payload": ...}'),
        (b'{"type": 1}', "the type must be a string"),
        (b'{"type": ""}', "the type must be a string"),
        (b'{"type": "a\\nb"}', "the type must be a string"),
        (b'{"type": "\\ud800"}', "the type must be a string"),
    ):
        status, message = worker.refusal("POST", "/broadcast", bad_body, channel_id="news")
        assert (status, why in message) == (400, True), message
    assert worker.refusal("GET", "/nothing")[0] == 404
    assert worker.refusal("GET", "/create")[0] == 405
    assert not any("Traceback" in line for line in worker.log)


def test_a_worker_makes_the_tables_and_serves_again_after_an_outage(
    new_worker: Callable[[URL], Worker], empty_url: URL
) -> None:
    worker, engine = new_worker(empty_url), create_engine(empty_url)
    worker.ask("PUT", "/create", channel_id="news")
    listener, unread = worker.subscribe("news"), worker.subscribe("news")
    with worker.stream(listener) as stream:
        with worker.stream(unread), engine.begin() as connection:
            for table in ("sse_channels", "sse_messages"):
                connection.execute(text(f"ALTER TABLE {table} RENAME TO {table}_elsewhere"))
        kind, data = next(stream)
        assert kind == "error" and data
        failed = 503, "the database failed; try again later"
        assert worker.refusal("GET", "/channels") == failed
        assert worker.refusal("PUT", "/create", channel_id="sports") == failed
        worker.logged("RepositoryError: .* tables are missing")  # for the operator alone
        with engine.begin() as connection:
            for table in ("sse_channels", "sse_messages"):
                connection.execute(text(f"ALTER TABLE {table}_elsewhere RENAME TO {table}"))
        assert worker.ask("GET", "/channels") == ["news"]
        worker.dispatch(listener, "letter", "all is well")
        assert next(event for event in stream if event[0] != "error") == ("letter", "all is well")
    with engine.begin() as connection:
        connection.execute(text("DROP VIEW sse_channel_overview"))
    assert worker.refusal("GET", "/") == failed
    engine.dispose()
