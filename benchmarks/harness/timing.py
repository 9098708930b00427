"""Times several contenders in turns, so that other load on the machine affects all of them alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

Contender = TypeVar("Contender", bound=Hashable)
Group = TypeVar("Group", bound=Hashable)
Step = Callable[[int], object]  # runs the operation; the argument counts the calls


def interleaved(
    steps: Mapping[Contender, Step],
    samples: int,
    *,
    warm_up: int,
    block: int,
    fewer: Mapping[Contender, int] | None = None,
) -> dict[Contender, float]:
    """The median time of each contender's step, in seconds.

    The contenders take turns, and a different one goes first in each round. Every step is timed by itself.

    :param samples: how many steps of each are counted
    :param warm_up: how many uncounted steps precede them: drivers prepare a statement only after a few executions
    :param block: how many steps a turn has
    :param fewer: how many steps are counted of contenders that are too slow for all; they run in the first turns
    """
    times: dict[Contender, list[int]] = {name: [] for name in steps}
    last = {name: warm_up + (fewer or {}).get(name, samples) for name in steps}
    order = list(steps)
    with existing_objects_frozen():
        for start in range(0, warm_up + samples, block):
            for name in order:
                times[name] += timed(steps[name], range(start, min(start + block, last[name])))
            order = order[1:] + order[:1]
    return {name: statistics.median(taken[warm_up:]) / 1e9 for name, taken in times.items()}


def timed(step: Step, numbers: range) -> list[int]:
    """The time of each call of a step, in nanoseconds."""
    taken = []
    for number in numbers:
        began = time.perf_counter_ns()
        step(number)
        taken.append(time.perf_counter_ns() - began)
    return taken


@contextmanager
def existing_objects_frozen() -> Iterator[None]:
    """Exclude the objects that exist now from garbage collection: a collection inside a step then visits only its own.

    The garbage collector stays on.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def by_first(medians: Mapping[tuple[Group, Contender], float]) -> dict[Group, dict[Contender, float]]:
    """Split medians of several groups that were timed together, by the first part of their key."""
    groups: dict[Group, dict[Contender, float]] = {}
    for (group, contender), median in medians.items():
        groups.setdefault(group, {})[contender] = median
    return groups
