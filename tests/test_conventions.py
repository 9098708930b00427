"""Code outside of the package uses its public names only, and those of eric-sse."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.catalog import REPOSITORY

FILES = sorted(
    path for folder in ("tests", "benchmarks", "torture", "examples") for path in (REPOSITORY / folder).rglob("*.py")
)
ACCESSORS = {"getattr", "setattr", "delattr", "hasattr"}  # functions, and methods of pytest's monkeypatch
STANDARD_LIBRARY = {"os._exit"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def own_names(tree: ast.Module) -> set[str]:
    """The names that a file itself defines: functions, classes, variables and attributes."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_of_self(node):
            names.add(node.attr)
    return names


def is_of_self(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def private_names(source: str, inherited: set[str]) -> Iterator[str]:
    """The private names that a file uses and does not define.

    :param inherited: names of other files outside of the package, which a class may use through ``self``
    """
    tree = ast.parse(source)
    own = own_names(tree)
    for node in ast.walk(tree):
        used: list[str] = []
        if isinstance(node, ast.Attribute) and ast.unparse(node) not in STANDARD_LIBRARY:
            used = [] if is_of_self(node) and node.attr in inherited else [node.attr]
        elif isinstance(node, ast.ImportFrom):
            used = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            used = [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ACCESSORS:
            used = [
                argument.value
                for argument in node.args
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
            ]
        for name in used:
            if is_private(name) and name not in own:
                yield f"line {getattr(node, 'lineno', 0)}: {name}"


OUTSIDE_NAMES = {name for path in FILES for name in own_names(ast.parse(path.read_text()))}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_a_file_uses_no_private_name_of_another_module(path: Path) -> None:
    assert list(private_names(path.read_text(), OUTSIDE_NAMES)) == []


@pytest.mark.parametrize(
    "source",
    [
        "database.watcher._thread",
        "from eric_sse_sql.codec import _Pickler",
        "from eric_sse_sql import _private",
        "import eric_sse_sql._private",
        "monkeypatch.setattr(DataVersionPoller, '_read', read)",
        "getattr(channel, '_get_queue')",
        "class Mine(SqlQueue):\n    def name(self):\n        return self._queue_id",
        "class Mine(SqlQueue):\n    def name(self):\n        return super()._row(1)",
    ],
)
def test_every_way_to_a_private_name_is_found(source: str) -> None:
    assert len(list(private_names(source, set()))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "class Mine:\n    def __init__(self):\n        self._x = 1\n    def x_of(self, o):\n        return o._x",
        "def _mine(): ...\n_mine()",
        "os._exit(0)",
        "type(queue).__name__",
        "from __future__ import annotations",
    ],
)
def test_a_files_own_names_may_be_private(source: str) -> None:
    assert list(private_names(source, set())) == []
