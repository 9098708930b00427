"""Processes that call the package until they are told to stop, and the account of all that they did."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from typing import NamedTuple

from eric_sse.message import Message as EventMessage

from eric_sse_sql import Database, SqlQueue, SqlSSEChannelRepository
from torture import roles
from torture.cluster import wait_for
from torture.databases import Target
from torture.journal import DONE, EMPTY, FAILED, GOT, UNKNOWN, Call, Journal, calls, count_done, lines
from torture.outcome import Outcome
from torture.roles import Post

Role = Callable[[Post, Journal], None]
ROLES: dict[str, Role] = {
    "produce": roles.produce,
    "consume": roles.consume,
    "receive": roles.receive,
    "relay": roles.relay,
    "register": roles.register,
    "broadcast": roles.broadcast,
    "listen": roles.listen,
}
IS_KILLED = ("produce", "consume", "receive", "relay", "register", "broadcast")
START_SECONDS = 60
STOP_SECONDS = 60
DRAIN_SECONDS = 60
DRAINED_AT_ONCE = 1_000
READY = "ready"

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torture.roles"])


@dataclass
class Load:
    """The processes of a part on one database.

    :param target: the database
    :param url: how they connect
    :param life_seconds: after which each ends by itself, should this process have been killed
    """

    target: Target
    url: str
    life_seconds: int
    processes: dict[str, tuple[str, BaseProcess]] = field(
        default_factory=dict
    )  # by the name of the post, with the role
    started: Counter[str] = field(default_factory=Counter)
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    kills: int = 0
    began: float = field(default_factory=time.monotonic)

    def start(self, role: str, act: Role | None = None) -> Post:
        """Start a process of a role."""
        number = self.started[role]
        self.started[role] += 1
        post = Post(self.url, self.target.folder, f"{role}-{number}", self.life_seconds)
        process = _context.Process(target=roles.live, args=(act or ROLES[role], post), daemon=True, name=post.name)
        process.start()
        self.processes[post.name] = role, process
        return post

    def kill_one(self) -> None:
        """SIGKILL one of the processes, and start another one of its role."""
        name = self.rng.choice([name for name, (role, _) in self.processes.items() if role in IS_KILLED])
        role, process = self.processes.pop(name)
        process.kill()
        process.join()
        self.kills += 1
        self.start(role)

    def kill_all(self) -> None:
        """SIGKILL all processes but those that stream, at once, and start others."""
        killed = [(name, role, process) for name, (role, process) in self.processes.items() if role in IS_KILLED]
        for _, _, process in killed:
            process.kill()
        for name, role, process in killed:
            process.join()
            del self.processes[name]
            self.start(role)
        self.kills += len(killed)

    def is_running(self) -> bool:
        """Whether all processes are at work: until then, they import modules and keep the machine busy."""
        paths = [self.target.folder / f"{name}.journal" for name in self.processes]
        return all(any(line.what in (DONE, EMPTY, READY) for line in lines(path)) for path in paths)

    def acknowledged(self) -> int:
        """How many calls have returned so far."""
        return count_done(self.target.folder)

    def stop(self) -> list[str]:
        """End all processes. What is wrong: which of them did not end by themselves, or failed."""
        (self.target.folder / "stop").touch()
        findings = self._join([name for name, (role, _) in self.processes.items() if role != "listen"])
        if self.processes:
            with Database(self.target.direct_url) as database:
                repository = SqlSSEChannelRepository(database)
                for channel_id in roles.CHANNELS:
                    repository.load_one(channel_id).broadcast(EventMessage(roles.END))
        return findings + self._join(list(self.processes))

    def close(self) -> None:
        """Kill what is left."""
        for _, process in self.processes.values():
            process.kill()
            process.join()

    def _join(self, names: Iterable[str]) -> list[str]:
        findings, give_up = [], time.monotonic() + STOP_SECONDS
        for name in names:
            _, process = self.processes[name]
            process.join(max(0.1, give_up - time.monotonic()))
            if process.is_alive():
                findings.append(f"{name} does not end.")
                continue
            del self.processes[name]
            if process.exitcode:
                findings.append(f"{name} has ended with exit code {process.exitcode}.")
        return findings


@contextmanager
def load(target: Target, url: str, producers: int, life_seconds: int, *, streams: bool = True) -> Iterator[Load]:
    """All roles at work while the block runs. What is left of them is killed when it ends.

    :param producers: how many push; as many take messages in each way
    """
    with Database(target.direct_url) as database:
        repository = SqlSSEChannelRepository(database)
        for channel_id, replay_seconds in roles.CHANNELS.items():
            channel = repository.create({"channel_id": channel_id, "replay_seconds": replay_seconds})
            for _ in range(roles.LISTENERS):
                channel.add_listener()
            repository.persist(channel)
    made = Load(target, url, life_seconds)
    try:
        if streams:
            made.start("listen")
            path = target.folder / "listen-0.journal"
            wait_for(lambda: any(line.what == READY for line in lines(path)), START_SECONDS)
            made.start("broadcast")
        for role in ("produce", "consume", "receive"):
            for _ in range(producers):
                made.start(role)
        for role in ("relay", "register"):
            made.start(role)
        wait_for(made.is_running, START_SECONDS)
        made.began = time.monotonic()
        yield made
    finally:
        made.close()


class _Pushed(NamedTuple):
    queue: str
    outcome: str


def account(made: Load, outcome: Outcome) -> None:
    """Stop the load, take what is left in the queues, and compare what was sent with what was received."""
    seconds, running = time.monotonic() - made.began, len(made.processes)
    findings = made.stop()
    by_role: dict[str, list[list[Call]]] = defaultdict(list)
    for path in sorted(made.target.folder.glob("*.journal")):
        by_role[path.stem.split("-")[0]].append(list(calls(path)))
    every = [call for each in by_role.values() for journal in each for call in journal]
    outcome.load = f"{running} processes, {seconds:.0f} s"
    outcome.calls = len(every)
    outcome.acknowledged = sum(call.outcome == DONE for call in every)
    outcome.figures["calls that failed"] = str(sum(call.outcome == FAILED for call in every))
    outcome.figures["calls in doubt"] = str(sum(call.outcome == UNKNOWN for call in every))
    ledger = _Ledger(outcome, _pushes(made, by_role["produce"]))
    left = _drained(made.target, findings)
    ledger.check_popped(by_role["consume"], left[roles.POP])
    ledger.check_received(by_role["receive"], left[roles.LEASE])
    ledger.check_relayed(by_role["relay"], left[roles.RELAY], left[roles.RELAYED])
    _check_entries(made.target, by_role["produce"], ledger.delivered, findings)
    _check_channels(made.target, by_role["register"], findings)
    _check_streams(made, by_role["broadcast"], ledger)
    outcome.lost, outcome.doubled, outcome.disordered = ledger.lost, ledger.doubled, ledger.disordered
    if ledger.unexpected:
        findings.append(f"{ledger.unexpected} messages were delivered whose push had failed or was rolled back.")
    outcome.findings += findings


def _pushes(made: Load, journals: list[list[Call]]) -> dict[tuple[str, int], _Pushed]:
    pushed = {}
    names = [path.stem for path in sorted(made.target.folder.glob("produce-*.journal"))]
    for name, journal in zip(names, journals, strict=True):
        for call in journal:
            kind, queue, first, count = call.words
            for number in range(int(first), int(first) + int(count)):
                pushed[name, number] = _Pushed(queue, FAILED if kind == "rolled_back" else call.outcome)
    return pushed


Message = tuple[str, int]  # the name of its producer, and its number


class _Ledger:
    """Compares what was pushed with what was delivered."""

    def __init__(self, outcome: Outcome, pushed: dict[Message, _Pushed]) -> None:
        self._pushed = pushed
        self.outcome = outcome
        self.delivered: set[Message] = set()
        self.lost = self.doubled = self.disordered = self.unexpected = 0

    def check_popped(self, journals: list[list[Call]], left: list[Message]) -> None:
        """A pop that was interrupted may have taken one message; no message is delivered twice."""
        taken = [[_message(call.lines[0].words) for call in each if call.outcome == DONE] for each in journals]
        in_doubt = sum(call.outcome == UNKNOWN for each in journals for call in each)
        self.check_sequences([*taken, left], _interrupted(journals))
        self._check(roles.POP, [message for each in [*taken, left] for message in each], may_lose=in_doubt)

    def check_received(self, journals: list[list[Call]], left: list[Message]) -> None:
        """A message that was acknowledged is never delivered again; one that was not stays."""
        done, first, doubtful = [], [], set()
        for journal in journals:
            got = [(call, _message(line.words)) for call in journal for line in call.lines if line.what == GOT]
            done += [message for call, message in got if call.outcome == DONE]
            doubtful |= {message for call, message in got if call.outcome == UNKNOWN}
            first.append([
                _message(line.words) for call in journal for line in call.lines
                if line.what == GOT and line.words[2] == "1"
            ])  # fmt: skip
        self.check_sequences(first, _interrupted(journals))
        self._check(roles.LEASE, done + left, may_miss=doubtful)

    def check_relayed(self, journals: list[list[Call]], left: list[Message], relayed: list[Message]) -> None:
        """Each message is in one of the two queues, once."""
        self.check_sequences([relayed], _interrupted(journals))
        self._check(roles.RELAY, left + relayed)

    def _check(self, queue: str, found: list[Message], *, may_lose: int = 0, may_miss: Iterable[Message] = ()) -> None:
        counts = Counter(found)
        self.doubled += sum(counts.values()) - len(counts)
        self.delivered |= set(counts)
        of_queue = {message: pushed.outcome for message, pushed in self._pushed.items() if pushed.queue == queue}
        lost = {message for message, outcome in of_queue.items() if outcome == DONE} - set(counts) - set(may_miss)
        self.lost += max(0, len(lost) - may_lose)
        self.unexpected += sum(of_queue.get(message, FAILED) == FAILED for message in counts)

    def check_sequences(self, sequences: Iterable[list[Message]], interrupted: int) -> None:
        """Each sequence has the messages of each producer in order, but for those that a fault has given back."""
        disordered = 0
        for sequence in sequences:
            last: dict[str, int] = {}
            for producer, number in sequence:
                disordered += number < last.get(producer, -1)
                last[producer] = max(number, last.get(producer, -1))
        self.disordered += max(0, disordered - interrupted)


def _interrupted(journals: list[list[Call]]) -> int:
    return sum(call.is_interrupted for journal in journals for call in journal)


def _message(words: tuple[str, ...]) -> Message:
    return words[0], int(words[1])


def _drained(target: Target, findings: list[str]) -> dict[str, list[Message]]:
    """What is left in the queues, after the leases of killed processes have expired."""
    found: dict[str, list[Message]] = {name: [] for name in (roles.POP, roles.LEASE, roles.RELAY, roles.RELAYED)}
    give_up = time.monotonic() + DRAIN_SECONDS
    with Database(target.direct_url) as database:
        queues = {name: SqlQueue(database, name) for name in found}
        while True:
            for name, queue in queues.items():
                while rows := queue.take(DRAINED_AT_ONCE):
                    messages = [queue.decoded(row.message_type, row.message) for row in rows]
                    found[name] += [(message.type, int(str(message.payload))) for message in messages]
            names = ", ".join(f"'{name}'" for name in found)
            ((waiting,),) = target.rows(f"SELECT count(*) FROM sse_messages WHERE queue_id IN ({names})")
            if not waiting:
                return found
            if time.monotonic() > give_up:
                findings.append(f"{waiting} messages can't be taken.")
                return found
            time.sleep(0.2)


def _check_entries(target: Target, journals: list[list[Call]], delivered: set[Message], findings: list[str]) -> None:
    """The entry of a transaction is there exactly where its messages are. What a killed pop took is not known."""
    stored = roles.entries(target.rows)
    wrong = 0
    for path, journal in zip(sorted(target.folder.glob("produce-*.journal")), journals, strict=True):
        for call in journal:
            kind, queue, first, count = call.words
            is_stored = f"{path.stem}/{first}" in stored
            if kind in ("push", "push_many"):
                continue
            messages = {(path.stem, number) for number in range(int(first), int(first) + int(count))}
            if kind == "rolled_back" or call.outcome == FAILED:
                wrong += is_stored
            elif call.outcome == DONE:
                wrong += not is_stored
            elif queue == roles.RELAY:  # in which nothing is lost, whatever was killed
                wrong += is_stored != (messages <= delivered) or is_stored != bool(messages & delivered)
    if wrong:
        findings.append(f"{wrong} transactions were done in part, or not though they were acknowledged.")


def _check_channels(target: Target, journals: list[list[Call]], findings: list[str]) -> None:
    """A channel is stored with all its connections, or not at all."""
    channels = {channel_id for (channel_id,) in target.rows("SELECT id FROM sse_channels")}
    counts = dict(target.rows("SELECT channel_id, count(*) FROM sse_connections GROUP BY channel_id"))
    wrong = 0
    for journal in journals:
        expected: dict[str, bool | None] = {}
        for call in journal:
            kind, channel_id = call.words
            if call.outcome == DONE:
                expected[channel_id] = kind == "persist"
            elif call.outcome == UNKNOWN:
                expected[channel_id] = None
            else:
                expected.setdefault(channel_id, False)
        for channel_id, is_stored in expected.items():
            found = channel_id in channels
            wrong += is_stored not in (None, found)
            wrong += counts.get(channel_id, 0) != (roles.STORED_LISTENERS if found else 0)
    if wrong:
        findings.append(f"{wrong} channels were stored or deleted in part.")


def _check_streams(made: Load, journals: list[list[Call]], ledger: _Ledger) -> None:
    """Each stream has every broadcast once, in order."""
    paths = sorted(made.target.folder.glob("broadcast-*.journal"))
    sent: dict[str, dict[Message, str]] = defaultdict(dict)
    for path, journal in zip(paths, journals, strict=True):
        for call in journal:
            _, channel_id, number = call.words
            sent[channel_id][path.stem, int(number)] = call.outcome
    got: dict[tuple[str, str], list[Message]] = defaultdict(list)
    for line in lines(made.target.folder / "listen-0.journal"):
        if line.what == GOT:
            channel_id, listener_id, *words = line.words
            got[channel_id, listener_id].append(_message(tuple(words)))
    for channel_id, outcomes in sent.items():
        certain = {message for message, outcome in outcomes.items() if outcome == DONE}
        streams = [messages for (of_channel, _), messages in got.items() if of_channel == channel_id]
        ledger.lost += (roles.LISTENERS - len(streams)) * len(certain)
        for messages in streams:
            ledger.lost += len(certain - set(messages))
            ledger.doubled += len(messages) - len(set(messages))
            ledger.unexpected += sum(outcomes.get(message, FAILED) == FAILED for message in messages)
        ledger.check_sequences(streams, 0)


def first_events(made: Load, since: float) -> dict[tuple[str, str], float]:
    """When each stream got its first broadcast that was sent after a time."""
    new: set[tuple[str, Message]] = set()
    for path in made.target.folder.glob("broadcast-*.journal"):
        for call in calls(path):
            done = [line for line in call.lines if line.what == DONE]
            if done and done[0].seconds > since:
                new.add((call.words[1], (path.stem, int(call.words[2]))))
    found: dict[tuple[str, str], float] = {}
    for line in lines(made.target.folder / "listen-0.journal"):
        if line.what == GOT and line.seconds > since:
            channel_id, listener_id, *words = line.words
            if (channel_id, _message(tuple(words))) in new:
                found.setdefault((channel_id, listener_id), line.seconds)
    return found


def recovery_seconds(made: Load, since: float, give_up_seconds: float = 60) -> float | None:
    """How long after a time the last stream got a broadcast that was sent after it; None when one got none."""
    expected = len(roles.CHANNELS) * roles.LISTENERS
    try:
        wait_for(lambda: len(first_events(made, since)) == expected, give_up_seconds, pause=0.3)
    except TimeoutError:
        return None
    return max(first_events(made, since).values()) - since
