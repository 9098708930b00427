"""A walk over the opcodes of a pickle, before pickle sees it (the C source: Modules/_pickle.c).

A regular expression takes the common ones many at a time; one by one they would take as long as the rest of a fetch.
"""

from __future__ import annotations

import re
import sys

from eric_sse.exception import RepositoryError

# The opcodes that a protocol 5 pickler writes, and no others. Those with a memo index of their own choice, which make
# the unpickler allocate up to 64 GiB, are not among them, nor is BUILD, which would change a class as well.
_ALONE = rb"()N\]}01aestu\x85-\x89\x8f-\x91\x94"
_WITH_ARGUMENT = rb"[\x80Kh].|M..|[Jj].{4}|G.{8}"
_SHORT_TEXT = b"|".join(re.escape(bytes([length])) + rb".{%d}" % length for length in range(64))
# Python 3.10 can't be told never to go back, and keeps a place to go back to for each turn: there is a bound to them.
_NO_RETURN, _TURNS = (rb"+", rb"*+") if sys.version_info >= (3, 11) else (rb"", rb"{0,500}")


def _tokens(alone: bytes) -> bytes:
    alone = rb"[%s]*" % alone + _NO_RETURN
    return alone + rb"(?:(?:\x8c(?:%s)|%s)%s)" % (_SHORT_TEXT, _WITH_ARGUMENT, alone) + _TURNS


_COMMON = _tokens(_ALONE)
_RUN = re.compile(_COMMON, re.DOTALL)
# Most pickles match one of these, which take a fraction of what the walk takes. Those that name no class are read from
# bytes, not from a file, where the end of a frame means nothing.
_short_and_plain = re.compile(rb"\x80\x05(?:\x95.{8})?" + _COMMON + rb"\.", re.DOTALL).fullmatch
_short_in_one_frame = re.compile(
    rb"\x80\x05\x95(.{8})" + _tokens(_ALONE + rb"\x81\x92\x93R") + rb"\.", re.DOTALL
).fullmatch

_ONE_BYTE_LENGTH = frozenset(b"\x8cC\x8a")
_LONGER_LENGTH = {ord("X"): 4, ord("B"): 4, 0x8B: 4, 0x8D: 8, 0x8E: 8, 0x96: 8}
_NAME_CLASSES = frozenset(b"\x81\x92\x93R")
_FRAME = 0x95
_STOP = b"."


def is_plain(pickled: bytes) -> bool:
    """Whether a pickle names no class.

    No opcode may stand across the end of a frame: there the unpickler skips bytes, and reads others than were seen.

    :raises RepositoryError: when it is cut short, goes on behind its end, or has opcodes that this package never writes
    """
    if _short_and_plain(pickled):
        return True
    short = _short_in_one_frame(pickled)
    if short and int.from_bytes(short[1], "little") == len(pickled) - 11:
        return False
    plain, at, last = True, 0, len(pickled) - 1
    if pickled[last:] != _STOP:
        raise _damage()
    end = last  # of the frame, or of all before STOP
    while True:
        before, at = at, _RUN.match(pickled, at, end).end()  # type: ignore[union-attr]  # it matches nothing, too
        if at == end:
            if end == last:
                return plain
            end = last
            continue
        op = pickled[at]
        if op in _NAME_CLASSES:
            plain = False
            at += 1
        elif op in _ONE_BYTE_LENGTH:
            at += 2 + pickled[at + 1]
        elif op in _LONGER_LENGTH:
            size = _LONGER_LENGTH[op]
            at += 1 + size + int.from_bytes(pickled[at + 1 : at + 1 + size], "little")
        elif op == _FRAME and end == last:
            at += 9
            end = at + int.from_bytes(pickled[at - 8 : at], "little")
            if end == len(pickled):
                end = last
        elif at == before:
            raise _damage()
        if at > end or end > last:
            raise _damage()


def _damage() -> RepositoryError:
    return RepositoryError("a stored blob is damaged: it is no pickle of this package")
