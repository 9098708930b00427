"""The architecture of the package, read from its source: the order of imports, and where state and databases are."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

from support.catalog import REPOSITORY

NAME = "eric_sse_sql"
PACKAGE = REPOSITORY / NAME

#: From bottom to top. Modules and sub-packages import those of lower layers, and of their own without a cycle.
LAYERS = (
    {"keys", "models", "pickles", "plain_json"},
    {"arguments", "contract"},
    {"allow_list", "codec", "errors", "message_codec"},
    {"execution"},
    {"sql"},
    {"wakeups"},
    {"database"},
    {"message_ids", "overview"},
    {"queues", "storage"},
    {"streams"},
    {"identity_map"},
    {"fanout"},
    {"channels"},
    {"repositories", "starlette"},
    {"aio", "inmemory"},
    {"__init__"},
    {"cli"},
    {"__main__"},
)
LAYER_OF = {part: layer for layer, parts in enumerate(LAYERS) for part in parts}

#: The migrations are an Alembic environment, which only upgrades and checks need: they are imported when these run.
#: psycopg is an optional dependency: the modules that import it are imported when an engine of Postgres is used.
IMPORTED_LATER = {
    "database": {"migrations"},
    "cli.status": {"migrations"},
    "cli.tables": {"migrations"},
    "execution.engines": {"execution.postgres.driver", "execution.postgres.engine"},
}

#: Modules that may name a database in code: the databases' own, and those that choose between them.
DATABASE_MODULES = {"execution.engines", "execution.url"}
DATABASE_PACKAGES = "execution.postgres", "execution.sqlite"
DATABASE_NAMES = {"aiosqlite", "postgres", "postgresql", "pysqlite", "sqlite"}
#: Calls of SQLAlchemy that take such a name: it applies an argument on that database only.
DIALECT_VARIANTS = {"prefix_with", "with_hint", "with_variant"}

#: State of modules, apart from context variables: the registry that a fork of the process needs, what the databases on
#: an engine share, and what is known of channel objects whose classes are not this package's.
STATE = {
    "execution.fork": {"_abandoned", "_numbers", "_parts"},
    "wakeups.background": {"_by_engine"},
    "contract": {"_stored_ids"},
}
MUTABLE_CALLS = {"bytearray", "count", "cycle", "defaultdict", "deque", "dict", "list", "set", "SimpleQueue", "Queue"}
STATEFUL = ("Lock", "RLock", "Condition", "Event", "Semaphore", "Weak", "OrderedDict", "Counter", "local", "Thread")
MUTATORS = {
    *("add", "append", "appendleft", "clear", "discard", "extend", "insert", "pop", "popitem", "popleft", "remove"),
    *("setdefault", "sort", "update"),
}
CACHES = {"cache", "cached", "lru_cache"}


class Import(NamedTuple):
    """An import of a module of the package by another one."""

    importer: str
    imported: str
    is_at_once: bool  # whether it runs when the importer is imported


def module_name(path: Path) -> str:
    """The name of a module inside the package; that of a sub-package is the name of its folder."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


SOURCES = {module_name(path): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(source) for name, source in SOURCES.items()}


def imports_of(importer: str, tree: ast.Module) -> Iterator[Import]:
    """The modules of the package that a module imports."""
    inside = {
        child
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            paths = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{importer} imports relatively"
            paths = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for path in paths:
            root, *parts = path.split(".")
            if root == NAME:
                yield Import(importer, nearest_module(parts), node not in inside)


def nearest_module(parts: list[str]) -> str:
    """The module that has an imported name, or is the imported name."""
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in SOURCES:
            return ".".join(parts[:end])
    return parts[0]


IMPORTS = [each for name, tree in TREES.items() for each in imports_of(name, tree)]


def part_of(module: str) -> str:
    """The module or sub-package of the package's own folder that a module belongs to."""
    return module.split(".")[0]


def test_every_part_of_the_package_is_in_one_layer() -> None:
    assert {part_of(module) for module in SOURCES} == set(LAYER_OF)
    assert sum(map(len, LAYERS)) == len(LAYER_OF)


@pytest.mark.parametrize("module", SOURCES)
def test_a_module_imports_lower_layers_and_its_own(module: str) -> None:
    later = IMPORTED_LATER.get(module, set())
    upward = [
        each.imported
        for each in IMPORTS
        if each.importer == module
        and (part_of(each.imported) not in later or each.is_at_once)
        and LAYER_OF.get(part_of(each.imported), len(LAYERS)) > LAYER_OF[part_of(module)]
    ]
    assert upward == []


@pytest.mark.parametrize("module", SOURCES)
def test_a_module_imports_at_its_top(module: str) -> None:
    later = {each.imported for each in IMPORTS if each.importer == module and not each.is_at_once}
    assert later == IMPORTED_LATER.get(module, set())


def test_imports_have_no_cycle() -> None:
    graph: dict[str, set[str]] = {module: set() for module in SOURCES}
    for each in IMPORTS:
        if each.is_at_once:
            graph[each.importer].add(each.imported)
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph)


