"""`ask --chat` and `ask --together` as a user runs them: in a pipe, and on a terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import SAMPLES, Run

NOTICE = str(SAMPLES / "documents" / "notice.bmp")
LETTER = str(SAMPLES / "documents" / "letter.pdf")
WHO = "Who is the recipient of the letter?"
ENVIRONMENT = {"IDEFICS_CLI_MODEL": "tiny", "OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "80"}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDEFICS_CLI_MODEL", "tiny")


def test_a_pipe_of_questions_is_a_conversation_that_encodes_its_page_once(cli: Run) -> None:
    done = cli("ask", NOTICE, WHO, "--chat", "--json", stdin="And the date?\nWho signed?\n/quit\nnot asked\n")
    assert done.returncode == 0, done.stderr
    first, second, third = map(json.loads, done.stdout.splitlines())
    assert [row["question"] for row in (first, second, third)] == [WHO, "And the date?", "Who signed?"]
    assert first["vision_ms"] > 0
    assert second["vision_ms"] == third["vision_ms"] == 0
    assert first["prompt_tokens"] < second["prompt_tokens"] < third["prompt_tokens"]
    assert len({row["key"] for row in (first, second, third)}) == 3


def test_answers_are_all_that_stdout_gets_and_the_conversation_is_that_of_messages(cli: Run, tmp_path: Path) -> None:
    done = cli("ask", NOTICE, "-q", WHO, "-q", "What is the date?", "--chat", stdin="Is it signed?\n\nnot asked\n")
    assert (done.returncode, done.stderr) == (0, "")
    answers = done.stdout.splitlines()
    assert len(answers) == 3
    assert answers[0] == "Diana Censki"
    turns: list[dict[str, object]] = [
        {"role": "user", "content": [{"type": "image", "path": NOTICE}, {"type": "text", "text": WHO}]},
        {"role": "assistant", "content": answers[0]},
        {"role": "user", "content": "What is the date?"},
    ]
    line = json.dumps({"messages": turns})
    run = cli("run", "-q", "-", "-o", "-", "--format", "jsonl", "--quiet", stdin=f"{line}\n")
    assert json.loads(run.stdout)["answer"] == answers[1]


def test_a_chat_may_begin_without_a_question(cli: Run) -> None:
    done = cli("ask", NOTICE, "--chat", stdin=f"{WHO}\n")
    assert (done.returncode, done.stdout) == (0, "Diana Censki\n")
    nothing = cli("ask", NOTICE, "--chat", stdin="")
    assert (nothing.returncode, nothing.stdout, nothing.stderr) == (0, "", "")


def test_a_question_that_fails_is_left_out_of_the_conversation(cli: Run) -> None:
    done = cli("ask", NOTICE, "--chat", "--json", stdin=f"an <image>?\n{WHO}\n")
    bad, good = map(json.loads, done.stdout.splitlines())
    assert done.returncode == 6
    assert bad["error"] == "bad-question: the question holds the model's special token <image>"
    assert (good["answer"], good["status"]) == ("Diana Censki", "ok")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((NOTICE, LETTER, WHO, "--chat"), 2, "--chat is about one document, not 2: --together reads them"),
        ((NOTICE, WHO, "--chat", "--across", "each"), 2, "--chat gives each question one answer"),
        ((NOTICE, LETTER, WHO, "--together", "--across", "each"), 2, "--together gives all pages one answer"),
        (("-", WHO, "--chat"), 2, "--chat reads its questions from stdin"),
        (("gone.pdf", "--chat"), 3, "gone.pdf"),
    ],
)
def test_what_can_not_be_a_conversation(cli: Run, arguments: tuple[str, ...], code: int, words: str) -> None:
    done = cli("ask", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr


def test_a_line_that_is_no_text_is_named() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "idefics_cli", "ask", NOTICE, "--chat"],
        input=b"caf\xe9?\n",
        capture_output=True,
        env={**os.environ, **ENVIRONMENT},
        check=False,
    )
    assert done.returncode == 3
    assert done.stderr == b"error: <stdin>:1: not UTF-8 (byte 0xe9)\n"


def test_documents_of_the_command_line_read_together(cli: Run) -> None:
    done = cli("ask", NOTICE, LETTER, WHO, "--together", "--json")
    (row,) = map(json.loads, done.stdout.splitlines())
    assert row["document"] == f"{NOTICE}; {LETTER}"
    assert (row["page"], row["status"]) == ("1; 1", "ok")
    apart = cli("ask", NOTICE, LETTER, WHO, "--json")
    assert len(apart.stdout.splitlines()) == 2
    chat = cli("ask", NOTICE, LETTER, WHO, "--together", "--chat", "--json", stdin="And the other?\n")
    first, second = map(json.loads, chat.stdout.splitlines())
    assert first["answer"] == row["answer"]
    assert second["vision_ms"] == 0
    assert second["document"] == row["document"]


class Terminal:
    """A chat on a pseudo-terminal, typed into and read from."""

    def __init__(self, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "idefics_cli", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, **ENVIRONMENT},
            start_new_session=True,
        )
        os.close(theirs)
        self.shown = ""

    def wait_for(self, words: str) -> None:
        while words not in self.shown:
            assert select.select([self._ours], [], [], 120)[0], self.shown
            self._read()

    def type(self, text: str) -> None:
        self.shown = ""
        os.write(self._ours, text.encode())

    def end(self) -> int:
        while select.select([self._ours], [], [], 60)[0] and self._read():
            pass
        os.close(self._ours)
        return self.process.wait(10)

    def _read(self) -> bool:
        try:
            found = os.read(self._ours, 4096).decode(errors="replace")
        except OSError:  # closed at the other end
            return False
        self.shown += found.replace("\r\n", "\n")
        return bool(found)


@pytest.mark.parametrize("ending", ["\x04", "\n", "/quit\n"])
def test_on_a_terminal_a_prompt_asks_for_the_next_question(ending: str) -> None:
    terminal = Terminal("ask", NOTICE, WHO, "--chat")
    terminal.wait_for("Diana Censki\n> ")
    terminal.type("What is the date?\n")
    terminal.wait_for("\n> ")
    answer = terminal.shown.split("\n")[1]
    assert answer
    terminal.type(ending)
    assert terminal.end() == 0
    assert "error" not in terminal.shown


def test_ctrl_c_ends_a_chat_as_it_ends_everything() -> None:
    terminal = Terminal("ask", NOTICE, WHO, "--chat")
    terminal.wait_for("Diana Censki\n> ")
    time.sleep(0.5)  # until it reads: a signal in the instant before is seen only when the next line comes
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 130
    assert "interrupted" in terminal.shown
    assert "Traceback" not in terminal.shown
