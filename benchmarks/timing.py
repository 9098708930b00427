"""Times several contenders side by side, so that whatever else the machine does meets all of them alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

Contender = TypeVar("Contender", bound=Hashable)
Group = TypeVar("Group", bound=Hashable)
Step = Callable[[int], object]  # does the operation for the n-th time


def interleaved(
    steps: Mapping[Contender, Step],
    samples: int,
    *,
    warm_up: int,
    block: int,
    fewer: Mapping[Contender, int] | None = None,
) -> dict[Contender, float]:
    """The median time of each contender's step, in seconds.

    The contenders take turns, and take turns at going first. Every step is timed by itself. Python's collector is on,
    but leaves out what was there before the first step: to walk through that is no part of any.

    :param samples: how many steps of each are counted
    :param warm_up: how many go before them, not counted: drivers prepare a statement only after a few executions
    :param block: how many steps a turn has
    :param fewer: how many steps are counted of contenders that take too long for all; they go in the first turns
    """
    times: dict[Contender, list[int]] = {name: [] for name in steps}
    last = {name: warm_up + (fewer or {}).get(name, samples) for name in steps}
    order = list(steps)
    gc.collect()
    gc.freeze()
    for start in range(0, warm_up + samples, block):
        for name in order:
            step, taken = steps[name], times[name]
            for number in range(start, min(start + block, last[name])):
                began = time.perf_counter_ns()
                step(number)
                taken.append(time.perf_counter_ns() - began)
        order.append(order.pop(0))
    gc.unfreeze()
    return {name: statistics.median(taken[warm_up:]) / 1e9 for name, taken in times.items()}


def by_first(medians: Mapping[tuple[Group, Contender], float]) -> dict[Group, dict[Contender, float]]:
    """Medians of several groups that were timed together, apart."""
    groups: dict[Group, dict[Contender, float]] = {}
    for (group, contender), median in medians.items():
        groups.setdefault(group, {})[contender] = median
    return groups
