"""Opens the peers that are installed, and says why the others are left out."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

Peer = TypeVar("Peer")
Opener = Callable[[Path, ExitStack], Peer]  # opens a peer in an empty folder; the stack closes it


class PeerMissing(Exception):
    """A peer cannot be measured on this machine. The message says why."""


@contextmanager
def open_peers(openers: Mapping[str, Opener[Peer]], folder: Path) -> Iterator[tuple[dict[str, Peer], list[str]]]:
    """Open each peer in a folder of its own.

    :param folder: where the folders of the peers are created
    :returns: the peers by name, and one remark for each peer that is missing
    """
    peers: dict[str, Peer] = {}
    remarks: list[str] = []
    with ExitStack() as stack:
        for number, (name, open_peer) in enumerate(openers.items()):
            place = folder / f"peer-{number}"
            place.mkdir(parents=True)
            try:
                peers[name] = open_peer(place, stack)
            except PeerMissing as reason:
                remarks.append(f"{name} is left out: {reason}.")
        yield peers, remarks


def import_peer(name: str) -> Any:
    """Import a module of a peer.

    :raises PeerMissing: when the module is not installed
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise PeerMissing(f"{error.name} is not installed") from error
