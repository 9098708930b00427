"""The contract suite of the tests, on a server of the torture."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from torture.outcome import Outcome

REPOSITORY = Path(__file__).resolve().parent.parent
TESTS = REPOSITORY / "tests"
SUITE_SECONDS = 600
MAX_FINDINGS, MAX_CHARACTERS = 10, 200  # of failed tests in the report


def run_suite(url: str, outcome: Outcome, **environment: str) -> None:
    """Run the tests that need Postgres, and count them.

    :param url: of a database in which they make others
    :param environment: variables that the tests read
    """
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "-n", "0", "-k", "postgres", str(TESTS / "contract")]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "ERIC_SSE_SQL_TEST_POSTGRES_URL": url, **environment},
        capture_output=True,
        text=True,
        timeout=SUITE_SECONDS,
    )
    counts = {what: int(count) for count, what in re.findall(r"(\d+) (passed|failed|error)", done.stdout)}
    outcome.calls, outcome.acknowledged = sum(counts.values()), counts.get("passed", 0)
    outcome.load = f"{outcome.calls} tests"
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    outcome.findings += [line[:MAX_CHARACTERS] for line in failed[:MAX_FINDINGS]]
    if done.returncode and not outcome.findings:
        outcome.findings.append(f"pytest has ended with {done.returncode}: {done.stdout[-300:]}{done.stderr[-300:]}")
