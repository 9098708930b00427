"""All statements: that they compile, and that databases with restrictions take them."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
from sqlalchemy import create_engine

from eric_sse_sql import sql
from eric_sse_sql.execution.postgres.dialect import PostgresDialect
from eric_sse_sql.execution.sqlite.dialect import SqliteDialect
from eric_sse_sql.execution.statement import NotifyingStatement, Statement

DIALECTS = {"sqlite://": SqliteDialect(), "postgresql+psycopg://": PostgresDialect()}


def statements() -> Iterator[tuple[str, Statement]]:
    """The name and the value of each constant in the modules of ``sql``."""
    for module in pkgutil.iter_modules(sql.__path__):
        for name, value in vars(import_module(f"{sql.__name__}.{module.name}")).items():
            for statement in value if isinstance(value, tuple) else (value,):
                if isinstance(statement, Statement):
                    yield f"{module.name}.{name}", statement


ALL = list(statements())


def compiled(url: str, schema: str | None = None) -> list[tuple[str, str]]:
    engine, dialect = create_engine(url), DIALECTS[url]
    return [(name, statement.compile(engine, dialect, schema).sql) for name, statement in ALL]


def test_the_statements_of_every_module_are_found() -> None:
    modules = {module.name for module in pkgutil.iter_modules(sql.__path__)}
    assert {name.split(".")[0] for name, _ in ALL} == modules
    assert NotifyingStatement in {type(value) for value in vars(import_module("eric_sse_sql.sql.messages")).values()}


@pytest.mark.parametrize("url", DIALECTS)
def test_do_update_calls_no_function(url: str) -> None:
    """Citus refuses functions such as CURRENT_TIMESTAMP there. COALESCE is an operator."""
    updates = [
        (name, found[1])
        for name, text in compiled(url)
        if (found := re.search(r"DO UPDATE SET (.*?)(?: RETURNING|\)? *SELECT|$)", text, re.DOTALL))
    ]
    assert len(updates) >= 5
    called: dict[str, Any] = {
        name: re.findall(r"\b(\w+) *\(|\b(CURRENT_\w+|LOCAL\w+)\b", clause, re.IGNORECASE) for name, clause in updates
    }
    functions = {name: [call for call in found if call != ("coalesce", "")] for name, found in called.items()}
    assert {name: found for name, found in functions.items() if found} == {}


def test_every_table_of_a_statement_is_in_the_schema() -> None:
    for name, text in compiled("postgresql+psycopg://", schema="tenant"):
        tables = re.findall(r"(?:FROM|INTO|JOIN|UPDATE) +([\w.\"]*(?:kv_|sse_)\w+)", text)
        assert all(table.startswith("tenant.") for table in tables), name
