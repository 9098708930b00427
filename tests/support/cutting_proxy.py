"""A proxy between a test and Postgres, which loses the reply to one request, and the connection with it."""

from __future__ import annotations

import socket
from contextlib import suppress

from support.freezing_proxy import FreezingProxy

COMMIT = b"COMMIT\0"


class CuttingProxy(FreezingProxy):
    """Forwards connections, until the reply to a request that holds a given text is due: it cuts that connection."""

    _text: bytes | None = None
    _cut: frozenset[socket.socket] = frozenset()

    def __enter__(self) -> CuttingProxy:
        return self

    def lose_reply_to(self, text: bytes) -> None:
        """Lose the reply to the next request that holds a text."""
        self._text = text

    @property
    def has_lost_reply(self) -> bool:
        """Whether that request has come."""
        return self._text is None

    def _pump(self, source: socket.socket, target: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if source is client and self._text is not None and self._text in data:
                    self._text = None
                    self._cut |= {client}
                if source is not client and client in self._cut:
                    break  # the server has done what it was asked for
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
