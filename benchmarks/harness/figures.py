"""The measured cost of an operation, and the goal that it is judged by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

RAW = "raw driver"
APPLICATION = "application's own engine"
OURS = "eric_sse_sql"
LISTENED = "with a listener"


@dataclass(frozen=True)
class Goal:
    """A bound on a ratio or a value.

    :param bound: to reach
    :param stretch: a stricter bound to strive for
    :param at_least: whether the bounds are lower bounds
    """

    bound: float
    stretch: float | None = None
    at_least: bool = False

    def is_met(self, value: float) -> bool:
        """Whether a value reaches the bound."""
        return self._reaches(value, self.bound)

    def verdict(self, value: float) -> str:
        """Which of the two bounds a value reaches, in words."""
        if self.stretch is not None and self._reaches(value, self.stretch):
            return "stretch met"
        return "met" if self.is_met(value) else "MISSED"

    def _reaches(self, value: float, bound: float) -> bool:
        return value >= bound if self.at_least else value <= bound

    def __str__(self) -> str:
        stretch = "" if self.stretch is None else f" ({self.stretch:g})"
        return f"{'≥ ' if self.at_least else ''}{self.bound:g}{stretch}"


@dataclass(frozen=True)
class Figure:
    """The cost of one operation on one database.

    :param medians: seconds, by contender
    :param ratios: by contender, to the raw driver or to the operation that the label names
    :param goal: bounds the value of the judged contender, or its ratio where there are no values
    :param curve: groups the figures of an operation that is measured at several sizes
    :param size: the size within the curve
    :param memory: peak growth of the process in bytes, by contender
    :param is_rate: whether the report shows operations per second instead of times
    :param values: results that are no times, by contender
    :param unit: of the values
    :param judged: the contender that the goal is about
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
    judged: str = OURS

    @property
    def judged_value(self) -> float:
        """The value, or the ratio, that is compared with the goal."""
        return (self.values or self.ratios)[self.judged]

    @property
    def verdict(self) -> str:
        """Whether the goal is met; empty where there is none."""
        return "" if self.goal is None else self.goal.verdict(self.judged_value)

    @property
    def is_missed(self) -> bool:
        """Whether there is a goal that is not met."""
        return self.goal is not None and not self.goal.is_met(self.judged_value)


def compare_with_raw(
    database: str,
    operation: str,
    medians: Mapping[str, float],
    goal: Goal | None = None,
    *,
    curve: str = "",
    size: int = 0,
    is_rate: bool = False,
) -> Figure:
    """The figure of an operation, with the ratios of all contenders to the raw driver."""
    ratios = {name: each / medians[RAW] for name, each in medians.items()}
    return Figure(database, operation, medians, ratios, goal, curve, size, is_rate=is_rate)


def judge_application(figure: Figure, goal: Goal | None) -> Iterator[Figure]:
    """Where there is a goal for the application's own engine, a further figure that is judged by it."""
    if goal is not None:
        ratios = {APPLICATION: figure.ratios[APPLICATION]}
        operation = f"{figure.operation}, {APPLICATION}"
        yield Figure(figure.database, operation, ratios=ratios, goal=goal, judged=APPLICATION)


def growth(
    database: str, operation: str, many: Mapping[str, float], few: Mapping[str, float], goal: Goal | None
) -> Figure:
    """The figure of how an operation's time on many rows compares with its time on few."""
    return Figure(database, operation, ratios={name: many[name] / few[name] for name in many if name in few}, goal=goal)


def compare_with_peers(
    database: str, operation: str, medians: Mapping[str, float], goals: Mapping[str, Goal]
) -> Iterator[Figure]:
    """For each peer with a goal, the figure of how many times as fast as the peer eric_sse_sql is."""
    for peer, goal in goals.items():
        if peer in medians:
            ratios = {OURS: medians[peer] / medians[OURS]}
            yield Figure(database, f"{operation}: times as fast as {peer}", ratios=ratios, goal=goal)
