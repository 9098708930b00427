"""Forks of the test's own process, for tests of what a child inherits."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest

Test = TypeVar("Test", bound=Callable[..., object])


def forking(test: Test) -> Test:
    """Mark a test that forks, although its process has threads."""
    ignored = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    return pytest.mark.skipif(not hasattr(os, "fork"), reason="this machine can't fork")(ignored(test))


@contextmanager
def fork(work: Callable[[], object]) -> Iterator[None]:
    """Call a function in a forked child while the block runs, and wait for its end without an error."""
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    yield
    child.join(60)
    assert child.exitcode == 0
