"""What an operation may cost, as a ratio to the raw driver, and what it was found to cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

RAW = "raw driver"
OURS = "eric_sse_sql"
LISTENED = "with a listener"
APPLICATION = "application's engine"

NEW = "upsert, new key"
EXISTING = "upsert, existing key"
FETCH = "fetch_one"
DELETE = "delete"
PAGE = "prefix page"
GROWTH = "growth"
SCAN = "fetch_all"


@dataclass(frozen=True)
class Goal:
    """The ratio to reach, and the one to strive for."""

    ratio: float
    stretch: float

    def __str__(self) -> str:
        return f"{self.ratio:g} ({self.stretch:g})"


@dataclass(frozen=True)
class Figure:
    """What one operation costs on one database.

    :param medians: seconds, by contender
    :param ratios: by contender, to the raw driver or to whatever else the operation names
    """

    database: str
    operation: str
    medians: Mapping[str, float] = field(default_factory=dict)
    ratios: Mapping[str, float] = field(default_factory=dict)
    goal: Goal | None = None

    @property
    def verdict(self) -> str:
        """Whether the goal is met; nothing where there is none."""
        if self.goal is None:
            return ""
        ratio = self.ratios[OURS]
        return "stretch met" if ratio <= self.goal.stretch else "met" if ratio <= self.goal.ratio else "MISSED"


_SQLITE = {
    NEW: Goal(2.5, 1.5),
    EXISTING: Goal(3, 1.5),
    FETCH: Goal(4, 2),
    DELETE: Goal(2.5, 1.5),
    PAGE: Goal(2.5, 1.3),
    GROWTH: Goal(1.3, 1.3),
    SCAN: Goal(2, 1.3),
}
GOALS: Mapping[str, Mapping[str, Goal]] = {
    "SQLite NORMAL": _SQLITE,
    "SQLite FULL": {**_SQLITE, NEW: Goal(1.5, 1.1)},
    "Postgres": {
        NEW: Goal(1.4, 1.2),
        EXISTING: Goal(1.4, 1.2),
        FETCH: Goal(1.6, 1.2),
        DELETE: Goal(1.4, 1.2),
        PAGE: Goal(2, 1.3),
        GROWTH: Goal(1.3, 1.3),
        SCAN: Goal(2, 1.3),
    },
}


def against_raw(database: str, operation: str, medians: Mapping[str, float], goal: Goal | None = None) -> Figure:
    """The figure of an operation that the raw driver has done too."""
    return Figure(database, operation, medians, {name: each / medians[RAW] for name, each in medians.items()}, goal)


def growth(database: str, operation: str, many: Mapping[str, float], few: Mapping[str, float], goal: Goal) -> Figure:
    """The figure of what an operation costs on many rows, as a ratio to what it costs on few."""
    return Figure(database, operation, ratios={name: many[name] / few[name] for name in many}, goal=goal)
