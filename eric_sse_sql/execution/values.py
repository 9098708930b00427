"""A check that values come back from a driver as they were given to it.

An application may register adapters and converters with a driver for the whole process, and factories on connections.
A message that is read as something else is lost once it has left its table: the check comes before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from eric_sse.exception import RepositoryError

_ADVICE = (
    "the connections of the engine return values in another way than the driver does by itself: look for a row "
    "factory, adapters or converters that are registered for the whole process, and a client_encoding of SQL_ASCII; "
    "set these on connections of another engine, or give a URL"
)


def check_values(
    read: Callable[[Any], Sequence[Any]], cursor: Any, values: Sequence[Any], faults: type[Exception]
) -> None:
    """Do nothing where a driver's cursor reads the given values as they are.

    :param read: writes and reads them with a cursor
    :param cursor: a new one, which is closed
    :param faults: the errors of the driver, which say nothing of values, and pass
    :raises RepositoryError: where it reads anything else
    """
    try:
        found = tuple(read(cursor))
    except faults:
        raise
    except Exception as error:
        raise RepositoryError(_ADVICE) from error
    finally:
        cursor.close()
    if found != tuple(values) or not all(map(isinstance, found, map(type, values))):
        raise RepositoryError(_ADVICE) from TypeError(", ".join(type(value).__name__ for value in found))
