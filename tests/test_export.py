from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from idefics_cli.batch import run
from idefics_cli.config import (
    Across,
    Format,
    GenerationSettings,
    ModelSettings,
    OutputSettings,
    PageSettings,
    QuestionSettings,
    RunSettings,
    Split,
)
from idefics_cli.errors import InputError, OutputError, UsageError
from idefics_cli.export import BatchExport, ExportResult, export_batch
from tests.batch_lines import RequestEngine, image, request, write_lines
from tests.conftest import SAMPLES, Run

Png = Callable[..., Path]


def exported(
    path: Path,
    documents: list[Path],
    questions: str | list[str],
    across: Across = Across.TOGETHER,
    asked: QuestionSettings | None = None,
    **how: Any,
) -> ExportResult:
    settings = RunSettings(PageSettings(workers=1, across=across), questions=asked or QuestionSettings())
    values: dict[str, Any] = {"model": "theirs", "generation": GenerationSettings(), "longest_edge": 200}
    given = BatchExport(**values | how)
    return export_batch(list(map(str, documents)), questions, path, settings, given)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def sizes_of(line: dict[str, Any]) -> list[tuple[int, int]]:
    parts = [part for message in line["body"]["messages"] for part in message["content"] if isinstance(part, dict)]
    uris = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return [Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).size for uri in uris]


def test_a_line_asks_what_a_row_answers_and_bears_its_key(grey_png: Png, tmp_path: Path) -> None:
    page, fax = grey_png("a.png", 40), SAMPLES / "documents" / "fax.tiff"
    rows: list[Any] = []
    plain = RunSettings(PageSettings(workers=1), ModelSettings("tiny"), output=OutputSettings(tmp_path / "out.csv"))
    run(
        [str(page), str(fax)],
        ["one", "two"],
        plain,
        io.StringIO(),
        engine=RequestEngine(),
        on_row=lambda row, _: rows.append(row),
    )
    generation = GenerationSettings(max_new_tokens=9, temperature=0.5, stop=("x",))
    result = exported(tmp_path / "b.jsonl", [page, fax], ["one", "two"], generation=generation)
    assert (result.paths, result.lines, result.left_out) == ([tmp_path / "b.jsonl"], 4, 0)
    lines = lines_of(tmp_path / "b.jsonl")
    assert [line["custom_id"] for line in lines] == [row.key for row in rows]
    first = lines[0]
    assert (first["method"], first["url"]) == ("POST", "/v1/chat/completions")
    assert {name: value for name, value in first["body"].items() if name != "messages"} == {
        "model": "theirs", "max_tokens": 9, "temperature": 0.5, "stop": ["x"],
    }  # fmt: skip
    assert [part["type"] for part in first["body"]["messages"][0]["content"]] == ["image_url", "text"]
    assert sizes_of(first) == [(150, 200)]
    assert len(sizes_of(lines[2])) > 1  # all pages of the TIFF in one line
    assert all(max(size) <= 200 for size in sizes_of(lines[2]))


def test_a_batch_file_is_answered_by_run_and_its_answers_joined_by_key(grey_png: Png, tmp_path: Path) -> None:
    pages = [grey_png("a.png", 40), grey_png("b.png", 80)]
    exported(tmp_path / "b.jsonl", pages, ["Who?"])
    settings = RunSettings(
        PageSettings(workers=1),
        ModelSettings("tiny"),
        output=OutputSettings(tmp_path / "out.jsonl", Format.OPENAI_BATCH),
    )
    run([], str(tmp_path / "b.jsonl"), settings, io.StringIO(), engine=RequestEngine())
    answers = {
        line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"]
        for line in lines_of(tmp_path / "out.jsonl")
    }
    keys = [line["custom_id"] for line in lines_of(tmp_path / "b.jsonl")]
    assert [answers[key] for key in keys] == ["Who? @40", "Who? @80"]


def test_each_page_may_have_a_line_and_the_best_one_none(tmp_path: Path) -> None:
    fax = SAMPLES / "documents" / "fax.tiff"
    result = exported(tmp_path / "b.jsonl", [fax], ["one"], Across.EACH)
    assert result.lines > 1
    assert all(len(sizes_of(line)) == 1 for line in lines_of(tmp_path / "b.jsonl"))
    with pytest.raises(UsageError, match="together"):
        exported(tmp_path / "c.jsonl", [fax], ["one"], Across.BEST)
    limited = exported(tmp_path / "d.jsonl", [fax], ["one"], Across.EACH, QuestionSettings(limit=1))
    assert limited.lines == 1


def test_copies_of_a_document_have_lines_of_their_own(grey_png: Png, tmp_path: Path) -> None:
    exported(tmp_path / "b.jsonl", [grey_png("a.png", 40), grey_png("b.png", 40)], ["one"])
    first, second = (line["custom_id"] for line in lines_of(tmp_path / "b.jsonl"))
    assert second == f"{first}-2"


