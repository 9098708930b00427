"""Describes the machine and the versions that the figures depend on."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import psycopg


def describe_machine(database_versions: Iterable[str]) -> dict[str, str]:
    """The machine and the versions, by label."""
    return {
        "Machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
        "Disk": f"{_flush_seconds() * 1e6:.1f} µs for a flush",
        **describe_installation(),
        "Databases": ", ".join([*dict.fromkeys(database_versions), *_redis()]),
    }


def describe_installation() -> dict[str, str]:
    """The versions of Python and of the packages that this interpreter has, by label."""
    return {
        "Python": platform.python_version(),
        "eric-sse": version("eric-sse"),
        "SQLAlchemy": version("SQLAlchemy"),
        "psycopg": f"{psycopg.__version__} ({psycopg.pq.__impl__})",
    }


def _flush_seconds() -> float:
    """The median time of an fsync after a small write: a lower bound of a durable commit."""
    times = []
    with tempfile.TemporaryFile() as file:
        for _ in range(50):
            file.write(os.urandom(4096))
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _redis() -> list[str]:
    program = shutil.which("redis-server")
    if program is None:
        return []
    words = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.split()
    return [f"Redis {word.removeprefix('v=')}" for word in words if word.startswith("v=")]
