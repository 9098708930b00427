"""Figures as tables that people read, and as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.goals import APPLICATION, LISTENED, OURS, RAW, Figure
from benchmarks.storage import Sizes

_CONTENDERS = (RAW, OURS, LISTENED, APPLICATION)

LEGEND = f"""\
Medians, and in brackets their ratio to the raw driver, which does the same durable work in the same run, in turns.
"{RAW}" is sqlite3 or psycopg in autocommit, with prepared statements and pickled values. "{OURS}" is
`SqlStorageEngine(Database(url))`; "{LISTENED}" is the same while somebody listens to the engine's events, and
"{APPLICATION}" the same on an engine made with SQLAlchemy's defaults. In both, statements go through SQLAlchemy.
A goal is the ratio that "{OURS}" is to reach, and in brackets the one to strive for. Servers run on a core of
their own."""

PEERS_LEGEND = f"""\
Other stores of pickled values in the same run; in brackets how many times as long as {OURS} each takes: above 1,
it is slower. With OFF and "no disk", no commit waits for the disk; with NORMAL, one now and then; with fsync, each."""


def facts(database_versions: Iterable[str]) -> dict[str, str]:
    """What the figures depend on."""
    return {
        "Machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
        "Disk": f"{_time(_flush_seconds())} for a flush",
        "Python": platform.python_version(),
        "SQLAlchemy": version("SQLAlchemy"),
        "psycopg": f"{psycopg.__version__} ({psycopg.pq.__impl__})",
        "Databases": ", ".join(dict.fromkeys(database_versions)),
    }


@dataclass(frozen=True)
class Report:
    """A run.

    :param remarks: what else readers should know
    """

    figures: Sequence[Figure]
    machine: Mapping[str, str]
    sizes: Sizes
    remarks: Sequence[str]

    def markdown(self) -> str:
        """Tables in Markdown, aligned so that they read well as plain text too."""
        sizes = self.sizes
        amount = f"Medians of {sizes.samples:,} operations on one key, {sizes.pages:,} pages or {sizes.scans:,} scans."
        facts = "\n".join(f"- {name}: {fact}" for name, fact in self.machine.items())
        parts = ["# The storage engine against the raw drivers", facts, amount, self._outcome(), LEGEND]
        for database, figures in self._by_database().items():
            parts += [f"## {database}", _table(_own_rows(figures))]
        if self._peers():
            parts += ["## Peers", PEERS_LEGEND]
        for database, figures in self._by_database().items():
            rows = _peer_rows(figures, self._peers())
            parts += [f"### Beside {OURS} on {database}", _table(rows)] if len(rows) > 1 else []
        return "\n\n".join([*parts, *self.remarks]) + "\n"

    def write(self, folder: Path) -> None:
        """Write ``storage.md``, and ``storage.json`` with times in microseconds."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "storage.md").write_text(self.markdown())
        content = {
            "machine": dict(self.machine),
            "sizes": asdict(self.sizes),
            "figures": [_as_json(figure) for figure in self.figures],
            "remarks": list(self.remarks),
        }
        (folder / "storage.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    def _outcome(self) -> str:
        missed = [
            f"- {figure.database}, {figure.operation}: {figure.ratios[OURS]:.2f} instead of {figure.goal.ratio:g}"
            for figure in self.figures
            if figure.goal and figure.verdict == "MISSED"
        ]
        return "\n".join(["Goals missed:", "", *missed]) if missed else "Every goal is met."

    def _by_database(self) -> dict[str, list[Figure]]:
        databases = dict.fromkeys(figure.database for figure in self.figures)
        return {name: [figure for figure in self.figures if figure.database == name] for name in databases}

    def _peers(self) -> list[str]:
        names = dict.fromkeys(name for figure in self.figures for name in figure.medians)
        return [name for name in names if name not in _CONTENDERS]


def _own_rows(figures: Sequence[Figure]) -> list[list[str]]:
    rows = [["operation", *_CONTENDERS, "goal", ""]]
    for figure in figures:
        cells = [_cell(figure.medians.get(name), figure.ratios[name]) for name in _CONTENDERS]
        rows.append([figure.operation, *cells, str(figure.goal or ""), figure.verdict])
    return rows


def _peer_rows(figures: Sequence[Figure], peers: Sequence[str]) -> list[list[str]]:
    rows = [["operation", OURS, *peers]]
    for figure in figures:
        if any(name in figure.medians for name in peers):
            ours = figure.medians[OURS]
            ratios = {name: figure.medians[name] / ours for name in peers if name in figure.medians}
            cells = [_cell(figure.medians[name], ratios[name]) if name in ratios else "" for name in peers]
            rows.append([figure.operation, _time(ours), *cells])
    return rows


def _cell(seconds: float | None, ratio: float) -> str:
    return f"({ratio:.2f})" if seconds is None else f"{_time(seconds)} ({ratio:.2f})"


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.1f} ms"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its head, and whose first column is text and stands to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in (rows[0], rule, *rows[1:])
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _flush_seconds() -> float:
    """What a durable commit waits for, at the least."""
    times = []
    with tempfile.TemporaryFile() as file:
        for _ in range(50):
            file.write(os.urandom(4096))
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def _as_json(figure: Figure) -> dict[str, Any]:
    return {
        "database": figure.database,
        "operation": figure.operation,
        "medians_us": {name: round(seconds * 1e6, 2) for name, seconds in figure.medians.items()},
        "ratios": {name: round(ratio, 3) for name, ratio in figure.ratios.items()},
        "goal": asdict(figure.goal) if figure.goal else None,
        "verdict": figure.verdict,
    }
