"""Calls of asyncio tasks, in threads of the package's own."""

from __future__ import annotations

import asyncio
import threading
from asyncio import CancelledError
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from typing import Any, Generic, TypeVar

from eric_sse_sql.database import Database
from eric_sse_sql.execution.transactions import Delegation

Result = TypeVar("Result")
Entered = TypeVar("Entered")


class TaskCall(Generic[Result]):
    """A call in a thread, as part of the transaction that the running task is in.

    Where the task is cancelled while the call waits for a thread, it is not made, unless it must be. Where the call
    runs then, it goes on to its end, and its result is undone. In a transaction, the cancellation waits for that: a
    transaction can't end while a statement of it runs.

    :param database: whose threads are used
    :param call: what is called
    :param undo: undoes a result, in a thread; None where nothing is to be undone
    :param delegation: of the task, where several calls belong together
    :param must_run: whether it is made also where the task is cancelled before, as what ends a transaction is
    """

    def __init__(
        self,
        database: Database,
        call: Callable[[], Result],
        undo: Callable[[Result], object] | None = None,
        delegation: Delegation | None = None,
        must_run: bool = False,
    ) -> None:
        background = database.background
        self._is_in_transaction = database.in_transaction()
        self._threads = background.transaction_threads if self._is_in_transaction else background.call_threads
        self._call = call
        self._undo = undo
        self._must_run = must_run
        self._lock = threading.Lock()  # of the next two
        self._is_abandoned = False
        self._has_result = False
        self.delegation = delegation or Delegation()
        #: Done when the call has ended and, where the task was cancelled, its result is undone.
        self.future: Future[Result] = self._threads.submit(self.delegation.run, self._run)

    async def result(self) -> Result:
        """The result, unless the task is cancelled."""
        awaited = self.future
        ended = _ended(awaited)
        try:
            await asyncio.shield(ended)
        except BaseException as error:
            self._abandon()
            while self._is_in_transaction and isinstance(error, CancelledError) and not self.future.done():
                if awaited is not self.future:  # the call has ended, and its result is being undone
                    awaited = self.future
                    ended = _ended(awaited)
                with suppress(CancelledError):  # anyio cancels again in each turn of the loop
                    await asyncio.shield(ended)
            raise
        return self.future.result()

    def _run(self) -> Result:
        result = self._call()
        with self._lock:
            self._has_result = True
            is_abandoned = self._is_abandoned
        if is_abandoned and self._undo is not None:
            self._undo(result)
        return result

    def _abandon(self) -> None:
        """Undo the result, or don't make the call."""
        if not self._must_run and self.future.cancel():
            return
        with self._lock:
            self._is_abandoned = True
            has_result = self._has_result
        if has_result and self._undo is not None:
            self.future = self._threads.submit(self._undo_late, self.future, self._undo)

    def _undo_late(self, called: Future[Result], undo: Callable[[Result], object]) -> Result:
        result = called.result()
        self.delegation.run(undo, result)
        return result


async def done(future: Future[Any]) -> None:
    """Wait until a call in a thread has ended. The call goes on where the wait is cancelled."""
    await _ended(future)


def _ended(future: Future[Any]) -> asyncio.Future[None]:
    """A future of the running event loop, which is done when a call in a thread has ended."""
    loop = asyncio.get_running_loop()
    ended = loop.create_future()

    def end() -> None:
        if not ended.done():
            ended.set_result(None)

    def wake(_: object) -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(end)

    future.add_done_callback(wake)
    return ended


async def call_in_thread(database: Database, call: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function in a thread, as part of the transaction that the running task is in."""
    return await TaskCall(database, lambda: call(*arguments)).result()


@asynccontextmanager
async def left_in_thread(
    database: Database, manager: AbstractContextManager[Entered], delegation: Delegation | None = None
) -> AsyncIterator[None]:
    """Leave a context manager that was entered in a thread, in a thread."""

    def leave(error: BaseException | None) -> TaskCall[bool | None]:
        arguments = (None, None, None) if error is None else (type(error), error, error.__traceback__)
        return TaskCall(database, lambda: manager.__exit__(*arguments), delegation=delegation, must_run=True)

    try:
        yield
    except BaseException as error:
        await leave(error).result()
        raise
    await leave(None).result()


def leave_cancelled(manager: AbstractContextManager[Entered]) -> None:
    """Leave a context manager whose block was cancelled before it began. In a thread."""
    error = CancelledError()
    manager.__exit__(type(error), error, None)
