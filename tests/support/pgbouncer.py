"""A PgBouncer of the test's own, before the Postgres of the tests."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from sqlalchemy import URL

from support.waiting import until

PGBOUNCER = shutil.which("pgbouncer", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin")))
with_pgbouncer = pytest.mark.skipif(PGBOUNCER is None, reason="no PgBouncer here: nothing is tested through a pooler")


@contextmanager
def pgbouncer(server: URL, mode: str = "transaction", pool_size: int = 2) -> Iterator[URL]:
    """The same database, through a pooler.

    :param mode: for how long a client keeps a session of the server: a transaction, or until it disconnects
    :param pool_size: the sessions that all clients share
    """
    assert PGBOUNCER is not None
    host = server.query.get("host") or server.host or "127.0.0.1"
    port = server.query.get("port") or server.port or 5432
    address = f"host={host} port={port} dbname={server.database} user={server.username}"
    if server.password:
        address += f" password={server.password}"
    with tempfile.TemporaryDirectory(prefix="essql-pb-") as name, socket.create_server(("127.0.0.1", 0)) as free:
        folder, own_port = Path(name), free.getsockname()[1]
        free.close()
        (folder / "users").write_text(f'"{server.username}" ""\n')
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": own_port,
            "unix_socket_dir": "",
            "auth_type": "any",
            "auth_file": folder / "users",
            "pool_mode": mode,
            "default_pool_size": pool_size,
            "max_client_conn": 200,
        }
        lines = [
            "[databases]",
            f"pooled = {address}",
            "[pgbouncer]",
            *(f"{key} = {value}" for key, value in settings.items()),
        ]
        (folder / "pgbouncer.ini").write_text("\n".join(lines))
        user = _unprivileged_user(str(host))
        if user is not None:
            for path in (folder, *folder.iterdir()):
                os.chown(path, user, -1)
        command = [PGBOUNCER, "-q", folder / "pgbouncer.ini"]
        process = subprocess.Popen(command, user=user, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            until(lambda: process.poll() is not None or _answers(own_port))
            yield server.set(host="127.0.0.1", port=own_port, database="pooled", query={})
        finally:
            process.kill()
            process.wait()


def _unprivileged_user(host: str) -> int | None:
    """The user to run it as: PgBouncer refuses root, and the folder of the server's socket may be its owner's alone."""
    if os.getuid() != 0:
        return None
    return os.stat(host).st_uid if host.startswith("/") else pwd.getpwnam("nobody").pw_uid


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False
