"""A proxy between a test and Postgres, which can keep a connection open and silent."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

from sqlalchemy import URL

LISTEN = b"LISTEN"


class FreezingProxy:
    """Forwards connections on 127.0.0.1 to a server, until those that have executed LISTEN are frozen."""

    def __init__(self, server: URL) -> None:
        self._server = server
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._is_over = threading.Event()
        self._is_frozen = False
        self._frozen: set[socket.socket] = set()
        self._ends: list[socket.socket] = []
        self.listening: list[socket.socket] = []  # every connection that has listened, as its client sees it
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> URL:
        """Leads to the server through the proxy."""
        query = {name: value for name, value in self._server.query.items() if name != "host"}
        return self._server.set(host="127.0.0.1", port=self._socket.getsockname()[1], query=query)

    def freeze(self) -> None:
        """Forward nothing more on the connections that have executed LISTEN, and close none."""
        self._frozen |= set(self.listening)

    def freeze_all(self) -> None:
        """Forward nothing more on any connection, present or future, and close none."""
        self._is_frozen = True

    def __enter__(self) -> FreezingProxy:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection, and take no more."""
        self._is_over.set()
        for end in (self._socket, *self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # which ends what a thread waits for, as closing would not
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                server = self._connect()
                self._ends += [client, server]
                threading.Thread(target=self._pump, args=(client, server, client), daemon=True).start()
                threading.Thread(target=self._pump, args=(server, client, client), daemon=True).start()

    def _connect(self) -> socket.socket:
        folder = self._server.query.get("host")
        if isinstance(folder, str) and folder.startswith("/"):
            server = socket.socket(socket.AF_UNIX)
            server.connect(f"{folder}/.s.PGSQL.{self._server.port or 5432}")
            return server
        return socket.create_connection((self._server.host or "127.0.0.1", self._server.port or 5432))

    def _pump(self, source: socket.socket, target: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if source is client and LISTEN in data:
                    self.listening.append(client)
                while (self._is_frozen or client in self._frozen) and not self._is_over.wait(0.05):
                    pass
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
