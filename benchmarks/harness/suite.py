"""A suite: the operations that are measured on one part of the package, and the texts of its report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.backends import BACKENDS, Backend
from benchmarks.harness.figures import Figure
from benchmarks.harness.optional_peers import Opener


@dataclass(frozen=True)
class Bench:
    """What an operation gets when it runs.

    :param backend: the kind of database
    :param sizes: of the suite, for this run
    :param peers: the peers of the suite that are open
    :param peer_filter: takes openers of peers and returns those that this run measures
    :param folder: for files; it is deleted when the run ends
    """

    backend: Backend
    sizes: Any
    peers: Mapping[str, Any]
    peer_filter: Callable[[Mapping[str, Opener[Any]]], Mapping[str, Opener[Any]]]
    folder: Path


@dataclass(frozen=True)
class Suite:
    """Operations that share one report.

    :param name: of the suite and of its result files
    :param title: of the report
    :param legend: what the contenders are
    :param peers_legend: what the peers are
    :param contenders: the columns of the first tables
    :param sizes: sample counts and amounts of data, by the name of the run size: full, quick and smoke
    :param amount: describes sizes in one sentence
    :param peers: the openers of the peers to compare with on a backend
    :param operations: functions that measure one backend, by their name on the command line
    :param databases: those that are measured: keys of ``BACKENDS``
    """

    name: str
    title: str
    legend: str
    peers_legend: str
    contenders: Sequence[str]
    sizes: Mapping[str, Any]
    amount: Callable[[Any], str]
    peers: Callable[[Backend], Mapping[str, Opener[Any]]]
    operations: Mapping[str, Callable[[Bench], Iterable[Figure]]]
    databases: Sequence[str] = tuple(BACKENDS)
