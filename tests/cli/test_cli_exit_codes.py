"""The exit codes: 0 done, 1 refused by the database, 2 wrong arguments, and those of signals."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from eric_sse_sql.migrations import newest_revision
from sqlalchemy import URL

from support.catalog import address, tables
from support.command import Command, runner, running
from support.waiting import until

WRONG = {
    "no command": ([], "COMMAND"),
    "no age": (["prune"], "--older-than"),
    "no unit": (["prune", "--older-than", "7"], "write a number and a unit"),
    "no JSON": (["send", "channel", "type", "{a}"], "the payload is not JSON"),
    "NaN": (["send", "channel", "type", "[NaN]"], "NaN is not JSON"),
    "no pause": (["status", "--watch", "0"], "more than 0"),
    "no number": (["status", "--limit", "-1"], "whole number"),
}


@pytest.mark.parametrize(("arguments", "text"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_2(capsys: pytest.CaptureFixture[str], arguments: list[str], text: str) -> None:
    done = runner(capsys)("--url", "sqlite://", *arguments)
    assert (done.code, done.out) == (2, "")
    assert text in done.err


def test_a_command_without_a_database_is_2(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ERIC_SSE_SQL_URL", raising=False)
    done = runner(capsys)("check")
    assert done.code == 2
    assert "give --url, or set ERIC_SSE_SQL_URL" in done.err


def test_upgrade_makes_the_tables_that_check_finds(empty_url: URL, capsys: pytest.CaptureFixture[str]) -> None:
    command, url = runner(capsys), address(empty_url)
    missing = command("check", "--url", url)
    assert (missing.code, missing.out, missing.err.count("\n")) == (1, "", 1)
    assert "run `eric-sse-sql upgrade`" in missing.err
    script = command("--url", url, "upgrade", "--sql")
    assert script.code == 0
    assert "CREATE TABLE sse_channels" in script.out
    assert tables(empty_url) == set()
    assert command("--url", url, "upgrade", "no such revision").code == 1
    assert command("--url", url, "upgrade") == (0, f"the tables are at {newest_revision()}\n", "")
    found = command("check", "--url", url)
    assert found == (0, f"the tables are at {newest_revision()}, as this release needs them\n", "")


@pytest.mark.parametrize("name", ["send", "tail"])
def test_an_unknown_channel_is_1(command: Command, name: str) -> None:
    done = command(name, "nowhere", *(["type", "1"] if name == "send" else []))
    assert done == (1, "", "eric-sse-sql: no channel nowhere is stored in the database\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "postgresql+psycopg://user:hunter2@127.0.0.1:1/nothing"),
        ("status", "postgresql+psycopg://user:hunter2@127.0.0.1:one/nothing"),
        ("upgrade", "user:hunter2"),
        ("upgrade", "oracle://user:hunter2@host/name", "--sql"),
    ],
)
def test_a_database_that_cannot_be_used_is_1_in_one_line_without_the_password(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    name, url, *others = arguments
    done = runner(capsys)(name, "--url", url, *others)
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert "hunter2" not in done.err


def test_an_interrupt_is_130_and_prints_no_traceback(migrated_sqlite: Path, tmp_path: Path) -> None:
    with running(tmp_path, "--url", f"sqlite:///{migrated_sqlite}", "status", "--watch", "0.05") as watching:
        until(lambda: watching.out.read_text().count("Channels") >= 2)
        done = watching.end(signal.SIGINT)
    assert (done.code, done.err) == (130, "")
    assert "\x1b" not in done.out