def test_files_are_split_at_the_limits_of_the_form(grey_png: Png, tmp_path: Path) -> None:
    questions = [f"Question {number}" for number in range(5)]
    result = exported(tmp_path / "b.jsonl", [grey_png("a.png", 40)], questions, most_lines=2)
    assert [path.name for path in result.paths] == ["b-00001.jsonl", "b-00002.jsonl", "b-00003.jsonl"]
    assert [len(lines_of(path)) for path in result.paths] == [2, 2, 1]
    result = exported(tmp_path / "c.jsonl", [grey_png("a.png", 40)], questions, most_bytes=300)
    assert (result.paths, result.left_out) == ([], 5)
    assert "too-large: its line would have more than the 0.0003 MB" in result.left_out_names[0]


def test_conversations_and_examples_are_written_as_they_are_asked(grey_png: Png, tmp_path: Path) -> None:
    grey_png("a.png", 40)
    grey_png("b.png", 80)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "text", "text": "Who?"}]},
        {"role": "assistant", "content": "Erik"},
        {"role": "user", "content": "When?"},
    ]
    (tmp_path / "q.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    (tmp_path / "ex.csv").write_text("document,question,answer\nb.png,Where?,Here\n")
    asked = QuestionSettings(examples=tmp_path / "ex.csv")
    exported(tmp_path / "b.jsonl", [], str(tmp_path / "q.jsonl"), asked=asked)
    (line,) = lines_of(tmp_path / "b.jsonl")
    turns = line["body"]["messages"]
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert turns[1]["content"][1]["text"] == "Where?"
    assert (turns[2]["content"], turns[4]["content"], turns[5]["content"]) == ("Here", "Erik", "When?")
    assert len(sizes_of(line)) == 2


def test_what_cannot_be_asked_is_left_out_and_named(grey_png: Png, tmp_path: Path) -> None:
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7 broken")
    result = exported(tmp_path / "b.jsonl", [grey_png("a.png", 40), tmp_path / "broken.pdf"], ["one", "two"])
    assert (result.lines, result.left_out) == (2, 2)
    assert "broken.pdf: one: unreadable: " in result.left_out_names[0]


def test_a_batch_file_is_not_exported_again_and_nothing_is_written_over(grey_png: Png, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "b.jsonl", [request("a", image(9), "?")])
    with pytest.raises(InputError, match="a batch file already"):
        exported(tmp_path / "c.jsonl", [], str(path))
    with pytest.raises(OutputError, match="exists"):
        exported(path, [grey_png("a.png", 40)], ["one"])


def test_the_command_says_what_it_wrote_and_left_out(cli: Run, grey_png: Png, tmp_path: Path) -> None:
    grey_png("in/a.png", 40)
    done = cli("export", "in", "--ask", "one", "--to", "openai-batch", "--model", "m", "-o", "b.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith("b.jsonl: 1 line\n")
    (line,) = lines_of(tmp_path / "b.jsonl")
    assert (line["body"]["max_tokens"], line["body"]["temperature"]) == (64, 0.0)
    (tmp_path / "in" / "broken.pdf").write_bytes(b"%PDF-1.7 broken")
    free = ("--to", "openai-batch", "--model", "m", "--max-new-tokens", "auto", "-o", "c.jsonl")
    done = cli("export", "in", "--ask", "one", *free, cwd=tmp_path)
    assert done.returncode == 6, done.stderr
    assert "left out: in/broken.pdf: one: unreadable" in done.stderr
    assert "1 line, 1 question left out" in done.stderr
    assert "max_tokens" not in lines_of(tmp_path / "c.jsonl")[0]["body"]
    assert cli("export", "in", "--ask", "one", "-o", "d.jsonl", cwd=tmp_path).returncode == 2
    assert cli("export", "in", "--ask", "one", *free, cwd=tmp_path).returncode == 5
    done = cli("export", "in", "--ask", "one", "--to", "openai-batch", "--model", "m", "-o", "-", cwd=tmp_path)
    assert (done.returncode, (tmp_path / "-").exists()) == (2, False)


def test_answers_are_those_of_a_direct_run_where_pages_have_the_same_size(tmp_path: Path) -> None:
    """An image that is not scaled, and a PDF page at the model's own edge (490 pixels), which is not split."""
    documents = [str(SAMPLES / "documents" / name) for name in ("notice.bmp", "letter.pdf")]
    given = RunSettings(PageSettings(workers=1, split=Split.NEVER), ModelSettings("tiny"))

    def answers(documents: Sequence[str], questions: str | Sequence[str], name: str) -> dict[str, tuple[str, float]]:
        output = OutputSettings(tmp_path / f"{name}.jsonl", Format.JSONL)
        run(documents, questions, replace(given, output=output), io.StringIO())
        rows = lines_of(tmp_path / f"{name}.jsonl")
        return {row["key" if name == "direct" else "id"]: (row["answer"], row["confidence"]) for row in rows}

    export_batch(
        documents,
        ["To whom is the letter addressed?"],
        tmp_path / "b.jsonl",
        replace(given, pages=PageSettings(workers=1, across=Across.TOGETHER)),
        BatchExport("tiny", GenerationSettings(max_new_tokens=64), longest_edge=490),
    )
    there = answers([], str(tmp_path / "b.jsonl"), "there")
    assert there == answers(documents, ["To whom is the letter addressed?"], "direct")
    assert len(there) == 2
