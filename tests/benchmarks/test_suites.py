"""Short runs of the benchmarks, without their optional peers."""

from __future__ import annotations

import ast
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import eric_sse_sql
from eric_sse_sql.contract import ERIC_SSE_2_0

REPOSITORY = Path(__file__).parent.parent.parent
BENCHMARKS = REPOSITORY / "benchmarks"

OPTIONAL_MODULES = (
    "diskcache",
    "eric_redis_queues",
    "kombu",
    "litequeue",
    "matplotlib",
    "persistqueue",
    "procrastinate",
    "redis",
    "sqlitedict",
)
RUN = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({OPTIONAL_MODULES}))  # None makes an import fail
runpy.run_module("benchmarks", run_name="__main__")
"""

pytestmark = pytest.mark.skipif(ERIC_SSE_2_0, reason="the benchmarks measure the channels of eric-sse 2.1")


def run_benchmarks(*arguments: object, path: Path) -> subprocess.CompletedProcess[str]:
    """Run the benchmarks as if no optional package were installed.

    :param path: replaces the PATH, so that no redis-server is found
    """
    folder = path / "without the package"  # the checkout's own would hide the installed one
    folder.mkdir(exist_ok=True)
    if not (folder / "benchmarks").exists():
        (folder / "benchmarks").symlink_to(BENCHMARKS)
    command = [sys.executable, "-c", RUN, *map(str, arguments)]
    environment = {**os.environ, "PATH": str(path)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def kept_results() -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (BENCHMARKS / "results").iterdir()}


# Few runs, since each starts Python and its servers; the other operations on Postgres take too long for a test.
SHORT_RUNS: list[tuple[str, dict[str, list[str]]]] = [
    (
        "sqlite-normal",
        {
            "storage": ["one-key", "prefix-page", "fetch-all"],
            "queues": ["one-message", "depth", "throughput"],
            "channels": ["channel", "others", "listeners"],
        },
    ),
    (
        "sqlite-normal",
        {
            "streams": ["idle", "latency", "load", "recovery"],
            "fanout": ["calls", "live", "topics", "comeback", "long-log", "http"],
        },
    ),
    (
        "postgres",
        {
            "storage": ["one-key", "fetch-all"],
            "queues": ["one-message"],
            "channels": ["channel"],
            "streams": ["notify"],
            "fanout": ["calls", "long-log"],
        },
    ),
]


@pytest.mark.parametrize(
    ("database", "operations"), SHORT_RUNS, ids=lambda part: part if isinstance(part, str) else "-".join(part)
)
def test_suites_run_without_their_peers_and_without_pictures(
    database: str, operations: dict[str, list[str]], tmp_path: Path
) -> None:
    kept, results = kept_results(), tmp_path / "results"
    chosen = itertools.chain(*operations.values())
    arguments = (*operations, "--smoke", "--database", database, "--results", results, "--operation", *chosen)
    done = run_benchmarks(*arguments, path=tmp_path)
    for suite in operations:
        report = (results / f"{suite}.md").read_text()
        figures = json.loads((results / f"{suite}.json").read_text())["figures"]
        assert report in done.stdout
        assert "(no disk) is left out: eric_redis_queues is not installed." in report
        assert figures and all(figure["medians_us"] or figure["ratios"] or figure["values"] for figure in figures)
        assert ".png" not in report
        if suite in ("storage", "queues"):
            # The engine of an application stands before that of a URL.
            compared = [columns for columns in columns_of(report) if "raw driver" in columns]
            assert compared and all(columns[:3] == CONTENDERS for columns in compared)
    assert re.search("[a-z]+.png is left out: matplotlib is not installed.", done.stderr)
    assert not list(results.glob("*.png"))
    assert kept_results() == kept


CONTENDERS = ["raw driver", "application's own engine", "eric_sse_sql"]


def columns_of(report: str) -> list[list[str]]:
    """The names of the columns of each table of a report, without the first."""
    heads = [line for line in report.splitlines() if line.startswith("| operation ")]
    return [[cell.strip() for cell in head.strip("|").split("|")][1:] for head in heads]


def test_peers_can_be_left_out_by_name(tmp_path: Path) -> None:
    arguments = ("storage", "--smoke", "--operation", "fetch-all", "--database", "sqlite-normal")
    some = run_benchmarks(*arguments, "--without", "diskcache", "Redis", path=tmp_path).stdout
    assert "sqlitedict (OFF) is left out" in some
    assert "diskcache" not in some and "Redis" not in some
    assert "left out" not in run_benchmarks(*arguments, "--without", "all", path=tmp_path).stdout


def test_benchmarks_import_only_public_names() -> None:
    imported = {
        (node.module, alias.name)
        for path in BENCHMARKS.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "eric_sse_sql"
        for alias in node.names
    }
    assert imported
    assert imported <= {("eric_sse_sql", name) for name in eric_sse_sql.__all__}


def test_a_comparison_measures_each_installation_and_finds_the_slower_one(tmp_path: Path) -> None:
    slower = another_installation(tmp_path)
    arguments = ("compare", "storage", "--before", sys.executable, "--after", slower, "--smoke")
    done = run_benchmarks(*arguments, "--database", "sqlite-normal", "--results", tmp_path / "results", path=tmp_path)
    content: dict[str, Any] = json.loads((tmp_path / "results" / "comparison.json").read_text())
    before, after = (content["installations"][name]["eric_sse_sql"] for name in ("before", "after"))
    assert Path(before) == Path(str(eric_sse_sql.__file__))
    assert Path(after) == tmp_path / "site" / "eric_sse_sql" / "__init__.py"
    assert f"- after: eric_sse_sql {after}" in done.stdout
    verdicts = {(each["operation"], each["engine"]): each["verdict"] for each in content["measures"]}
    assert verdicts["fetch_one", "eric_sse_sql"] == "SLOWER"
    assert verdicts["fetch_one", "application's own engine"] == "SLOWER"


def another_installation(folder: Path) -> Path:
    """An interpreter with a copy of the package whose ``fetch_one`` takes 10 milliseconds longer."""
    site = folder / "site"
    shutil.copytree(REPOSITORY / "eric_sse_sql", site / "eric_sse_sql")
    shutil.copytree(REPOSITORY / "migrations", site / "eric_sse_sql" / "migrations")
    with (site / "eric_sse_sql" / "__init__.py").open("a") as module:
        module.write(
            "import time\n"
            "_fetch_one = SqlStorageEngine.fetch_one\n"
            "SqlStorageEngine.fetch_one = lambda *arguments: (time.sleep(0.01), _fetch_one(*arguments))[1]\n"
        )
    interpreter = folder / "python"
    interpreter.write_text(f'#!/bin/sh\nPYTHONPATH="{site}:$PYTHONPATH" exec "{sys.executable}" "$@"\n')
    interpreter.chmod(0o755)
    return interpreter
