"""The background threads of the package, by their names."""

from __future__ import annotations

import threading
from collections.abc import Callable

WATCHER, NOTIFIER = "eric_sse_sql watcher", "eric_sse_sql notifier"


def background_threads() -> list[threading.Thread]:
    """The background threads of all databases of this process."""
    return [thread for thread in threading.enumerate() if thread.name in (WATCHER, NOTIFIER)]


def in_watcher(act: Callable[[], object]) -> Callable[..., None]:
    """An event listener that calls a function, though only in the thread that polls."""

    def listener(*arguments: object) -> None:
        if threading.current_thread().name == WATCHER:
            act()

    return listener
