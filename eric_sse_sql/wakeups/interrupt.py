"""``Interrupt``: a self-pipe that ends the waits of a thread."""

from __future__ import annotations

import selectors
import socket
import threading
from contextlib import suppress


class Interrupt:
    """Ends every wait of one thread, now and later, once another thread has set it.

    The thread holds :attr:`working` except while it waits here: code that holds that lock knows that the thread is
    inside no driver, some of whose locks a forked child would inherit locked for ever.
    """

    def __init__(self) -> None:
        self.working = threading.Lock()
        self._writer, self._reader = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._reader, selectors.EVENT_READ)
        self.is_set = False

    def set(self) -> None:
        """End the current wait and all later ones."""
        self.is_set = True
        with suppress(OSError):
            self._writer.send(b"!")

    def wait(self, seconds: float, beside: int | None = None) -> bool:
        """Wait for a time, or until the interrupt is set or a file descriptor can be read. Whether it can be read."""
        self.working.release()
        try:
            if beside is None:
                self._selector.select(seconds)
                return False
            with selectors.DefaultSelector() as both:
                both.register(self._reader, selectors.EVENT_READ)
                both.register(beside, selectors.EVENT_READ)
                return any(key.fd == beside for key, _ in both.select(seconds))
        finally:
            self.working.acquire()

    def close(self) -> None:
        """Close the sockets."""
        self._selector.close()
        self._writer.close()
        self._reader.close()
