"""Plain data as UTF-8 JSON. A value that was written comes back equal, except that a tuple comes back as a list."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from eric_sse.exception import RepositoryError

MAX_DEPTH = 200  # of lists and dicts in each other. SQLite reads 1,000; what Python reads depends on the caller
_SCALARS = frozenset((type(None), bool, int, float, str))
_STR_ONLY = frozenset((str,))


def dumped(value: object) -> bytes:
    """A value as compact JSON.

    :raises RepositoryError: for what is not None, bool, int, a finite float, str, list, tuple or dict with keys of str,
        of exactly these types, for text that UTF-8 can't encode, and for more than 200 lists and dicts in each other
    """
    try:
        _check(value, 0)
        return _encoded(value).encode()
    except RecursionError as error:  # of a caller that is near the limit itself
        _refuse("as many lists and dicts in each other", error)
    except UnicodeEncodeError as error:
        _refuse("text that has a lone surrogate", error)
    except ValueError as error:
        _refuse("NaN, an infinity, or an int of more digits than Python reads", error)


def loaded(text: bytes) -> Any:
    """The value of a JSON text.

    :raises RepositoryError: when the text is not JSON
    """
    try:
        return _decoded(str(text, "utf-8"))
    except (ValueError, RecursionError) as error:
        raise RepositoryError(
            f"a stored blob is damaged: it is neither a pickle of this package nor JSON ({type(error).__name__})"
        ) from error


def _check(value: Any, depth: int) -> None:
    kind = type(value)
    if kind in _SCALARS:
        return
    items: Iterable[Any]
    if kind is dict:
        if not _STR_ONLY.issuperset(map(type, value)):
            _refuse("a dict with a key that is no str", TypeError("key"))
        items = value.values()
    elif kind is list or kind is tuple:
        items = value
    else:
        _refuse(f"an object of class {kind.__module__}.{kind.__qualname__}", TypeError(kind.__qualname__))
    if depth == MAX_DEPTH:
        _refuse(f"more than {MAX_DEPTH} lists and dicts in each other", ValueError("depth"))
    if not _SCALARS.issuperset(map(type, items)):
        for item in items:
            if type(item) not in _SCALARS:
                _check(item, depth + 1)


def _refuse(what: str, cause: Exception) -> NoReturn:
    raise RepositoryError(
        f'{what} can\'t be stored as JSON; send plain data, or make the Database without messages="json"'
    ) from cause


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError("a number is out of the range of a float")
    return number


#: Compact JSON of an unchecked value, which may come back as another one. ValueError or TypeError where there is none.
unchecked: Callable[[Any], str] = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_encoded: Callable[[Any], str] = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")
).encode
_decoded: Callable[[str], Any] = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite).decode
