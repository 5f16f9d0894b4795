from __future__ import annotations

import re

import pytest

from idefics_cli.cli.console import log, note, set_up_messages, summary
from idefics_cli.config import MessageSettings
from idefics_cli.errors import one_line


def say_everything() -> None:
    log.error("an error")
    log.warning("a warning")
    note("a note")
    summary("2 rows", is_failure=False)
    summary("1 failed", is_failure=True)
    log.info("what is chosen")


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (MessageSettings(), ["error: an error", "warning: a warning", "note: a note", "2 rows", "1 failed"]),
        (MessageSettings(quiet=True), ["error: an error", "1 failed"]),
        (
            MessageSettings(verbose=True),
            ["error: an error", "warning: a warning", "note: a note", "2 rows", "1 failed", "what is chosen"],
        ),
    ],
)
def test_messages_by_what_the_user_wants(
    messages: MessageSettings, expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    set_up_messages(messages)
    say_everything()
    said = capsys.readouterr()
    assert said.err.splitlines() == expected
    assert said.out == ""


def test_messages_of_a_log_are_dated(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_messages(MessageSettings(), is_dated=True)
    say_everything()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ \S", line) for line in capsys.readouterr().err.splitlines())


def test_a_line_is_one_line_and_does_nothing_to_a_terminal() -> None:
    assert one_line(" a\nb\t c\u2028d\x85e ") == "a b c d e"
    assert one_line("\x1b[2Jgone\x07 \x9b1m") == "\ufffd[2Jgone\ufffd \ufffd1m"
    assert one_line("naïve 日本 👩‍👩‍👧") == "naïve 日本 👩‍👩‍👧"
