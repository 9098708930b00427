"""A suite: what is measured of one part of the package, and how it is told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.databases import Backend
from benchmarks.figures import Figure
from benchmarks.peers import Opener


@dataclass(frozen=True)
class Bench:
    """What an operation is measured on.

    :param peers: those that are installed
    :param folder: for files, gone when the run ends
    """

    backend: Backend
    sizes: Any
    peers: Mapping[str, Any]
    folder: Path


@dataclass(frozen=True)
class Suite:
    """Operations that are told in one report.

    :param name: of its files
    :param legend: what the contenders are
    :param peers_legend: what the peers are
    :param contenders: the columns of the first tables, beside the peers
    :param sizes: how many times each operation is timed, and on how much
    :param quick: the same for a short run
    :param amount: says so
    :param peers: those there are beside a database
    :param operations: each measures one database, by the name that it is chosen by
    """

    name: str
    title: str
    legend: str
    peers_legend: str
    contenders: Sequence[str]
    sizes: Any
    quick: Any
    amount: Callable[[Any], str]
    peers: Callable[[Backend], Mapping[str, Opener[Any]]]
    operations: Mapping[str, Callable[[Bench], Iterable[Figure]]]
