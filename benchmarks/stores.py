"""What is timed: the storage engine, the raw drivers and the peers all have these methods."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable


class KeyStore(Protocol):
    """Values by key."""

    def upsert(self, key: str, value: Any) -> None: ...
    def fetch_one(self, key: str) -> Any: ...
    def delete(self, key: str) -> None: ...


@runtime_checkable
class Store(KeyStore, Protocol):
    """Values by key, and by the prefix of their keys."""

    def fetch_by_prefix(self, prefix: str) -> Iterable[Any]: ...
    def fetch_all(self) -> Iterable[Any]: ...
