"""A proxy before Postgres that loses requests and replies, cuts, delays, splits and freezes."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

_REQUESTS = b"QPBEDFS"  # the first byte of what a client sends once it is connected; not of its good-bye


class Proxy:
    """Forwards connections on 127.0.0.1 to a port, with the faults that its attributes say.

    :param port: of the server
    """

    def __init__(self, port: int) -> None:
        self.delay_seconds = 0.0  # the longest delay of what is forwarded
        self.piece_bytes = 0  # the longest piece in which it is forwarded; 0 for as it came
        self.flows = threading.Event()  # nothing is forwarded while it is not set
        self.flows.set()
        self.faults = 0
        self._server_port = port
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._ends: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._requests_left: int | None = None
        self._loses_reply = False
        self._without_reply: set[socket.socket] = set()
        self._cuts_in_reply = False
        threading.Thread(target=self._accept, daemon=True).start()

    def fail_request(self, number: int, *, loses_reply: bool) -> None:
        """Cut the connection of a request to come: before the server gets it, or before the client gets the reply.

        :param number: of the request, from 1
        """
        with self._lock:
            self._requests_left, self._loses_reply = number, loses_reply

    def has_failed(self) -> bool:
        """Whether that request has come. None will fail from now on."""
        with self._lock:
            found = self._requests_left == 0
            self._requests_left = None
            return found

    def cut(self) -> None:
        """Cut all connections."""
        with self._lock:
            ends = list(self._ends)
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # which ends what a thread waits for, as closing would not

    def cut_in_reply(self) -> None:
        """Cut the next connection that gets a reply, in the middle of it."""
        self._cuts_in_reply = True

    def close(self) -> None:
        """Cut all connections, and accept no more."""
        self.flows.set()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._server_port))
                except OSError:
                    client.close()
                    continue
                for end in (client, server):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._lock:
                    self._ends |= {client, server}
                for source, target in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=(source, target, client), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                self.flows.wait()
                if source is client and self._is_lost(data, client):
                    break
                if source is not client:
                    if client in self._without_reply:
                        break  # the server has done what it was asked for
                    if self._cuts_in_reply:
                        self._cuts_in_reply = False
                        target.sendall(data[: len(data) // 2])
                        break
                for piece in self._pieces(data):
                    target.sendall(piece)
        with self._lock:
            self._ends -= {source, target}
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()

    def _is_lost(self, data: bytes, client: socket.socket) -> bool:
        if data[0] not in _REQUESTS:
            return False
        with self._lock:
            if not self._requests_left:
                return False
            self._requests_left -= 1
            if self._requests_left:
                return False
            if self._loses_reply:
                self._without_reply.add(client)
            return not self._loses_reply

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        if self.delay_seconds:
            time.sleep(random.uniform(0, self.delay_seconds))
        size = self.piece_bytes or len(data)
        for at in range(0, len(data), size):
            yield data[at : at + size]
