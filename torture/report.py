"""Writes the counts of all parts as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.harness.report import paragraph, table
from torture.outcome import MAX_GROWTH_BYTES, Outcome

HEAD = (
    "part", "database", "calls", "faults", "bad inputs", "acknowledged", "lost", "doubled", "out of order",
    "connections", "files", "threads", "memory", "",
)  # fmt: skip
LEGEND = f"""\
Real databases and real processes. "Acknowledged" counts the calls that have returned. Lost, doubled and out of order
are messages beyond what the README promises, as the journals of all processes and what is left in the tables tell.
Connections, files and threads are those left behind; memory is what a process has grown by after the first third of its
work, and fails from {MAX_GROWTH_BYTES / 1e6:g} MB on. An empty cell was not counted."""


def markdown(machine: Mapping[str, str], results: Sequence[tuple[str, str, Sequence[Outcome]]]) -> str:
    """The report.

    :param results: the name of each part, what it does, and its outcomes
    """
    rows: list[Sequence[str]] = [HEAD]
    notes, findings = [], []
    for name, about, outcomes in results:
        details = []
        for outcome in outcomes:
            rows.append(_row(name, outcome))
            findings += [f"- {name}, {outcome.database}: {finding}" for finding in outcome.findings]
            figures = [outcome.load, *(f"{what}: {figure}" for what, figure in outcome.figures.items())]
            if outcome.skipped is not None:
                figures = [f"skipped: {outcome.skipped}"]
            details.append(f"  - {outcome.database}: {'; '.join(filter(None, figures))}")
        notes.append("\n".join([f"- **{name}**: {about}", *details]))
    facts = "\n".join(f"- {label}: {fact}" for label, fact in machine.items())
    has_failed = any(outcome.has_failed for _, _, outcomes in results for outcome in outcomes)
    verdict = "\n".join(["Found:", "", *findings]) if findings else "Some counts are not 0: see below."
    parts = ["# Under faults", facts, verdict if has_failed else "Nothing was lost, doubled or leaked.",
             paragraph(LEGEND), table(rows), "\n".join(notes)]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def line(name: str, outcome: Outcome) -> str:
    """An outcome in one line."""
    if outcome.skipped is not None:
        return f"{name}, {outcome.database}: skipped: {outcome.skipped}"
    cells = zip(HEAD[2:-1], _row(name, outcome)[2:-1], strict=True)
    counts = [f"{cell} {what}" for what, cell in cells if cell]
    figures = [f"{what} {figure}" for what, figure in outcome.figures.items()]
    return f"{name}, {outcome.database}: {outcome.verdict}: {', '.join(counts + figures + outcome.findings)}"


def _row(name: str, outcome: Outcome) -> list[str]:
    counts = (
        outcome.calls, outcome.faults, outcome.bad_inputs, outcome.acknowledged, outcome.lost, outcome.doubled,
        outcome.disordered, outcome.connections, outcome.files, outcome.threads,
    )  # fmt: skip
    memory = "" if outcome.growth is None else f"{outcome.growth / 1e6:.2f} MB"
    return [
        name, outcome.database, *("" if count is None else f"{count:,}" for count in counts), memory, outcome.verdict
    ]  # fmt: skip
