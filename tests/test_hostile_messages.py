"""Conversations that nobody would write, through real processes: each a failed row, and the lines around it answered."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.conftest import SAMPLES, Run

NOTICE = str(SAMPLES / "documents" / "notice.bmp")
IMAGE = {"type": "image", "path": NOTICE}
TEXT = {"type": "text", "text": "Who is the recipient of the letter?"}


def user(*parts: object) -> dict[str, object]:
    return {"role": "user", "content": [*parts]}


GOOD = json.dumps({"messages": [user(IMAGE, TEXT)]})
HOSTILE: dict[str, tuple[str, str]] = {
    "a text": (json.dumps({"messages": "Who?"}), "bad-question: messages: a list of turns"),
    "nested 10,000 deep": (
        '{"messages": [{"role": "user", "content": ' + "[" * 10_000 + "]" * 10_000 + "}]}",
        "bad-question: nested deeper than 100 levels",
    ),
    "nested 10,000 objects": (
        '{"messages": ' + '{"content": ' * 10_000 + "1" + "}" * 10_001,
        "bad-question: nested deeper than 100 levels",
    ),
    "an unknown role": (json.dumps({"messages": [{"role": "root", "content": "x"}]}), "role 'root' is none of"),
    "an image from nowhere": (json.dumps({"messages": [user({"type": "image"}, TEXT)]}), "is wanted under one of"),
    "1,000 images": (json.dumps({"messages": [user(*[IMAGE] * 1_000, TEXT)]}), "1,000 documents; at most 500"),
    "10,000 turns": (
        json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 5_000}),
        "the last turn is the assistant's",
    ),
    "more than the model takes": (json.dumps({"messages": [user(*[IMAGE] * 200, TEXT)]}), "too-large: "),
    "a special token": (
        json.dumps({"messages": [user(IMAGE, {"type": "text", "text": "a <image> b"})]}),
        "bad-question: the question holds the model's special token <image>",
    ),
    "a special token in an answer": (
        json.dumps({"messages": [user(IMAGE, TEXT), {"role": "assistant", "content": "</s>"}, user(TEXT)]}),
        "bad-question: turn 2 of the conversation holds the model's special token </s>",
    ),
    "half a surrogate pair": (
        '{"messages": [{"role": "user", "content": "\\ud800"}]}',
        "bad-question: half of a surrogate pair",
    ),
    "an address": (
        json.dumps({"messages": [user({"type": "image_url", "image_url": "http://127.0.0.1:1/a.png"}, TEXT)]}),
        "addresses are fetched only with --allow-urls",
    ),
    "a data URI that is none": (
        json.dumps({"messages": [user({"type": "image", "url": "data:image/png;base64,%"}, TEXT)]}),
        "unreadable: ",
    ),
    "a file of others": (json.dumps({"messages": [user({"type": "image", "path": "/etc/passwd"}, TEXT)]}), ""),
    "a folder above": (json.dumps({"question": "q", "documents": ["../.."]}), "neither below --root"),
}


def test_in_a_pipe_each_is_a_failed_row(cli: Run) -> None:
    lines = [line for bad, _ in HOSTILE.values() for line in (bad, GOOD)]
    arguments = ("--model", "tiny", "--quiet", "--format", "jsonl", "--root", str(SAMPLES))
    done = cli("run", "-q", "-", "-o", "-", *arguments, stdin="".join(f"{line}\n" for line in lines))
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 6, done.stderr
    assert "Traceback" not in done.stderr
    assert len(rows) == len(lines)
    for (name, (_, words)), bad, good in zip(HOSTILE.items(), rows[::2], rows[1::2], strict=True):
        assert (bad["status"], good["status"], good["answer"]) == ("failed", "ok", "Diana Censki"), name
        assert re.sub(r"<stdin>:\d+: ", "", bad["error"]).find(words) >= 0, name
        assert len(bad["error"]) < 700


def test_in_a_file_they_are_named_with_their_line_before_the_start(cli: Run, tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    names = ("an unknown role", "nested 10,000 deep", "1,000 images", "an address")
    file.write_text("".join(f"{line}\n" for name in names for line in (GOOD, HOSTILE[name][0])))
    done = cli("run", "-q", file, "-o", tmp_path / "out.csv", "--model", "tiny")
    assert done.returncode == 3
    for number, (name, line) in enumerate(zip(names, done.stderr.splitlines(), strict=True), 1):
        assert f"{file}:{2 * number}: bad-question: " in line
        assert HOSTILE[name][1].removeprefix("bad-question: ") in line
    assert not (tmp_path / "out.csv").exists()


def test_a_table_has_no_conversations(cli: Run, tmp_path: Path) -> None:
    file = tmp_path / "q.csv"
    file.write_text("question,documents\nq,a.pdf\n")
    done = cli("run", "-q", file, "-o", "-", "--model", "tiny")
    assert done.returncode == 3
    assert f"{file}:1: column 'documents': CSV has no lists" in done.stderr
