"""The examples, run as a reader runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from sqlalchemy import URL

from eric_sse_sql import Database
from support.catalog import table_counts

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=EXAMPLES, env=environment, capture_output=True, text=True, timeout=60)


def test_the_demonstration_loses_no_message(shared_url: URL) -> None:
    done = run("demo.py", "--url", shared_url.render_as_string(hide_password=False))
    assert (done.returncode, done.stderr) == (0, "")
    for line in (
        "killed (SIGKILL)",
        "letter  6",
        "Translator Bob: 'FOR ALL, NUMBER 1', 'FOR ALL, NUMBER 2', 'FOR ALL, NUMBER 3'",
        "Reader     Ada: 'for Ada, number 1', 'for all, number 1'",
        "Every message arrived once, in order, with its listener",
    ):
        assert line in done.stdout
    with Database(shared_url) as database:
        assert set(table_counts(database).values()) == {0}


def test_the_demonstration_makes_its_own_database() -> None:
    assert run("demo.py").returncode == 0


def test_the_demonstration_fails_when_a_message_is_missing(tmp_path: Path) -> None:
    script = (EXAMPLES / "demo.py").read_text()
    thief = script.replace("def deliver(url: str) -> bool:", "def deliver(url: str) -> bool:\n    steal(url)", 1)
    thief = thief.replace(
        "def expected()",
        "def steal(url):\n"
        "    with Database(url) as database, database.engine.begin() as connection:\n"
        "        connection.execute(text('DELETE FROM sse_messages WHERE id IN (SELECT max(id) FROM sse_messages)'))\n"
        "def expected()",
        1,
    )
    (tmp_path / "demo.py").write_text(thief)
    (tmp_path / "listeners.py").write_text((EXAMPLES / "listeners.py").read_text())
    done = run(str(tmp_path / "demo.py"))
    assert done.returncode == 1
    assert "NOT every message arrived" in done.stdout
