"""What a part has counted on one database, and when that is a failure."""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_GROWTH_BYTES = 1_000_000  # of a process after the first third of its work


@dataclass
class Outcome:
    """The counts of a part on one database. A count of None was not taken.

    :param database: its name
    :param load: how many processes and threads called, and for how long
    :param calls: that were made, with those that failed
    :param faults: that were injected
    :param bad_inputs: that were tried
    :param acknowledged: calls that have returned
    :param lost: messages whose push has returned, and that no consumer got, beyond what the package promises
    :param doubled: deliveries of a message that was delivered before, beyond what the package promises
    :param disordered: deliveries of a message after a later one of the same producer, beyond what the package promises
    :param connections: of the server or of the pool that are left
    :param files: descriptors that are left
    :param threads: that are left
    :param growth: bytes of memory that were added
    :param findings: what else is wrong, a sentence each
    :param figures: what was measured, by its name
    :param skipped: why the part did not run
    """

    database: str
    load: str = ""
    calls: int | None = None
    faults: int | None = None
    bad_inputs: int | None = None
    acknowledged: int | None = None
    lost: int | None = None
    doubled: int | None = None
    disordered: int | None = None
    connections: int | None = None
    files: int | None = None
    threads: int | None = None
    growth: int | None = None
    findings: list[str] = field(default_factory=list)
    figures: dict[str, str] = field(default_factory=dict)
    skipped: str | None = None

    @property
    def has_failed(self) -> bool:
        """Whether something was lost, doubled, out of order or leaked, or is wrong otherwise."""
        counts = self.lost, self.doubled, self.disordered, self.connections, self.files, self.threads
        return any(counts) or (self.growth or 0) >= MAX_GROWTH_BYTES or bool(self.findings)

    @property
    def verdict(self) -> str:
        """In one word."""
        if self.skipped is not None:
            return "skipped"
        return "FAILED" if self.has_failed else "ok"
