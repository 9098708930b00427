"""What is built from the tree: complete, and all that an installation needs."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import httpx
import pytest
from sqlalchemy import URL, make_url

from support.catalog import REPOSITORY, address, tables
from support.waiting import DEADLINE

README = (REPOSITORY / "README.md").read_text()
INSTALL = re.findall(r"^pip install .*", README, re.MULTILINE)
(APPLICATION,) = re.findall(r"^```python file app\.py\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
URL_OF_README = "sqlite:///app.db"
MOST_HEARTBEATS = 4  # one each 15 seconds without an event


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
    scripts = files_of(REPOSITORY / "migrations", "*.py", "alembic.ini", "script.py.mako", "versions/*.py")
    assert {"env.py", "versions/__init__.py", "versions/eric_sse_sql_0001_tables.py"} <= scripts
    expected = package | {f"eric_sse_sql/migrations/{name}" for name in scripts}
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert any(name.endswith(".dist-info/entry_points.txt") for name in names)


def test_the_source_distribution_holds_the_migrations_and_what_the_readme_links_to(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    migrations = files_of(REPOSITORY / "migrations", "*.py", "*.ini", "*.mako", "*/*.py")
    assert {f"migrations/{name}" for name in migrations} <= names
    assert {"pyproject.toml", "LICENSE", "eric_sse_sql/py.typed"} <= names
    links = {link for link in re.findall(r"\]\(([^)#]+)", README) if not link.startswith("https://")}
    assert links and links <= names


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """The folder of the programs of an environment in which the README's lines have installed the wheel."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=True, symlinks=os.name != "nt")
    (pip,) = {*folder.glob("bin/pip"), *folder.glob("Scripts/pip.exe")}
    assert INSTALL
    for line in INSTALL:
        words = [re.sub(r"^eric_sse_sql\b", str(wheel), word) for word in shlex.split(line, comments=True)]
        run(pip, *words[1:], folder=folder, PIP_NO_COMPILE="1")
    return pip.parent


@contextmanager
def served(uvicorn: Path, folder: Path) -> Iterator[httpx.Client]:
    """A client of the application in a folder, which is served by a process of its own."""
    command = [uvicorn, "app:app", "--port", "0"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            log = []
            for line in server.stderr:
                log.append(line)
                if address_of_server := re.search(r"running on (http://127\.0\.0\.1:\d+)", line):
                    break
            else:
                raise AssertionError("".join(log))
            with httpx.Client(base_url=address_of_server[1], timeout=DEADLINE, trust_env=False) as client:
                yield client
        finally:
            server.terminate()


@contextmanager
def streamed(client: httpx.Client, listener_id: str, last_event_id: str = "") -> Iterator[Iterator[dict[str, str]]]:
    """The events of a listener, as a browser reads them, which names the last one that it has seen."""
    headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_event_id} if last_event_id else {})
    with client.stream("GET", f"/events/{listener_id}", headers=headers) as response:
        assert (response.status_code, response.headers["content-type"].partition(";")[0]) == (200, "text/event-stream")
        yield events(response.iter_lines())


def events(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    event: dict[str, str] = {}
    heartbeats = 0
    for line in lines:
        name, _, value = line.partition(":")
        if name:
            event[name] = value.removeprefix(" ")
        elif line:
            heartbeats += 1
            assert heartbeats < MOST_HEARTBEATS, "no event has come"
        elif event:
            if "data" in event:
                yield event
            event = {}


def test_the_installed_wheel_leads_from_an_empty_folder_to_a_browser(
    scripts: Path, new_postgres: Callable[[], URL], tmp_path: Path
) -> None:
    """One test, since each process that runs one of several would install the wheel."""
    for url in (URL_OF_README, address(new_postgres())):
        folder = tmp_path / make_url(url).get_backend_name()
        folder.mkdir()
        if os.name != "nt":  # the lines are for a POSIX shell
            documented_lines_upgrade_and_downgrade(scripts, folder, url)
        (folder / "app.py").write_text(APPLICATION.replace(URL_OF_README, url))
        the_application_sends_events(scripts, folder)


def documented_lines_upgrade_and_downgrade(scripts: Path, folder: Path, url: str) -> None:
    documented = (REPOSITORY / "docs" / "command.md").read_text().splitlines()
    (alembic,) = (line for line in documented if line.startswith("python -m alembic "))
    environment = {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "ERIC_SSE_SQL_URL": url}
    for line in (alembic, "python -m eric_sse_sql check", alembic.replace("upgrade head", "downgrade base")):
        run("sh", "-c", line, folder=folder, **environment)
    assert tables(make_url(url.replace("sqlite:///", f"sqlite:///{folder}/"))) <= {"eric_sse_sql_version"}
    assert {path.name for path in folder.iterdir()} <= {"app.db"}


def the_application_sends_events(scripts: Path, folder: Path) -> None:
    with served(scripts / "uvicorn", folder) as client:
        assert "new EventSource(" in client.get("/").text
        assert client.get("/events/unknown").status_code == 404
        listener_id = client.post("/listeners").json()
        with streamed(client, listener_id) as received:
            for text in ("hello", "hello again"):
                client.post("/messages", json=text).raise_for_status()
            first, second = next(received), next(received)
        assert (first["event"], json.loads(first["data"])) == ("news", {"text": "hello"})
        assert json.loads(second["data"]) == {"text": "hello again"}
    with served(scripts / "uvicorn", folder) as client, streamed(client, listener_id, first["id"]) as received:
        assert next(received) == second
