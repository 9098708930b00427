"""Wake-ups: who waits for a message is told as soon as there may be one, whichever process has pushed it.

Within a process a push opens the gate of its queue. What others push is noticed by a thread: a sign says that
something was pushed somewhere, and one statement then asks for all queues at once that are watched. It asks
now and then without any sign, too: a sign that is lost costs an interval, and never a message.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from weakref import WeakValueDictionary

from eric_sse_sql.forks import leave_alone
from eric_sse_sql.gates import Gate
from eric_sse_sql.signals import ANSWER_SECONDS, Bell, Signals

LOOK_SECONDS = 1.0  # between two looks, at the most
#: How long a queue that was found empty is taken to be empty without another look, in seconds.
FALLBACK_SECONDS = 2.0
SHARE_OF_LOOKS = 0.2  # of the time of the thread, at most, however much is pushed
PAUSES = 0.1, 1.0  # seconds, the first and the longest, before another try
FORK_SECONDS = 1.0  # for which a fork waits for the thread, at the most

logger = logging.getLogger("eric_sse_sql")


class Outage:
    """Who can't reach the database just now: a log line when the first one fails, and one when none fails any more."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Begin anew, in a forked child: who fails is the parent's, whose threads may have held the lock."""
        self._lock = threading.Lock()
        self._failing: set[object] = set()

    def begins(self, who: object, error: BaseException) -> None:
        """Somebody has failed to ask the database."""
        with self._lock:
            if not self._failing:
                logger.warning("the database can't be asked for messages, and is tried again: %s", type(error).__name__)
            self._failing.add(who)

    def ends(self, who: object) -> None:
        """Somebody has succeeded, or asks no more."""
        with self._lock:
            if who in self._failing:
                self._failing.discard(who)
                if not self._failing:
                    logger.warning("the database can be asked for messages again")


class Wakeups:
    """The wake-ups of a database in this process. Threads may share them.

    :param look: opens those of the gates it is given whose queues hold something
    :param outage: is told when the database can't be reached, and when it can again
    :param signals: makes what gives signs, in the thread that uses it; None where no other thread can look
    """

    def __init__(
        self,
        look: Callable[[Collection[Gate]], None],
        signals: Callable[[Bell], Signals] | None,
        outage: Outage,
    ) -> None:
        self._look = look
        self._make_signals = signals
        self._outage = outage
        self._signals: Signals | None = None
        self._gates: WeakValueDictionary[str, Gate] = WeakValueDictionary()
        self._is_closed = False
        self.renew()

    def renew(self) -> None:
        """Begin anew, in a forked child: the thread and its connection are the parent's."""
        if self._signals is not None:
            leave_alone(self._signals.driver)
            self._signals = None
        self._outage.renew()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._bell: Bell | None = None
        self.trusted_until = 0.0  # on the clock of time.monotonic()
        for gate in self._held():
            gate.renew()

    def rest(self) -> threading.Lock | None:
        """Before a fork: let the thread enter no driver until the lock is released that is returned, if one is."""
        bell = self._bell
        return bell.work if bell is not None and bell.work.acquire(timeout=FORK_SECONDS) else None

    @property
    def are_on(self) -> bool:
        """Whether the gate of a queue that gets a message opens in time, by itself."""
        return time.monotonic() < self.trusted_until

    def gate(self, queue_id: str) -> Gate:
        """The gate of a queue, the same for all who hold it."""
        gate = self._gates.get(queue_id)
        if gate is None:
            with self._lock:
                gate = self._gates.setdefault(queue_id, Gate(queue_id))
        return gate

    def _held(self) -> list[Gate]:
        """All gates that somebody holds. References are copied in one step: threads add gates meanwhile."""
        return [gate for reference in self._gates.valuerefs() if (gate := reference()) is not None]

    def announce(self, queue_ids: Iterable[str]) -> None:
        """Open the gates of queues in which something was committed."""
        if self._gates:
            for queue_id in queue_ids:
                gate = self._gates.get(queue_id)
                if gate is not None:
                    gate.open()

    def start(self) -> None:
        """Notice what other processes push, from now on."""
        if self._thread is not None or self._make_signals is None:
            return
        with self._lock:
            if self._thread is None and not self._is_closed:
                self._bell = Bell()
                self._thread = threading.Thread(
                    target=self._watch, args=(self._bell,), name="eric_sse_sql wake-ups", daemon=True
                )
                self._thread.start()

    def close(self) -> None:
        """End the thread and open all gates: who waits looks once more."""
        with self._lock:
            self._is_closed = True
            self.trusted_until = 0.0
            thread = self._thread
            if self._bell is not None:
                self._bell.ring()
        if thread is not None and thread is not threading.current_thread():
            thread.join(2 * ANSWER_SECONDS)
        for gate in self._held():
            gate.open()

    def _watch(self, bell: Bell) -> None:
        with bell.work:
            self._watch_until_it_rings(bell)
        bell.close()

    def _watch_until_it_rings(self, bell: Bell) -> None:
        pause = PAUSES[0]
        while not bell.has_rung:
            try:
                assert self._make_signals is not None
                self._signals = self._make_signals(bell)
                self._look_at_once()
                self._outage.ends(self)
                pause = PAUSES[0]
                self._look_at_signs(self._signals, bell)
            except Exception as error:
                if bell.has_rung:
                    break
                self._outage.begins(self, error)
                bell.wait(pause)
                pause = min(2 * pause, PAUSES[1])
            finally:
                if self._signals is not None:
                    with suppress(Exception):
                        self._signals.close()
                    self._signals = None

    def _look_at_signs(self, signals: Signals, bell: Bell) -> None:
        while not bell.has_rung:
            next_look = time.monotonic() + LOOK_SECONDS
            while not bell.has_rung and time.monotonic() < next_look:
                if signals.wait(next_look - time.monotonic()):
                    break
            bell.wait(self._look_at_once() * (1 / SHARE_OF_LOOKS - 1))

    def _look_at_once(self) -> float:
        """Look into all queues that are watched. How many seconds it took."""
        began = time.monotonic()
        watched = [gate for gate in self._held() if gate.is_watched]
        if watched:
            self._look(watched)
        self.trusted_until = began + FALLBACK_SECONDS
        return time.monotonic() - began
