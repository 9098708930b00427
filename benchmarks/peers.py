"""What ours is compared with, where it is installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

Peer = TypeVar("Peer")
Opener = Callable[[Path, ExitStack], Peer]  # opens a peer in a folder, until the stack is closed


class LeftOut(Exception):
    """Why a peer can't be measured here."""


@contextmanager
def installed(openers: Mapping[str, Opener[Peer]], folder: Path) -> Iterator[tuple[dict[str, Peer], list[str]]]:
    """The peers, each on its own files, and for each that is missing the reason why."""
    peers: dict[str, Peer] = {}
    missing: list[str] = []
    with ExitStack() as stack:
        for name, open_peer in openers.items():
            place = folder / f"peer-{len(peers)}"
            place.mkdir(parents=True)
            try:
                peers[name] = open_peer(place, stack)
            except LeftOut as reason:
                missing.append(f"{name} is left out: {reason}.")
        yield peers, missing


def imported(name: str) -> Any:
    """A module of a peer.

    :raises LeftOut: when it is not installed
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise LeftOut(f"{error.name} is not installed") from error
