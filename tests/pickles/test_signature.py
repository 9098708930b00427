"""Signatures: valid for the same bytes, key and context only."""

from __future__ import annotations

import pytest
from eric_sse.exception import RepositoryError

from eric_sse_sql.pickles.signature import SIGNATURE_MARK, signature, verify

KEY, OTHER_KEY = b"k" * 16, b"o" * 16
CONTEXT = "kv_entries/kv/key"
BLOB = signature(b"pickle", KEY, CONTEXT) + b"pickle"


def test_a_signed_blob_begins_with_the_mark_and_verifies_to_its_pickle() -> None:
    assert BLOB.startswith(SIGNATURE_MARK)
    assert verify(BLOB, [KEY], CONTEXT) == b"pickle"


def test_any_of_several_keys_verifies() -> None:
    assert verify(BLOB, [OTHER_KEY, KEY], CONTEXT) == b"pickle"


@pytest.mark.parametrize(
    ("blob", "keys", "context"),
    [
        (BLOB, [OTHER_KEY], CONTEXT),
        (BLOB, [], CONTEXT),
        (BLOB, [KEY], "kv_entries/kv/other"),
        (BLOB + b".", [KEY], CONTEXT),
        (BLOB[:-1], [KEY], CONTEXT),
        (BLOB.replace(SIGNATURE_MARK, SIGNATURE_MARK.lower()), [KEY], CONTEXT),
        (b"pickle", [KEY], CONTEXT),
        (b"", [KEY], CONTEXT),
    ],
    ids=["other key", "no key", "other context", "longer", "shorter", "other mark", "unsigned", "empty"],
)
def test_a_blob_without_a_valid_signature_is_refused(blob: bytes, keys: list[bytes], context: str) -> None:
    with pytest.raises(RepositoryError, match=f"the blob of {context} has no valid signature"):
        verify(blob, keys, context)


def test_every_byte_of_a_signed_blob_is_covered() -> None:
    for at in range(len(BLOB)):
        with pytest.raises(RepositoryError, match="no valid signature"):
            verify(BLOB[:at] + bytes([BLOB[at] ^ 1]) + BLOB[at + 1 :], [KEY], CONTEXT)
