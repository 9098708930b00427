"""The directive ``figures``: a table of figures from ``benchmarks/results``, so that no page copies one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
DATABASES = ("SQLite NORMAL", "SQLite FULL", "Postgres")
UNITS = ((1_000_000, "s"), (1_000, "ms"), (1, "µs"))


def time(microseconds: float) -> str:
    """A time with its unit, to two digits at least."""
    size, unit = next((size, unit) for size, unit in UNITS if microseconds >= size or size == 1)
    value = microseconds / size
    return f"{value:.1f} {unit}" if value < 10 else f"{value:,.0f} {unit}"


def cell(figure: dict[str, Any] | None, contender: str) -> str:
    """A median with its ratio to the raw driver, or a value with its unit; empty where it was not measured."""
    if figure is None:
        return ""
    values, medians, ratios = (figure.get(kind) or {} for kind in ("values", "medians_us", "ratios"))
    if contender in values:
        return f"{values[contender]:,.4g} {figure['unit']}".strip()
    parts = [time(medians[contender])] if contender in medians else []
    if contender in ratios:
        parts.append(f"{ratios[contender]:.1f} \N{MULTIPLICATION SIGN}")
    return ", ".join(parts)


class Figures(SphinxDirective):
    """One row for each operation of the content, ``operation`` or ``operation => what the row says``.

    The argument is the name of a suite; ``contender`` is whose figures are shown.
    """

    required_arguments = 1
    has_content = True
    option_spec: ClassVar[Any] = {"contender": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        path = RESULTS / f"{self.arguments[0]}.json"
        self.env.note_dependency(str(path))
        contender = self.options.get("contender", "eric_sse_sql")
        found = {(each["database"], each["operation"]): each for each in json.loads(path.read_text())["figures"]}
        databases = [each for each in DATABASES if any(each == database for database, _ in found)]
        rows = [self.row(["", *databases])]
        for line in self.content:
            operation, _, label = line.partition(" => ")
            cells = [cell(found.get((database, operation)), contender) for database in databases]
            if not any(cells):
                raise ValueError(f"{path.name} has no figure of {contender} for {operation!r}")
            rows.append(self.row([label or operation, *cells]))
        columns = [nodes.colspec(colwidth=width) for width in (3, *(1 for _ in databases))]
        group = nodes.tgroup("", *columns, nodes.thead("", rows[0]), nodes.tbody("", *rows[1:]), cols=len(columns))
        return [nodes.table("", group)]

    def row(self, cells: list[str]) -> nodes.row:
        return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", *self.parse_inline(each)[0])) for each in cells))


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("figures", Figures)
    return {"parallel_read_safe": True}
