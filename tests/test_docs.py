"""The snippets of the README and of each page in docs, run from top to bottom in an empty folder, on each database.

A fence of ``python``, ``sql`` or ``sh`` is run; the words behind its language say how:

- ``eric-sse-2.1``, ``sqlite``, ``postgres``: with this release or this database alone;
- ``transaction``: first with an error in place of its commit, or at its end where it has none: that must change no row;
- ``file NAME``: it is written into the folder under this name, and not run;
- ``not run: REASON``: it is not run.

A ``print`` that stands at the beginning of a line has what it prints as a comment.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, Engine, inspect, text

import eric_sse_sql
from eric_sse_sql import Database
from eric_sse_sql.contract import ERIC_SSE_2_0
from support.catalog import address, connected
from support.pages import DOCS, PAGES, URL_OF_PAGES, snippets

PRINT = re.compile(r"^ *print\(.*\)  # (.*)$", re.MULTILINE)
TO_THE_LAST_BLOCK = re.compile(r"\A(.*^( +)\S[^\n]*)", re.MULTILINE | re.DOTALL)  # to the end of its last line
COMMIT = re.compile(r"^( *)(?:await )?\w+\.commit\(\).*$", re.MULTILINE)
LABELS = {"eric-sse-2.1", "sqlite", "postgres", "transaction"}


class ApplicationError(Exception):
    """Of the application, before its commit."""


RUN = {page: [each for each in snippets(page) if each.is_run] for page in PAGES}


@contextmanager
def module_of(page: Path) -> Iterator[types.ModuleType]:
    """A module for the names of a page, which pickle can import classes from; its databases are closed at the end."""
    module = types.ModuleType("page_" + re.sub(r"\W", "_", page.stem))
    sys.modules[module.__name__] = module
    try:
        yield module
    finally:
        for value in [*vars(module).values()]:
            if isinstance(value, Database):
                value.close()
            elif isinstance(value, Engine):
                value.dispose()
        del sys.modules[module.__name__]


def run_python(code: str, line: int, page: Path, module: types.ModuleType) -> None:
    exec(compile("\n" * (line - 1) + code, page, "exec"), vars(module))


def run_sql(code: str, url: URL) -> None:
    with connected(url) as connection:
        driver: Any = connection.connection.driver_connection
        if url.get_backend_name() == "sqlite":
            driver.executescript(code)
        else:
            driver.execute(code)


def run_shell(code: str, folder: Path, url: URL) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "ERIC_SSE_SQL_URL": address(url)}
    command = ["bash", "-euc", code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def failing(code: str) -> str:
    """A snippet with an error in place of its commit, or at the end of its last block, which commits there."""
    if COMMIT.search(code):
        return COMMIT.sub(r"\1raise ApplicationError", code)
    return TO_THE_LAST_BLOCK.sub(r"\1\n\2raise ApplicationError", code)


def row_counts(url: URL) -> dict[str, int]:
    with connected(url) as connection:
        tables = inspect(connection).get_table_names()
        return {table: connection.execute(text(f'SELECT count(*) FROM "{table}"')).scalar_one() for table in tables}


@pytest.mark.parametrize("page", [page for page in PAGES if RUN[page]], ids=lambda page: page.stem)
def test_every_snippet_of_a_page_runs(
    page: Path, empty_url: URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    backend = {"postgresql": "postgres"}.get(empty_url.get_backend_name(), "sqlite")
    skipped = {"sqlite", "postgres"} - {backend} | ({"eric-sse-2.1"} if ERIC_SSE_2_0 else set())
    with module_of(page) as module:
        for snippet in RUN[page]:
            if snippet.labels & skipped:
                continue
            code = snippet.code.replace(URL_OF_PAGES, address(empty_url))
            if snippet.file:
                (folder / snippet.file).write_text(code)
            elif snippet.language == "sql":
                run_sql(code, empty_url)
            elif snippet.language == "sh":
                run_shell(code, folder, empty_url)
            else:
                if "transaction" in snippet.labels:
                    before = row_counts(empty_url)
                    module.__dict__["ApplicationError"] = ApplicationError
                    with pytest.raises(ApplicationError):
                        run_python(failing(code), snippet.line, page, module)
                    assert row_counts(empty_url) == before
                    capsys.readouterr()
                run_python(code, snippet.line, page, module)
                assert capsys.readouterr().out.splitlines() == PRINT.findall(code)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_each_snippet_is_found_and_its_label_is_known(page: Path) -> None:
    found = snippets(page)
    assert len(found) == len(re.findall(r"```(python|sql|sh)\b", page.read_text()))
    assert set().union(*(each.labels for each in found)) <= LABELS


def test_the_reference_has_every_public_name() -> None:
    reference = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    assert [name for name in eric_sse_sql.__all__ if f":: eric_sse_sql.{name}\n" not in reference] == []
