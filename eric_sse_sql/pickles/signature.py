"""Signed blobs: a mark, an HMAC-SHA256, and the pickle that it signs.

The HMAC also covers a context, the table and row of the blob, so that a signed blob is valid in its own row only.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from eric_sse.exception import RepositoryError

SIGNATURE_MARK = b"HMAC-SHA256:"  # no pickle of this package begins with these bytes
_PICKLE_START = len(SIGNATURE_MARK) + 32


def sign(pickled: bytes, key: bytes, context: str) -> bytes:
    """The signed blob of a pickle."""
    return SIGNATURE_MARK + _hmac(pickled, key, context) + pickled


def verify(blob: bytes, keys: Iterable[bytes], context: str) -> bytes:
    """The pickle of a signed blob.

    :raises RepositoryError: when the blob was not signed with one of the keys and this context
    """
    signature, pickled = blob[len(SIGNATURE_MARK) : _PICKLE_START], blob[_PICKLE_START:]
    if not blob.startswith(SIGNATURE_MARK) or not any(
        hmac.compare_digest(signature, _hmac(pickled, key, context)) for key in keys
    ):
        raise RepositoryError(f"the blob of {context} has no valid signature; it was not written there with these keys")
    return pickled


def _hmac(pickled: bytes, key: bytes, context: str) -> bytes:
    return hmac.digest(key, context.encode() + b"\0" + pickled, "sha256")  # a context has no NUL, so no two collide
