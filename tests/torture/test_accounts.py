"""The account of a load finds a message that was taken away, one that was copied, and a half-done transaction."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from sqlalchemy import make_url

from eric_sse_sql import Database
from eric_sse_sql.contract import ERIC_SSE_2_0
from support.catalog import connected

if ERIC_SSE_2_0:
    pytest.skip("the torture runs the channels of eric-sse 2.1", allow_module_level=True)

from torture.databases import SQLITE, Target
from torture.load import account, load
from torture.outcome import MAX_GROWTH_BYTES, Outcome

COPY = """
INSERT INTO sse_messages (queue_id, message_type, message)
SELECT queue_id, message_type, message FROM sse_messages WHERE queue_id = 'relayed' ORDER BY id LIMIT 1"""


@pytest.fixture
def target(tmp_path: Path) -> Target:
    url = f"sqlite:///{tmp_path / 'torture.db'}"
    with Database(url) as database:
        database.upgrade()
    return Target(url, SQLITE, tmp_path)


def accounted(target: Target, *damage: str) -> Outcome:
    """The account of a short load, at the end of which some statements are executed on its tables."""
    outcome = Outcome(target.name)
    with load(target, target.url, 1, 100) as made:
        time.sleep(1)
        made.stop()
        for sql in damage:
            with connected(make_url(target.url)) as connection:
                assert connection.exec_driver_sql(sql).rowcount, "nothing was damaged"
        account(made, outcome)
    return outcome


def test_an_undamaged_load_has_nothing_lost_or_doubled(target: Target) -> None:
    outcome = accounted(target)
    assert (outcome.lost, outcome.doubled, outcome.disordered, outcome.findings) == (0, 0, 0, [])
    assert outcome.acknowledged and outcome.acknowledged > 50
    assert outcome.verdict == "ok"


def test_a_message_that_was_taken_away_is_lost(target: Target) -> None:
    delete = "DELETE FROM sse_messages WHERE id = (SELECT max(id) FROM sse_messages WHERE queue_id = 'relayed')"
    outcome = accounted(target, delete)
    assert (outcome.lost, outcome.doubled) == (1, 0)
    assert outcome.verdict == "FAILED"


def test_a_message_that_was_copied_is_doubled_and_out_of_order(target: Target) -> None:
    outcome = accounted(target, COPY)
    assert (outcome.lost, outcome.doubled, outcome.disordered) == (0, 1, 1)


def test_an_entry_without_its_transaction_and_a_channel_in_part_are_found(target: Target) -> None:
    outcome = accounted(
        target,
        "DELETE FROM kv_entries WHERE key LIKE 'torture/produce-%'",
        "DELETE FROM sse_connections WHERE channel_id LIKE 'register-%'",
    )
    assert any("transactions were done in part" in finding for finding in outcome.findings)
    assert any("channels were stored or deleted in part" in finding for finding in outcome.findings)


@pytest.mark.parametrize("leaks", [{"connections": 1}, {"files": 1}, {"threads": 1}, {"growth": MAX_GROWTH_BYTES}])
def test_a_leak_is_a_failure(leaks: dict[str, int]) -> None:
    assert not Outcome("SQLite", connections=0, files=0, threads=0, growth=0).has_failed
    assert Outcome("SQLite", **leaks).has_failed
