"""A short run of every part that needs no other program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from eric_sse_sql.contract import ERIC_SSE_2_0
from support.catalog import REPOSITORY
from support.waiting import PATIENCE

pytestmark = pytest.mark.skipif(ERIC_SSE_2_0, reason="the torture runs the channels of eric-sse 2.1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder from which the torture runs, without the checkout's package, which would hide the installed one."""
    for name in ("torture", "benchmarks"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    return tmp_path


def run_torture(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torture", "--smoke", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)


# Two runs, each with one server, which take as long as each other.
@pytest.mark.parametrize("parts", [["kills", "crashes", "network"], ["leaks", "failing-calls", "fuzz"]])
def test_a_short_run_finds_nothing_lost_doubled_or_leaked(parts: list[str], folder: Path) -> None:
    done = run_torture(folder, *parts, "--results", folder / "torture.md")
    assert done.returncode == 0, done.stdout + done.stderr
    for part in parts:
        assert f"{part}, {'none' if part == 'fuzz' else 'Postgres'}: ok: " in done.stdout
    report = (folder / "torture.md").read_text()
    assert "Nothing was lost, doubled or leaked." in report
    assert "FAILED" not in report


def test_an_unknown_part_is_refused(folder: Path) -> None:
    done = run_torture(folder, "earthquake")
    assert done.returncode == 2
    assert "there is no part 'earthquake'" in done.stderr
