"""The URLs that name a database, and what to write instead of a similar one."""

from __future__ import annotations

import re

from eric_sse.exception import RepositoryError
from sqlalchemy import URL, make_url

FORMS = "postgresql+psycopg://user:password@host:5432/database, or sqlite:///path/to/file.db"
DRIVERS = {"postgresql": "psycopg", "sqlite": "pysqlite"}
_INSTEAD = {
    "postgresql": "postgresql+psycopg://..., which is psycopg 3",
    "sqlite": "sqlite:///..., which is the sqlite3 of Python",
}
_SYNONYMS = {"postgres": "postgresql"}  # the spelling of hosting platforms, which SQLAlchemy does not take
_AROUND = " \t\"'`"
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def parse_url(bind: str | URL) -> URL:
    """The URL of a database that this package supports, with its driver.

    No error quotes any part of the URL but its scheme.

    :raises RepositoryError: for any other URL or text
    """
    url = _parse(bind) if isinstance(bind, str) else bind
    name, _, driver = url.drivername.partition("+")
    name = _SYNONYMS.get(name, name)
    check_driver(name, driver or DRIVERS.get(name, ""))
    if "@" in (url.host or ""):
        raise _refusal("the host in the URL has an @; if it is part of the password, write %40 for it")
    return url.set(drivername=f"{name}+{DRIVERS[name]}") if name == "postgresql" else url


def check_driver(name: str, driver: str) -> None:
    """Do nothing for a driver that this package supports.

    :raises RepositoryError: for any other
    """
    if DRIVERS.get(name) == driver:
        return
    instead = _INSTEAD.get(name, FORMS)
    raise RepositoryError(
        f"{'+'.join(filter(None, (name, driver)))} is not supported; write {instead}"
    ) from NotImplementedError(driver)


def _parse(text: str) -> URL:
    if text != text.strip(_AROUND) or _UNPRINTABLE.search(text):
        raise _refusal("the URL has quotes, blanks or a newline around it, or a control character in it; remove them")
    try:
        return make_url(text)
    except Exception:
        refusal = _refusal(
            f"the text is no URL of a database; write {FORMS}, with %40 for an @ in the password, %3A for a :, and a "
            "number as port; a SQLite URL has four slashes before an absolute path"
        )
    raise refusal  # outside of the handler, whose exception quotes the URL


def _refusal(message: str) -> RepositoryError:
    refusal = RepositoryError(message)
    refusal.__cause__ = ValueError("a URL that is not supported")
    return refusal