@pytest.mark.parametrize(
    "module",
    [module for module in SOURCES if module not in DATABASE_MODULES and not module.startswith(DATABASE_PACKAGES)],
)
def test_a_module_does_not_ask_which_database_it_is_on(module: str) -> None:
    assert list(database_names(TREES[module])) == []


def database_names(tree: ast.Module) -> Iterator[str]:
    """The names of databases and drivers in a module, other than in a variant of a type or prefix."""
    variants = {
        id(argument)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in DIALECT_VARIANTS
        for argument in (*node.args, *(keyword.value for keyword in node.keywords))
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in DATABASE_NAMES and id(node) not in variants:
            yield f"line {node.lineno}: {node.value}"


#: eric-sse 2.0 has no public way to the connections of a channel; its repositories store a copy without them.
MANGLED = {"contract": {"_AbstractChannel__connection_manager"}}


@pytest.mark.parametrize("module", SOURCES)
def test_a_module_uses_no_name_mangled_attribute_of_eric_sse(module: str) -> None:
    names = {node.attr for node in ast.walk(TREES[module]) if isinstance(node, ast.Attribute)}
    names |= {str(node.value) for node in ast.walk(TREES[module]) if isinstance(node, ast.Constant)}
    assert {name for name in names if name.startswith("_") and "__" in name[1:-2]} == MANGLED.get(module, set())


def test_only_the_repositories_of_eric_sse_2_0_copy_a_channel_without_its_connections() -> None:
    users = {module for module, source in SOURCES.items() if "without_connections(" in source}
    assert users == {"contract", "repositories.eric_sse_20"}


@pytest.mark.parametrize("module", SOURCES)
def test_a_module_has_no_state(module: str) -> None:
    assert set(state(TREES[module])) == STATE.get(module, set())


def state(tree: ast.Module) -> Iterator[str]:
    """The names at the top of a module that hold something which changes."""
    changed = set(changed_names(tree))
    for statement in top_level(tree):
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
            if any(called(decorator) in CACHES for decorator in statement.decorator_list):
                yield statement.name
        elif isinstance(statement, (ast.Assign, ast.AnnAssign)) and statement.value is not None:
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            for target in targets:
                name = ast.unparse(target)
                if name != "__all__" and (name in changed or is_stateful(statement.value)):
                    yield name


def top_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """The statements that run once, when a module is imported."""
    for statement in tree.body:
        yield statement
        if isinstance(statement, (ast.If, ast.Try)):
            yield from (each for each in ast.walk(statement) if isinstance(each, (ast.Assign, ast.AnnAssign)))


def called(node: ast.expr) -> str:
    """The name of what an expression calls or is."""
    function = node.func if isinstance(node, ast.Call) else node
    return ast.unparse(function).split("[")[0].split(".")[-1]


def is_stateful(value: ast.expr) -> bool:
    """Whether an expression makes an object that exists to be changed. A display of constants is none."""
    return isinstance(value, ast.Call) and (called(value) in MUTABLE_CALLS or called(value).startswith(STATEFUL))


def changed_names(tree: ast.Module) -> Iterator[str]:
    """The names that a module changes after their assignment."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield from node.names
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
            yield ast.unparse(node.func.value)
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, (ast.Store, ast.Del)):
            yield ast.unparse(node.value)
        elif isinstance(node, ast.AugAssign):
            yield ast.unparse(node.target)


@pytest.mark.parametrize(
    "source",
    [
        "seen = []\ndef see(x):\n    seen.append(x)",
        "seen: dict[str, int] = {}\ndef see(x):\n    seen[x] = 1",
        "count = 0\ndef see():\n    global count\n    count += 1",
        "lock = threading.Lock()",
        "watches = WeakValueDictionary()",
        "@functools.lru_cache(maxsize=None)\ndef see(x):\n    return x",
        "seen = set[str]()",
    ],
)
def test_state_of_every_kind_is_found(source: str) -> None:
    assert len(set(state(ast.parse(source)))) == 1


@pytest.mark.parametrize(
    "source", ['if engine.dialect.name == "sqlite": ...', 'if url.get_backend_name() in {"postgresql", "x"}: ...']
)
def test_a_question_for_the_database_is_found(source: str) -> None:
    assert len(list(database_names(ast.parse(source)))) == 1
