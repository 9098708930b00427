"""Runs the operations of a suite on each backend, and collects their figures."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness.backends import Backend
from benchmarks.harness.figures import Figure
from benchmarks.harness.optional_peers import Opener, open_peers
from benchmarks.harness.suite import Bench, Suite


@dataclass
class SuiteRun:
    """A suite and its figures so far.

    :param sizes: of the suite, for this run
    :param operations: the names of those to measure
    :param without: the beginnings of the names of peers to leave out, in lower case
    """

    suite: Suite
    sizes: Any
    operations: Sequence[str]
    without: Sequence[str] = ()
    figures: list[Figure] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether the run has all operations and peers of the suite, at full size."""
        return (
            list(self.operations) == list(self.suite.operations)
            and self.sizes == self.suite.sizes["full"]
            and not self.without
        )

    def measure(self, backend: Backend) -> None:
        """Measure the operations on one backend."""
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="essql-")))
            peers, remarks = stack.enter_context(open_peers(self._chosen(self.suite.peers(backend)), folder))
            self.remarks += [remark for remark in remarks if remark not in self.remarks]
            bench = Bench(backend, self.sizes, peers, self._chosen, folder)
            for operation in self.operations:
                began = time.monotonic()
                self.figures += self.suite.operations[operation](bench)
                took = time.monotonic() - began
                print(f"{backend.name}: {operation} took {took:.0f} s", file=sys.stderr, flush=True)

    def _chosen(self, openers: Mapping[str, Opener[Any]]) -> Mapping[str, Opener[Any]]:
        return {name: opener for name, opener in openers.items() if not name.lower().startswith(tuple(self.without))}
