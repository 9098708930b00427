"""``is_plain``: tells pickles of plain data from others, and refuses opcodes that the package never writes."""

from __future__ import annotations

import pickle
from datetime import date
from typing import Any

import pytest
from eric_sse.exception import RepositoryError
from hypothesis import given
from hypothesis import strategies as st

from eric_sse_sql.pickles.grammar import is_plain

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300) | st.binary(max_size=300),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=5), inner, max_size=5)
        | st.sets(st.integers(), max_size=5)
        | st.binary(max_size=5).map(bytearray)
    ),
    max_leaves=20,
)
LARGE = {"texts": ["x" * 100_000, "y" * 70_000], "numbers": list(range(3_000)), "bytes": b"z" * 100_000}


@given(PLAIN)
def test_a_pickle_of_plain_data_is_plain(value: Any) -> None:
    assert is_plain(pickle.dumps(value, 5))


@given(PLAIN)
def test_a_pickle_that_names_a_class_is_not_plain(value: Any) -> None:
    assert not is_plain(pickle.dumps((value, date.min), 5))
    assert not is_plain(pickle.dumps((date, value), 5))


def test_a_pickle_of_several_frames_is_scanned_to_its_end() -> None:
    assert is_plain(pickle.dumps(LARGE, 5))
    assert not is_plain(pickle.dumps([LARGE, date.min], 5))


@pytest.mark.parametrize("value", [{"a": [1, "text"]}, [date.min], LARGE], ids=["plain", "with a class", "large"])
def test_a_truncated_or_continued_pickle_is_refused(value: Any) -> None:
    pickled = pickle.dumps(value, 5)
    for damaged in (pickled[:-1], pickled[:-2], pickled[: len(pickled) // 2], pickled + b"N", pickled + b"N.", b""):
        with pytest.raises(RepositoryError, match="is damaged"):
            is_plain(damaged)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3])
def test_opcodes_of_older_protocols_are_refused(protocol: int) -> None:
    with pytest.raises(RepositoryError, match="is damaged"):
        is_plain(pickle.dumps([date.min, "text"], protocol))


@pytest.mark.parametrize(
    "opcode",
    [b"}b", b"Np0\n", b"Nq\0", b"Nr\0\0\0\0", b"Pid\n", b"Q", b"\x82\x01", b"cos\nsystem\n", b"2", b"\x97", b"\xff"],
    ids=[
        "BUILD",
        "PUT",
        "BINPUT",
        "LONG_BINPUT",
        "PERSID",
        "BINPERSID",
        "EXT1",
        "GLOBAL",
        "DUP",
        "NEXT_BUFFER",
        "none",
    ],
)
def test_an_opcode_that_the_package_never_writes_is_refused(opcode: bytes) -> None:
    with pytest.raises(RepositoryError, match="is damaged"):
        is_plain(b"\x80\x05N" + opcode + b".")


@pytest.mark.parametrize("size", [3, 5, 2**40, 2**64 - 1])
def test_a_frame_whose_size_does_not_match_its_opcodes_is_refused(size: int) -> None:
    opcodes = b"\x8c\x02os\x8c\x06system\x93."
    assert not is_plain(b"\x80\x05\x95" + len(opcodes).to_bytes(8, "little") + opcodes)
    with pytest.raises(RepositoryError, match="is damaged"):
        is_plain(b"\x80\x05\x95" + size.to_bytes(8, "little") + opcodes)
