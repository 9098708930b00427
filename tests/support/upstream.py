"""eric-sse's own classes in memory: the oracle of the contract suites."""

from __future__ import annotations

from eric_sse_sql.contract import ERIC_SSE_2_0, KvStorageEngine


def upstream_storage() -> KvStorageEngine:
    """eric-sse's storage engine in memory."""
    if not ERIC_SSE_2_0:
        from eric_sse.repository import InMemoryStorage

        return InMemoryStorage()
    from eric_sse.inmemory import InMemoryStorage as UpstreamStorage

    class MendedStorage(UpstreamStorage):
        def delete(self, key: str) -> None:  # eric-sse 2.0 looks in its class, and always raises KeyError
            self.objects.pop(key, None)

    return MendedStorage({})
