"""Reads how much memory the process uses, on Linux."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

_SELF = Path("/proc/self")


def peak_growth(work: Callable[[], object]) -> int | None:
    """By how many bytes the resident memory exceeded its start while some work ran; None on other systems."""
    if not (_SELF / "clear_refs").exists():
        return None
    gc.collect()
    (_SELF / "clear_refs").write_text("5")  # resets VmHWM, the peak, to what is resident now
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def resident_bytes() -> int | None:
    """The resident memory after a garbage collection, in bytes; None on other systems."""
    if not (_SELF / "status").exists():
        return None
    gc.collect()
    return _status("VmRSS")


def _status(name: str) -> int:
    lines = (_SELF / "status").read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return int(kilobytes) * 1024
