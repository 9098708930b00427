"""What is built from the tree: complete, and all that an installation needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy import URL

from support.catalog import REPOSITORY, address

# The whole of an application: it makes the tables, and stores and fetches.
PROGRAM = """
import sys
from eric_sse_sql import Database, SqlStorageEngine, migrations
import eric_sse_sql
from eric_sse.message import Message

with Database(sys.argv[1]) as database:
    database.upgrade()
    database.check()
    storage = SqlStorageEngine(database)
    storage.upsert("greeting", Message("hello"))
    print(eric_sse_sql.__file__, migrations.__file__, storage.fetch_one("greeting").type, sep="\\n")
"""


def run(*command: object, folder: Path, **environment: str) -> str:
    """What a command prints, without anything of this tree on its path."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "ERIC_SSE_SQL_URL")}
    words = [str(part) for part in command]
    done = subprocess.run(words, cwd=folder, env=clean | environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which setuptools is new enough to build the package; fetched where it is not at hand."""
    try:
        if int(version("setuptools").split(".")[0]) >= 77:
            return {}
    except PackageNotFoundError:
        pass
    folder = tmp_path_factory.mktemp("setuptools")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--target", folder, "setuptools>=77", folder=folder)
    return {"PYTHONPATH": str(folder)}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory, builder: dict[str, str]) -> Path:
    """The source distribution of a copy of the tree."""
    tree, built = tmp_path_factory.mktemp("build") / "tree", tmp_path_factory.mktemp("sdist")
    shutil.copytree(REPOSITORY, tree, ignore=shutil.ignore_patterns(".*", "*.egg-info", "build", "dist", "__pycache__"))
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(built)!r})"
    run(sys.executable, "-c", build, folder=tree, **builder)
    (archive,) = built.iterdir()
    return archive


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, sdist: Path, builder: dict[str, str]) -> Path:
    """The wheel, built from the source distribution as an index would get both."""
    built = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation")
    run(*pip, "--wheel-dir", built, sdist, folder=built, **builder)
    (archive,) = built.iterdir()
    return archive


def files_of(folder: Path, *patterns: str) -> set[str]:
    return {str(path.relative_to(folder)) for pattern in patterns for path in folder.glob(pattern)}


def test_the_wheel_holds_the_package_and_its_migrations_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = {f"eric_sse_sql/{name}" for name in files_of(REPOSITORY / "eric_sse_sql", "**/*.py", "py.typed")}
    scripts = files_of(REPOSITORY / "migrations", "*.py", "script.py.mako", "versions/*.py")
    assert {"env.py", "versions/__init__.py", "versions/eric_sse_sql_0001_tables.py"} <= scripts
    expected = package | {f"eric_sse_sql/migrations/{name}" for name in scripts}
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_source_distribution_holds_the_migrations(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"migrations/{name}" for name in files_of(REPOSITORY / "migrations", "*.py", "*.mako", "*/*.py")} <= names
    assert {"pyproject.toml", "LICENSE", "eric_sse_sql/py.typed"} <= names


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """The Python of an environment with the wheel, whose dependencies are those of the running one."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, symlinks=os.name != "nt")
    (site,) = {*folder.glob("lib/python*/site-packages"), *folder.glob("Lib/site-packages")}
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    run(*pip, "--target", site, wheel, folder=folder)
    dependencies = Path(sqlalchemy.__file__).parent.parent  # .pth files in there, of editable installs, are not read
    (site / "dependencies.pth").write_text(f"{dependencies}\n")
    (found,) = {*folder.glob("bin/python"), *folder.glob("Scripts/python.exe")}
    return found


def test_an_installed_wheel_makes_the_tables_and_stores(python: Path, empty_url: URL, tmp_path: Path) -> None:
    folder = tmp_path / "an empty folder"
    folder.mkdir()
    package, migrations, fetched = run(python, "-I", "-c", PROGRAM, address(empty_url), folder=folder).splitlines()
    site = Path(package).parent.parent
    assert site.is_relative_to(python.parent.parent)
    assert Path(migrations) == site / "eric_sse_sql" / "migrations" / "__init__.py"
    assert fetched == "hello"
    assert list(folder.iterdir()) == []
