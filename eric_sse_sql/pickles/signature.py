"""Signatures of blobs: a signed blob is a mark and an HMAC-SHA256, followed by the pickle.

The HMAC also covers a context, which identifies the table and row of the blob: a signed blob is valid in its own row
only.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from eric_sse.exception import RepositoryError

SIGNATURE_MARK = b"HMAC-SHA256:"  # no pickle of this package begins with these bytes
SIGNATURE_BYTES = len(SIGNATURE_MARK) + 32


def signature(pickled: bytes, key: bytes, context: str) -> bytes:
    """The signature that precedes a pickle in its blob. A context must not hold NUL, which separates it here."""
    return SIGNATURE_MARK + hmac.digest(key, context.encode() + b"\0" + pickled, "sha256")


def verify(blob: bytes, keys: Iterable[bytes], context: str) -> bytes:
    """The pickle of a signed blob.

    :raises RepositoryError: when the blob was not signed with one of the keys and this context
    """
    stored, pickled = blob[:SIGNATURE_BYTES], blob[SIGNATURE_BYTES:]
    for key in keys:
        if hmac.compare_digest(stored, signature(pickled, key, context)):
            return pickled
    raise RepositoryError(f"the blob of {context} has no valid signature; it was not written there with these keys")
