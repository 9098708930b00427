"""A pooler between the package and the server."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from torture.cluster import Cluster, free_port, wait_for
from torture.databases import POSTGRES, Bench
from torture.outcome import Outcome
from torture.suite import TESTS, run_suite

PROGRAM = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
MODES = "session", "transaction"
POOL_SIZE = 20


def run(bench: Bench) -> Iterator[Outcome]:
    """The whole contract suite through PgBouncer, in session mode and in transaction mode."""
    if bench.cluster is None:
        return
    for mode in MODES:
        outcome = Outcome(f"{POSTGRES}, {mode} mode")
        if not bench.sizes.runs_contract_suite:
            outcome.skipped = "a run of this size has no pooler"
        elif PROGRAM is None:
            outcome.skipped = "PgBouncer is not installed"
        elif not TESTS.exists():
            outcome.skipped = "the tests are not here"
        else:
            with pgbouncer(bench.cluster, mode) as port:
                url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
                run_suite(url, outcome, ERIC_SSE_SQL_TEST_POSTGRES_POOLER="1")
        yield outcome


@contextmanager
def pgbouncer(cluster: Cluster, mode: str) -> Iterator[int]:
    """The port of a PgBouncer before a server."""
    assert PROGRAM is not None
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="essql-torture-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        (folder / "users").write_text('"postgres" ""\n')
        settings = {
            "listen_addr": "127.0.0.1", "listen_port": port, "auth_type": "any", "auth_file": folder / "users",
            "pool_mode": mode, "default_pool_size": POOL_SIZE, "max_client_conn": 500, "unix_socket_dir": "",
            "server_idle_timeout": 1, "ignore_startup_parameters": "extra_float_digits",
        }  # fmt: skip
        lines = "".join(f"{name} = {value}\n" for name, value in settings.items())
        server = f"[databases]\n* = host=127.0.0.1 port={cluster.port} user=postgres\n[pgbouncer]\n"
        (folder / "ini").write_text(server + lines)
        for path in (folder, folder / "users", folder / "ini"):
            if cluster.system_user:
                shutil.chown(path, cluster.system_user)
        process = subprocess.Popen(
            [PROGRAM, "-q", str(folder / "ini")],
            user=cluster.system_user,
            cwd="/",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for(lambda: _accepts(port), 10)
            yield port
        finally:
            process.kill()
            process.wait()


def _accepts(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False
