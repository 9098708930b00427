"""What an operation was found to cost, and whether that is what it may cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

RAW = "raw driver"
OURS = "eric_sse_sql"
LISTENED = "with a listener"
APPLICATION = "application's engine"


@dataclass(frozen=True)
class Goal:
    """The ratio, or the value, to reach, and the one to strive for: at most, or at least."""

    ratio: float
    stretch: float | None = None
    at_least: bool = False

    def is_met(self, ratio: float) -> bool:
        """Whether a ratio reaches it."""
        return self._reaches(ratio, self.ratio)

    def verdict(self, ratio: float) -> str:
        """How far a ratio reaches, in words."""
        if self.stretch is not None and self._reaches(ratio, self.stretch):
            return "stretch met"
        return "met" if self.is_met(ratio) else "MISSED"

    def _reaches(self, ratio: float, bound: float) -> bool:
        return ratio >= bound if self.at_least else ratio <= bound

    def __str__(self) -> str:
        stretch = "" if self.stretch is None else f" ({self.stretch:g})"
        return f"{'≥ ' if self.at_least else ''}{self.ratio:g}{stretch}"


@dataclass(frozen=True)
class Figure:
    """What one operation costs on one database.

    :param medians: seconds, by contender
    :param ratios: by contender, to the raw driver or to whatever else the operation names
    :param curve: what the operation is one size of, where it is measured in several
    :param size: which one
    :param memory: by how many bytes the process grew at the most, by contender
    :param is_rate: whether people rather read how many of them there are in a second
    :param values: what was found, by contender, where it is not compared with anything; a goal is then about these
    :param unit: of the values
    """

    database: str
    operation: str
    medians: Mapping[str, float] = field(default_factory=dict)
    ratios: Mapping[str, float] = field(default_factory=dict)
    goal: Goal | None = None
    curve: str = ""
    size: int = 0
    memory: Mapping[str, int] = field(default_factory=dict)
    is_rate: bool = False
    values: Mapping[str, float] = field(default_factory=dict)
    unit: str = ""

    @property
    def judged(self) -> float:
        """What the goal is about."""
        return (self.values or self.ratios)[OURS]

    @property
    def verdict(self) -> str:
        """Whether the goal is met; nothing where there is none."""
        return "" if self.goal is None else self.goal.verdict(self.judged)

    @property
    def is_missed(self) -> bool:
        """Whether there is a goal, and it is not met."""
        return self.goal is not None and not self.goal.is_met(self.judged)


def against_raw(
    database: str,
    operation: str,
    medians: Mapping[str, float],
    goal: Goal | None = None,
    *,
    curve: str = "",
    size: int = 0,
    is_rate: bool = False,
) -> Figure:
    """The figure of an operation that the raw driver has done too."""
    ratios = {name: each / medians[RAW] for name, each in medians.items()}
    return Figure(database, operation, medians, ratios, goal, curve, size, is_rate=is_rate)


def growth(
    database: str, operation: str, many: Mapping[str, float], few: Mapping[str, float], goal: Goal | None
) -> Figure:
    """The figure of what an operation costs on many rows, as a ratio to what it costs on few."""
    return Figure(database, operation, ratios={name: many[name] / few[name] for name in many if name in few}, goal=goal)


def against_peers(
    database: str, operation: str, medians: Mapping[str, float], goals: Mapping[str, Goal]
) -> Iterator[Figure]:
    """For each peer that there is a goal for, the figure of how many times as fast we are."""
    for peer, goal in goals.items():
        if peer in medians:
            ratios = {OURS: medians[peer] / medians[OURS]}
            yield Figure(database, f"{operation}: times as fast as {peer}", ratios=ratios, goal=goal)
