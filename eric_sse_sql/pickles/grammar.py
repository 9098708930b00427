"""A scan of the opcodes of a pickle, before the unpickler runs them.

It accepts only opcodes that this package writes, and tells whether any of them can name a class. The opcodes are those
of Python's ``pickletools``; what the unpickler does with them is in CPython's ``Modules/_pickle.c``. Regular
expressions match long runs of common opcodes: a loop over single opcodes would double the time of a fetch.
"""

from __future__ import annotations

import re
import sys

from eric_sse.exception import RepositoryError

# Opcodes of a protocol 5 pickler. Two kinds are left out: PUT, BINPUT and LONG_BINPUT, whose memo index makes the
# unpickler allocate up to 64 GiB; and BUILD, which could change the attributes of a class.
_WITHOUT_ARGUMENT = rb"()N\]}01aestu\x85-\x89\x8f-\x91\x94"
_WITH_FIXED_ARGUMENT = rb"[\x80Kh].|M..|[Jj].{4}|G.{8}"
_SHORT_TEXT = b"|".join(re.escape(bytes([length])) + rb".{%d}" % length for length in range(64))
# Possessive quantifiers do not backtrack. Python 3.10 has none, and stores a backtracking state for each repetition;
# 500 repetitions a match bound that memory.
_POSSESSIVE, _REPEATED = (rb"+", rb"*+") if sys.version_info >= (3, 11) else (rb"", rb"{0,500}")


def _opcodes(without_argument: bytes) -> bytes:
    """A regular expression for a run of common opcodes."""
    run = rb"[%s]*" % without_argument + _POSSESSIVE
    return run + rb"(?:(?:\x8c(?:%s)|%s)%s)" % (_SHORT_TEXT, _WITH_FIXED_ARGUMENT, run) + _REPEATED


_COMMON = _opcodes(_WITHOUT_ARGUMENT)
_COMMON_RUN = re.compile(_COMMON, re.DOTALL)
# Most pickles match one of these two as a whole. The plain one ignores the size of the frame: a plain pickle is loaded
# with pickle.loads, which has all bytes in memory and does not skip any at the end of a frame.
_match_short_plain = re.compile(rb"\x80\x05(?:\x95.{8})?" + _COMMON + rb"\.", re.DOTALL).fullmatch
_match_short_one_frame = re.compile(
    rb"\x80\x05\x95(.{8})" + _opcodes(_WITHOUT_ARGUMENT + rb"\x81\x92\x93R") + rb"\.", re.DOTALL
).fullmatch

_SIZE_OF_ONE_BYTE = frozenset(b"\x8cC\x8a")  # SHORT_BINUNICODE, SHORT_BINBYTES, LONG1
_SIZE_BYTES = {ord("X"): 4, ord("B"): 4, 0x8B: 4, 0x8D: 8, 0x8E: 8, 0x96: 8}  # by opcode with a longer size field
_CLASS_OPCODES = frozenset(b"\x81\x92\x93R")  # NEWOBJ, NEWOBJ_EX, STACK_GLOBAL, REDUCE
_FRAME = 0x95
_FRAME_HEADER_BYTES = 9
_STOP = b"."


def is_plain(pickled: bytes) -> bool:
    """Whether a pickle holds plain data only: it names no class and calls nothing.

    An opcode may not extend over the end of its frame, because the unpickler would skip bytes there and run other
    opcodes than those scanned.

    :raises RepositoryError: when the pickle is truncated, continues after its STOP, or has an opcode that this package
        never writes
    """
    if _match_short_plain(pickled):
        return True
    one_frame = _match_short_one_frame(pickled)
    if one_frame and int.from_bytes(one_frame[1], "little") == len(pickled) - 2 - _FRAME_HEADER_BYTES:
        return False
    plain, at, stop = True, 0, len(pickled) - 1
    if pickled[stop:] != _STOP:
        raise _damaged()
    end = stop  # of the current frame; outside of a frame, of the opcodes
    while True:
        before, at = at, _COMMON_RUN.match(pickled, at, end).end()  # type: ignore[union-attr]  # an empty run matches
        if at == end:
            if end == stop:
                return plain
            end = stop
            continue
        opcode = pickled[at]
        if opcode in _CLASS_OPCODES:
            plain = False
            at += 1
        elif opcode in _SIZE_OF_ONE_BYTE:
            at += 2 + pickled[at + 1]
        elif opcode in _SIZE_BYTES:
            size_bytes = _SIZE_BYTES[opcode]
            at += 1 + size_bytes + int.from_bytes(pickled[at + 1 : at + 1 + size_bytes], "little")
        elif opcode == _FRAME and end == stop:
            at += _FRAME_HEADER_BYTES
            end = at + int.from_bytes(pickled[at - 8 : at], "little")
            if end == len(pickled):
                end = stop
        elif at == before:
            raise _damaged()
        if at > end or end > stop:
            raise _damaged()


def _damaged() -> RepositoryError:
    return RepositoryError("a stored blob is damaged: it is not a pickle of this package")
