"""The account of a load finds a message that was taken away, one that was copied, and a half-done transaction."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import make_url

from eric_sse_sql import Database
from eric_sse_sql.contract import ERIC_SSE_2_0
from support.catalog import connected
from support.waiting import until

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


DAMAGE = (
    "DELETE FROM sse_messages WHERE id = (SELECT max(id) FROM sse_messages WHERE queue_id = 'relayed')",
    COPY,
    "DELETE FROM kv_entries WHERE key LIKE 'torture/produce-%'",
    "DELETE FROM sse_connections WHERE channel_id LIKE 'register-%'",
)
THERE = """
SELECT (SELECT count(*) FROM sse_messages WHERE queue_id = 'relayed') > 5
    AND EXISTS (SELECT 1 FROM kv_entries WHERE key LIKE 'torture/produce-%')
    AND EXISTS (SELECT 1 FROM sse_connections WHERE channel_id LIKE 'register-%/2')"""


def test_an_account_finds_what_was_lost_copied_and_done_in_part(target: Target) -> None:
    outcome = Outcome(target.name)
    with load(target, target.url, 1, 100) as made:
        until(lambda: made.acknowledged() > 50 and target.rows(THERE) == [(True,)])
        made.stop()
        with connected(make_url(target.url)) as connection:
            for sql in DAMAGE:
                assert connection.exec_driver_sql(sql).rowcount, "nothing was damaged"
        account(made, outcome)
    assert (outcome.lost, outcome.doubled, outcome.disordered) == (1, 1, 1)
    assert outcome.acknowledged and outcome.acknowledged > 50
    assert any("transactions were done in part" in finding for finding in outcome.findings)
    assert any("channels were stored or deleted in part" in finding for finding in outcome.findings)
    assert len(outcome.findings) == 2
    assert outcome.verdict == "FAILED"


@pytest.mark.parametrize("leaks", [{"connections": 1}, {"files": 1}, {"threads": 1}, {"growth": MAX_GROWTH_BYTES}])
def test_a_leak_is_a_failure(leaks: dict[str, int]) -> None:
    assert not Outcome("SQLite", connections=0, files=0, threads=0, growth=0).has_failed
    assert Outcome("SQLite", **leaks).has_failed
