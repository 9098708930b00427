"""The report of a comparison: medians, their ratios, and the noise of the run."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.comparison.coordinator import Results, Times
from benchmarks.harness.report import format_time, paragraph, table

BOUND = 1.05  # the ratio above which the newer installation counts as slower
NAME = "comparison"
SLOWER, UNCERTAIN, FASTER = "SLOWER", f"above {BOUND}, noise", "faster"

LEGEND = f"""\
"before" and "after" are the medians of all samples; the percentage is half the distance between the lowest and the
highest median of the repetitions of that installation. Both installations are measured in turns, in short rounds: each
round has a ratio, of its median after to its median before, and each repetition has the median of the ratios of its
rounds. "ratio" is the median of the ratios of the repetitions, and "range" holds their middle two thirds. A measure is
"{SLOWER}" when the whole range is above {BOUND}, "{UNCERTAIN}" when only the ratio is, and "{FASTER}" when the whole
range is below 1 and the ratio below 1/{BOUND}."""


@dataclass(frozen=True)
class Ratio:
    """How the times of a measure compare.

    :param before: the median, in seconds
    :param after: the median, in seconds
    :param noise: of each of both, as a share of its median
    :param ratio: after to before
    :param range: the lowest and the highest ratio of the middle two thirds of the repetitions
    """

    before: float
    after: float
    noise: tuple[float, float]
    ratio: float
    range: tuple[float, float]

    @staticmethod
    def of(times: Times) -> Ratio:
        """Compare the times of both installations."""
        ratios = sorted(_ratio(*rounds) for rounds in zip(times.before, times.after, strict=True))
        outer = len(ratios) // 6
        return Ratio(
            _median(chain.from_iterable(times.before)) / 1e9,
            _median(chain.from_iterable(times.after)) / 1e9,
            (_noise(times.before), _noise(times.after)),
            statistics.median(ratios),
            (ratios[outer], ratios[-1 - outer]),
        )

    @property
    def verdict(self) -> str:
        """Whether the newer installation is slower or faster, as far as the noise allows to say so."""
        if self.ratio > BOUND:
            return SLOWER if self.range[0] > BOUND else UNCERTAIN
        return FASTER if self.ratio < 1 / BOUND and self.range[1] < 1 else ""


def _ratio(before: Sequence[Sequence[int]], after: Sequence[Sequence[int]]) -> float:
    """The median of the ratios of the rounds of one repetition."""
    pairs = zip(before, after, strict=True)
    return statistics.median(statistics.median(second) / statistics.median(first) for first, second in pairs)


def _noise(repetitions: Sequence[Sequence[Sequence[int]]]) -> float:
    medians = [_median(rounds) for rounds in repetitions]
    return (max(medians) - min(medians)) / 2 / statistics.median(medians)


def _median(rounds: Iterable[Sequence[int]]) -> float:
    return statistics.median(chain.from_iterable(rounds))


class ComparisonReport:
    """The report of a comparison.

    :param results: the times of each measure
    :param installations: what is known of both: the path of the package, and versions
    """

    def __init__(self, results: Results, installations: Sequence[Mapping[str, str]]) -> None:
        self._ratios = {key: Ratio.of(times) for key, times in results.items()}
        self._repetitions = len(next(iter(results.values())).before)
        self._installations = dict(zip(("before", "after"), installations, strict=True))

    def markdown(self) -> str:
        """The report in Markdown."""
        parts = ["# Two installations of eric_sse_sql", self._describe(), self._outcome(), paragraph(LEGEND)]
        for database in dict.fromkeys(database for database, _, _ in self._ratios):
            parts += [f"## {database}", table([_HEAD, *self._rows(database)])]
        return "\n\n".join(parts) + "\n"

    def write(self, folder: Path) -> None:
        """Write the report, and the figures as JSON with times in microseconds."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{NAME}.md").write_text(self.markdown())
        content = {
            "installations": self._installations,
            "repetitions": self._repetitions,
            "measures": [self._as_json(key) for key in self._ratios],
        }
        (folder / f"{NAME}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    def _describe(self) -> str:
        lines = [
            f"- {name}: {', '.join(f'{label} {value}' for label, value in each.items())}"
            for name, each in self._installations.items()
        ]
        before, after = self._installations.values()
        if before["eric_sse_sql"] == after["eric_sse_sql"]:
            lines.append("- Both interpreters import the same installation: the ratios show the noise.")
        return "\n".join(lines)

    def _outcome(self) -> str:
        verdicts = [each.verdict for each in self._ratios.values()]
        counts = [f"{verdicts.count(each)} {each}" for each in (SLOWER, UNCERTAIN, FASTER) if each in verdicts]
        return f"{len(verdicts)} measures, {self._repetitions} repetitions: {'; '.join(counts) or 'no difference'}."

    def _rows(self, database: str) -> list[list[str]]:
        return [
            [
                f"{measure}, {engine}",
                f"{format_time(ratio.before)} ± {ratio.noise[0]:.0%}",
                f"{format_time(ratio.after)} ± {ratio.noise[1]:.0%}",
                f"{ratio.ratio:.2f}",
                f"{ratio.range[0]:.2f} to {ratio.range[1]:.2f}",
                ratio.verdict,
            ]
            for (where, engine, measure), ratio in self._ratios.items()
            if where == database
        ]

    def _as_json(self, key: tuple[str, str, str]) -> dict[str, Any]:
        ratio = self._ratios[key]
        return {
            **dict(zip(("database", "engine", "operation"), key, strict=True)),
            "medians_us": {"before": round(ratio.before * 1e6, 2), "after": round(ratio.after * 1e6, 2)},
            "ratio": round(ratio.ratio, 3),
            "range": [round(each, 3) for each in ratio.range],
            "verdict": ratio.verdict,
        }


_HEAD = ["measure", "before", "after", "ratio", "range", ""]
