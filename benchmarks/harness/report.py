"""Writes figures as Markdown tables, as JSON and as a picture."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.figures import OURS, RAW, Figure
from benchmarks.harness.optional_peers import PeerMissing
from benchmarks.harness.picture import draw
from benchmarks.harness.suite import Suite

LEGEND = f"""\
Medians, and in brackets their ratio to the raw driver, which does the same durable work in the same run, in turns.
"{RAW}" is sqlite3 or psycopg in autocommit, with prepared statements and pickled values. {{}} A goal bounds the ratio
of "{OURS}", where the row names no other; in brackets stands a stricter goal to strive for. Servers run on a core of
their own."""

PEERS_LEGEND = f"""\
{{}} All in the same run; in brackets the ratio of each peer's time to that of {OURS}: above 1, the peer is slower. With
OFF and "no disk", no commit waits for the disk; with NORMAL, only checkpoints do; with FULL and fsync, every commit
does."""

WIDTH = 120


@dataclass(frozen=True)
class Report:
    """The figures of a suite in one run.

    :param machine: the machine and the versions, by label
    :param remarks: about peers that are left out
    """

    suite: Suite
    figures: Sequence[Figure]
    machine: Mapping[str, str]
    sizes: Any
    remarks: Sequence[str]

    def markdown(self) -> str:
        """The report in Markdown, with aligned tables."""
        suite, peers = self.suite, self._peers()
        facts = "\n".join(f"- {name}: {fact}" for name, fact in self.machine.items())
        amount, legend = paragraph(suite.amount(self.sizes)), paragraph(self._legend())
        parts = [f"# {suite.title}", facts, amount, self._outcome(), legend]
        for database, figures in self._by_database().items():
            parts += [f"## {database}", table(_own_rows(figures, suite.contenders))]
        if peers:
            parts += ["## Peers", paragraph(PEERS_LEGEND.format(suite.peers_legend))]
        for database, figures in self._by_database().items():
            rows = _peer_rows(figures, peers)
            parts += [f"### Beside {OURS} on {database}", table(rows)] if len(rows) > 1 else []
        return "\n\n".join([*parts, *self.remarks]) + "\n"

    def write(self, folder: Path) -> None:
        """Write the report, the figures as JSON with times in microseconds, and the picture where there are curves."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "machine": dict(self.machine),
            "sizes": asdict(self.sizes),
            "figures": [_as_json(figure) for figure in self.figures],
            "remarks": list(self.remarks),
        }
        (folder / f"{self.suite.name}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        picture = folder / f"{self.suite.name}.png"
        shown = f"\n![{self.suite.title}]({picture.name})\n" if self._draw(picture) else ""
        (folder / f"{self.suite.name}.md").write_text(self.markdown() + shown)

    def _draw(self, picture: Path) -> bool:
        try:
            return draw(self.figures, self._peers(), picture)
        except PeerMissing as reason:
            print(f"{picture.name} is left out: {reason}.", file=sys.stderr)
            return False

    def _legend(self) -> str:
        return LEGEND.format(self.suite.legend) if RAW in self.suite.contenders else self.suite.legend

    def _outcome(self) -> str:
        missed = [
            f"- {figure.database}, {figure.operation}: {figure.judged_value:.2f} instead of {_goal(figure)}"
            for figure in self.figures
            if figure.is_missed
        ]
        return "\n".join(["Goals missed:", "", *missed]) if missed else "Every goal is met."

    def _by_database(self) -> dict[str, list[Figure]]:
        databases = dict.fromkeys(figure.database for figure in self.figures)
        return {name: [figure for figure in self.figures if figure.database == name] for name in databases}

    def _peers(self) -> list[str]:
        names = dict.fromkeys(name for figure in self.figures for name in figure.medians)
        return [name for name in names if name not in self.suite.contenders]


def paragraph(text: str) -> str:
    """Wrap a text at the width of the report."""
    return textwrap.fill(" ".join(text.split()), WIDTH, break_long_words=False, break_on_hyphens=False)


def _own_rows(figures: Sequence[Figure], contenders: Sequence[str]) -> list[list[str]]:
    rows = [["operation", *contenders, "goal", ""]]
    for figure in figures:
        cells = [_cell(figure, name) for name in contenders]
        rows.append([figure.operation, *cells, _goal(figure), figure.verdict])
    return rows


def _peer_rows(figures: Sequence[Figure], peers: Sequence[str]) -> list[list[str]]:
    here = [name for name in peers if any(name in figure.medians for figure in figures)]
    rows = [["operation", OURS, *here]]
    for figure in figures:
        if any(name in figure.medians for name in here):
            ours = figure.medians[OURS]
            cells = [
                f"{_amount(figure, name)} ({figure.medians[name] / ours:.2f})" if name in figure.medians else ""
                for name in here
            ]
            rows.append([figure.operation, _amount(figure, OURS), *cells])
    return rows


def _goal(figure: Figure) -> str:
    return f"{figure.goal or ''} {figure.unit if figure.goal else ''}".strip()


def _cell(figure: Figure, name: str) -> str:
    if name in figure.values:
        return f"{_number(figure.values[name])} {figure.unit}".strip()
    ratio = f"({figure.ratios[name]:.2f})" if name in figure.ratios else ""
    return " ".join(filter(None, [_amount(figure, name), ratio]))


def _amount(figure: Figure, name: str) -> str:
    """The time, the rate and the memory of a contender; empty where only the ratio is known."""
    if name not in figure.medians:
        return ""
    seconds = figure.medians[name]
    if figure.is_rate:
        return f"{1 / seconds:,.0f}/s"
    grown = f", {figure.memory[name] / 1e6:,.0f} MB" if name in figure.memory else ""
    return f"{format_time(seconds)}{grown}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2f}"


def format_time(seconds: float) -> str:
    """Seconds in microseconds or milliseconds, with the unit."""
    return f"{seconds * 1e6:.1f} µs" if seconds < 1e-3 else f"{seconds * 1e3:,.1f} ms"


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its head, and the first column is aligned left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in (rows[0], rule, *rows[1:])
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _as_json(figure: Figure) -> dict[str, Any]:
    content: dict[str, Any] = {
        "database": figure.database,
        "operation": figure.operation,
        "medians_us": {name: round(seconds * 1e6, 2) for name, seconds in figure.medians.items()},
        "ratios": {name: round(ratio, 3) for name, ratio in figure.ratios.items()},
        "goal": asdict(figure.goal) if figure.goal else None,
        "verdict": figure.verdict,
    }
    if figure.values:
        content["values"] = {name: round(value, 3) for name, value in figure.values.items()}
        content["unit"] = figure.unit
    if figure.memory:
        content["memory_bytes"] = dict(figure.memory)
    return content
