"""Two releases of Python on one database."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from torture import exchange
from torture.databases import Bench
from torture.outcome import Outcome
from torture.suite import REPOSITORY

RELEASES = "3.10", "3.11", "3.12", "3.13"
INSTALL_SECONDS = 300


def run(bench: Bench) -> Iterator[Outcome]:
    """Another release of Python, with the package installed for it, reads what this one has stored, and vice versa."""
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    others = {release: found for release in RELEASES if release != ours and (found := _interpreter(release))}
    if not bench.sizes.has_other_releases:
        yield Outcome("all", skipped="a run of this size uses one release")
        return
    if not others:
        yield Outcome("all", skipped="there is one release of Python only")
        return
    for release in dict.fromkeys((min(others, key=RELEASES.index), max(others, key=RELEASES.index))):
        with tempfile.TemporaryDirectory(prefix="essql-torture-") as folder:
            try:
                python = _installed(others[release], Path(folder))
            except subprocess.CalledProcessError as error:
                yield Outcome(
                    "all", skipped=f"the package can't be installed for Python {release}: {error.stderr[-200:]}"
                )
                continue
            for target in bench.targets():
                outcome = Outcome(f"{target.name}, Python {ours} and {release}", load="a process of each")
                for ways in (("write", None), ("read", python)), (("write", python), ("read", None)):
                    for act, other in ways:
                        outcome.findings += _made(act, target.url, other)
                    outcome.acknowledged = (outcome.acknowledged or 0) + exchange.COUNT
                yield outcome


def _made(act: str, url: str, python: Path | None) -> list[str]:
    """What is wrong after an act of the exchange, here or by another interpreter."""
    if python is None:
        return exchange.ACTS[act](url)
    done = subprocess.run(
        [python, "-m", "torture.exchange", act, url], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    failed = [f"it has ended with {done.returncode}: {done.stderr[-300:]}"] if done.returncode else []
    return done.stdout.splitlines() + failed


def _interpreter(release: str) -> str | None:
    """An interpreter of a release: pyenv's, or one on the path that works."""
    of_pyenv = sorted(Path.home().glob(f".pyenv/versions/{release}.*/bin/python{release}"))
    on_path = shutil.which(f"python{release}")
    for candidate in (*map(str, of_pyenv), *filter(None, [on_path])):
        if subprocess.run([candidate, "--version"], capture_output=True).returncode == 0:
            return candidate
    return None


def _installed(interpreter: str, folder: Path) -> Path:
    """The interpreter of a new environment that has the package."""
    subprocess.run([interpreter, "-m", "venv", folder], check=True, capture_output=True, text=True)
    python = folder / "bin" / "python"
    packages = ["--editable", str(REPOSITORY), "psycopg[binary]>=3.2.10", f"eric-sse=={version('eric-sse')}"]
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", *packages],
        check=True,
        capture_output=True,
        text=True,
        timeout=INSTALL_SECONDS,
    )
    return python
