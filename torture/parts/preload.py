"""Workers that inherit a Database which is in use."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from torture.cluster import free_port, wait_for
from torture.databases import Bench, Target
from torture.outcome import Outcome

WORKERS = 3
START_SECONDS = 60
RESTARTS = 3  # of one worker each


def run(bench: Bench) -> Iterator[Outcome]:
    """gunicorn with preload: its workers use the Database of their parent, and closing theirs closes none of its."""
    for target in bench.targets():
        outcome = Outcome(target.name)
        if not bench.sizes.worker_requests:
            outcome.skipped = "a run of this size has no workers"
        elif importlib.util.find_spec("gunicorn") is None:
            outcome.skipped = "gunicorn is not installed"
        else:
            _measure(target, bench.sizes.worker_requests, outcome)
        yield outcome


def _measure(target: Target, requests: int, outcome: Outcome) -> None:
    port, report, log = free_port(), target.folder / "report", target.folder / "log"
    configuration = target.folder / "gunicorn_configuration.py"
    configuration.write_text("from torture.preloaded import child_exit\n")
    command = [sys.executable, "-m", "gunicorn", "--preload", "--workers", str(WORKERS), "--config", str(configuration)]
    command += ["--bind", f"127.0.0.1:{port}", "--log-level", "error", "torture.preloaded:application"]
    environment = {**os.environ, "TORTURE_URL": target.url, "TORTURE_REPORT": str(report)}
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    try:
        wait_for(lambda: _asked(port) is not None, START_SECONDS)
        before = target.connections()
        answers: Counter[int] = Counter()
        for number in range(requests):
            answer = _asked(port)
            if answer is None:
                outcome.findings.append("a worker does not answer.")
                break
            answers[answer] += 1
            if number % (requests // RESTARTS + 1) == requests // (RESTARTS + 1):
                os.kill(answer, signal.SIGTERM)
                time.sleep(0.5)
        outcome.acknowledged = sum(answers.values())
        outcome.load = f"{WORKERS} workers, of which {RESTARTS} were replaced"
        outcome.faults = RESTARTS
        outcome.figures["workers that have answered"] = str(len(answers))
        _check_parent(report, outcome)
        if target.connections() > before + WORKERS * 4:
            outcome.findings.append(f"the server has {target.connections()} connections, and had {before}.")
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(40)
        if process.poll() is None:
            outcome.findings.append("gunicorn does not end.")
            process.kill()
            process.wait()
    with suppress(TimeoutError):
        wait_for(lambda: target.connections() == 0, 10)
    outcome.connections = target.connections()
    if "Traceback" in log.read_text():
        outcome.findings.append(f"gunicorn has logged: {log.read_text()[-500:]}")


def _check_parent(report: Path, outcome: Outcome) -> None:
    with suppress(TimeoutError):
        wait_for(lambda: report.exists() and len(report.read_text().splitlines()) >= RESTARTS, 10)
    lines = report.read_text().splitlines() if report.exists() else []
    if not lines:
        outcome.findings.append("the parent did not notice the end of a worker.")
    outcome.findings += [f"in the parent, after a worker: {line}" for line in lines if not line.startswith("ok")]


def _asked(port: int) -> int | None:
    """The process that has answered, with its own message or that of another worker."""
    address = f"http://127.0.0.1:{port}/"
    with suppress(OSError), urllib.request.urlopen(address, timeout=10) as found:  # HTTPError is an OSError
        return int(json.load(found)["pid"])
    return None
