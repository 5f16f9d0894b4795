"""Batch files through runs: every line answered in the form, resumed by content, in any of the formats."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from idefics_cli.batch import BatchResult, run
from idefics_cli.config import (
    Across,
    Format,
    ModelSettings,
    OutputSettings,
    PageSettings,
    QuestionSettings,
    RetryFailed,
    RunSettings,
)
from idefics_cli.errors import InputError, OutputError, UsageError
from idefics_cli.records import COLUMNS, Generation
from idefics_cli.results.read import OutputReader
from idefics_cli.results.status import read_status
from tests.batch_lines import RequestEngine, check_form, image, png_uri, request, write_lines

TIMES = {name for name in COLUMNS if name.endswith("_ms")} | {"answered_at", "batch_size", "created"}


def settings(path: Path | None, form: Format = Format.OPENAI_BATCH, **output: Any) -> RunSettings:
    return RunSettings(
        pages=PageSettings(workers=1), model=ModelSettings("tiny"), output=OutputSettings(path, form, **output)
    )


def answered(questions: Path, given: RunSettings, engine: RequestEngine | None = None) -> BatchResult:
    return run([], str(questions), given, io.StringIO(), engine=engine or RequestEngine())


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def settled(line: dict[str, Any]) -> Any:
    """What of a line another run gives too."""
    response = line["response"]
    body = {name: value for name, value in response["body"].items() if name not in ("id", "created")}
    own = {name: value for name, value in body["idefics_cli"].items() if name not in TIMES}
    return line["custom_id"], response["status_code"], body | {"idefics_cli": own}


def test_a_thousand_lines_have_the_fields_of_the_form_and_go_on_where_they_were_cut(tmp_path: Path) -> None:
    """Texts, images that come again, several images, sampling, log-probabilities, and lines that fail."""
    asked = []
    for number in range(1000):
        parts: list[Any] = [image(number % 20), f"Question {number}?"]
        fields: dict[str, Any] = {"logprobs": True} if number % 3 == 0 else {}
        if number % 10 == 1:
            parts = [f"No page {number}?"]
        elif number % 10 == 2:
            parts = [image(200), "and", image(100), f"Which {number}?"]
        elif number % 10 == 3:
            fields["temperature"] = 0.5
        elif number % 100 == 4:
            fields["temperature"] = 9
        elif number % 100 == 14:
            parts = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, f"Broken {number}?"]
        elif number % 100 == 24:
            parts = [image(5), f"fail {number}"]
        asked.append(request(f"id-{number}", *parts, **fields))
    questions = write_lines(tmp_path / "batch.jsonl", asked)
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    result = answered(questions, settings(whole))
    assert (result.stats.rows, result.stats.failed) == (1000, 30)
    lines = lines_of(whole)
    for line in lines:
        check_form(line)
    by_id = {line["custom_id"]: line for line in lines}
    assert len(by_id) == len(lines) == 1000
    assert len({line["id"] for line in lines}) == 1000
    statuses = Counter(line["response"]["status_code"] for line in lines)
    assert statuses == {200: 970, 400: 20, 500: 10}
    body = by_id["id-3"]["response"]["body"]
    assert body["choices"][0]["message"]["content"].startswith("Question 3? @")
    assert body["model"] == "some-model"
    assert [entry["logprob"] for entry in body["choices"][0]["logprobs"]["content"]] == [-0.25, -0.75]
    assert by_id["id-5"]["response"]["body"]["choices"][0]["logprobs"] is None
    assert by_id["id-1"]["response"]["body"]["choices"][0]["message"]["content"] == "No page 1? @"
    assert by_id["id-2"]["response"]["body"]["choices"][0]["message"]["content"] == "and Which 2? @200+100"
    assert by_id["id-4"]["error"]["param"] == "temperature"

    # As a kill leaves it: some lines, the last one not whole.
    raw = whole.read_bytes().splitlines(keepends=True)
    cut.write_bytes(b"".join(raw[:400]) + raw[400][:57])
    again = answered(questions, settings(cut, resume=True))
    assert (again.progress.skipped, again.stats.rows) == (400, 600)
    assert sorted(map(str, map(settled, lines_of(cut)))) == sorted(map(str, map(settled, lines)))
    assert answered(questions, settings(cut, resume=True)).stats.rows == 0


def test_each_line_is_asked_with_its_own_settings(tmp_path: Path) -> None:
    engine = RequestEngine()
    asked = [
        request("a", image(9), "plain"),
        request("b", image(9), "short", max_completion_tokens=7, stop="x"),
        request("c", image(9), "endless", max_tokens=10**8),
        request("d", image(9), "drawn", temperature=0.5, top_p=0.9, seed=4),
        request("e", image(9), "too long"),
    ]
    answered(write_lines(tmp_path / "b.jsonl", asked), settings(tmp_path / "out.jsonl"), engine)
    assert engine.wanted == {
        "plain": None,
        "short": Generation(max_new_tokens=7, stop=("x",)),
        "endless": Generation(max_new_tokens=1024),
        "drawn": Generation(temperature=0.5, top_p=0.9, seed=4),
        "too long": None,
    }
    reasons = {
        line["custom_id"]: line["response"]["body"]["choices"][0]["finish_reason"]
        for line in lines_of(tmp_path / "out.jsonl")
    }
    assert reasons == {"a": "stop", "b": "stop", "c": "stop", "d": "stop", "e": "length"}


def test_another_setting_or_custom_id_is_another_row(tmp_path: Path) -> None:
    path, out = tmp_path / "b.jsonl", tmp_path / "out.jsonl"
    answered(write_lines(path, [request("a", image(9), "?")]), settings(out))
    for line in (
        request("b", image(9), "?"),
        request("a", image(9), "?", temperature=0.5),
        request("a", image(9), "?", max_tokens=3),
        request("a", image(9), "?", logprobs=True),
        request("a", image(8), "?"),
        request("a", image(9), "!"),
    ):
        before = read_status(out).rows
        answered(write_lines(path, [line]), settings(out, resume=True))
        assert read_status(out).rows == before + 1
        answered(write_lines(path, [line]), settings(out, resume=True))
        assert read_status(out).rows == before + 1


@pytest.mark.parametrize("form", [Format.CSV, Format.JSONL])
def test_rows_of_the_other_formats_have_the_custom_id_as_their_id(tmp_path: Path, form: Format) -> None:
    questions = write_lines(tmp_path / "b.jsonl", [request("mine", image(9), "Who?"), request("bad", "?", n=2)])
    out = tmp_path / f"out.{form}"
    answered(questions, settings(out, form))
    rows = lines_of(out) if form is Format.JSONL else list(csv.DictReader(out.read_text().splitlines()))
    assert list(rows[0]) == list(COLUMNS)
    by_id = {row["id"]: row for row in rows}
    assert by_id["mine"]["answer"] == "Who? @9"
    assert by_id["mine"]["document"].startswith("data:image/png")
    assert len(by_id["mine"]["document"]) < 60
    assert by_id["bad"]["error"].startswith(f"bad-question: {questions}:2: n 2 is not done here")


def test_lines_that_cannot_be_read_fail_by_themselves_and_say_where_they_stand(tmp_path: Path) -> None:
    questions = write_lines(
        tmp_path / "b.jsonl",
        [
            '{"custom_id": "broken", "body": {',
            request("ok", image(9), "Who?"),
            "",
            "[1, 2]",
            request(None, "?"),
            request("data", {"type": "image_url", "image_url": {"url": "data:image/png;base64,?" + "A" * 200}}, "Who?"),
        ],
    )
    out = tmp_path / "out.jsonl"
    result = answered(questions, settings(out))
    assert (result.stats.rows, result.stats.failed) == (5, 4)
    lines = lines_of(out)
    for line in lines:
        check_form(line)
    failed = {line["response"]["body"]["idefics_cli"]["error"] for line in lines if line["error"]}
    for number in (1, 4, 5):
        assert sum(f"{questions}:{number}: " in words for words in failed) == 1
    (data,) = (line for line in lines if line["custom_id"] == "data")
    assert "base64 does not decode" in data["error"]["message"]
    assert len(data["response"]["body"]["idefics_cli"]["document"]) < 60
    assert answered(questions, settings(out, resume=True)).stats.rows == 0


def test_equal_custom_ids_are_told_before_anything_is_asked(tmp_path: Path) -> None:
    questions = write_lines(tmp_path / "b.jsonl", [request(one, image(9), "?") for one in ("a", "b", "a")])
    with pytest.raises(InputError, match=r"b.jsonl:3: duplicate custom_id 'a', first in .*b.jsonl:1"):
        answered(questions, settings(tmp_path / "out.jsonl"))
    assert not (tmp_path / "out.jsonl").exists()


def test_documents_of_the_command_line_are_refused(tmp_path: Path) -> None:
    questions = write_lines(tmp_path / "b.jsonl", [request("a", image(9), "?")])
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(UsageError, match="bring their own documents"):
        run([str(tmp_path / "a.png")], str(questions), settings(None), io.StringIO(), engine=RequestEngine())


def test_a_mended_line_takes_the_place_of_its_failed_row(tmp_path: Path) -> None:
    questions, out = tmp_path / "b.jsonl", tmp_path / "out.jsonl"
    answered(write_lines(questions, [request("a", image(9), "?", n=2), request("b", image(9), "fail")]), settings(out))
    assert read_status(out).failures == {"bad-question": 1, "model-error": 1}
    write_lines(questions, [request("a", image(9), "?"), request("b", image(9), "fail")])
    answered(questions, settings(out, resume=True, retry_failed=RetryFailed.TRANSIENT))
    lines = {line["custom_id"]: line["response"]["status_code"] for line in lines_of(out)}
    assert lines == {"a": 200, "b": 500}
    assert len(lines_of(out)) == 2

    # Broken and mended again: the answer is there already.
    write_lines(questions, [request("a", image(9), "?", n=2)])
    answered(questions, settings(out, resume=True))
    assert [line["custom_id"] for line in lines_of(out)].count("a") == 2
    write_lines(questions, [request("a", image(9), "?")])
    again = answered(questions, settings(out, resume=True, retry_failed=RetryFailed.TRANSIENT))
    assert again.stats.rows == 0
    assert [line["response"]["status_code"] for line in lines_of(out) if line["custom_id"] == "a"] == [200]


def test_an_output_says_what_it_holds_whatever_its_name(tmp_path: Path) -> None:
    questions = write_lines(tmp_path / "b.jsonl", [request("a", image(9), "Who?"), request("b", image(9), "fail")])
    out = tmp_path / "out.any"
    answered(questions, settings(out))
    reader = OutputReader(out)
    rows = list(reader)
    assert reader.form is Format.OPENAI_BATCH
    assert [list(row.values) for row in rows] == [list(COLUMNS)] * 2
    assert [(row.custom_id, row.text("answer"), row.is_failed, row.failure_kind) for row in rows] == [
        ("a", "Who? @9", False, ""),
        ("b", "", True, "model-error"),
    ]
    assert (rows[0].values["prompt_tokens"], rows[0].values["new_tokens"], rows[0].cost_ms > 0) == (10, 2, True)
    with pytest.raises(OutputError, match="holds openai-batch, not jsonl; go on with --format openai-batch"):
        answered(questions, settings(out, Format.JSONL, resume=True))


def test_plain_questions_become_lines_whose_custom_id_is_the_key(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    out = tmp_path / "out.jsonl"
    questions = tmp_path / "q.jsonl"
    lines = [
        {"question": "Who?", "document": png_uri(9), "id": 7, "mine": [1]},
        {"question": "Where?", "document": str(tmp_path / "a.png"), "later": "x"},
    ]
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    answered(questions, settings(out))
    first, second = lines_of(out)
    check_form(first)
    check_form(second)
    own = first["response"]["body"]["idefics_cli"]
    assert (first["custom_id"], own["id"], own["columns"]) == (own["key"], 7, {"mine": [1], "later": None})
    assert first["response"]["body"]["model"] == "fake"
    assert second["error"]["code"] == "unreadable"
    rows = list(OutputReader(out))
    assert list(rows[0].values) == [*COLUMNS[:9], "mine", "later", *COLUMNS[9:]]
    assert answered(questions, settings(out, resume=True)).stats.rows == 0


@pytest.fixture
def cli_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return [sys.executable, "-m", "idefics_cli", "run", "--model", "tiny", "--quiet", "--workers", "1"]


def test_a_pipe_is_answered_line_by_line(cli_run: list[str]) -> None:
    process = subprocess.Popen(
        [*cli_run, "-q", "-", "-o", "-", "--format", "openai-batch"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin and process.stdout
    for line in (request("a", image(9), "Who?"), request("b", "Who?", n=2), request("a", image(9), "Who?")):
        process.stdin.write(json.dumps(line).encode() + b"\n")
        process.stdin.flush()
        got = json.loads(process.stdout.readline())
        check_form(got)
        assert got["custom_id"] == line["custom_id"]
    assert "duplicate custom_id" in got["response"]["body"]["idefics_cli"]["error"]
    process.stdin.close()
    assert process.wait(30) == 6
    process.stdout.close()


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_goes_on_where_it_was(cli_run: list[str], tmp_path: Path, count: int) -> None:
    asked = [
        request(
            f"id-{number}", image(number % 7), f"What is number {number}?", max_tokens=4, temperature=number % 2 / 2
        )
        for number in range(count)
    ]
    write_lines(tmp_path / "b.jsonl", [*asked, request("refused", "?", n=2)])
    command = [*cli_run, "-q", "b.jsonl", "--format", "openai-batch", "-o"]
    assert subprocess.run([*command, "whole.jsonl"]).returncode == 6
    out = tmp_path / "out.jsonl"
    process = subprocess.Popen([*command, "out.jsonl"])
    while not out.exists() or out.read_bytes().count(b"\n") < count // 4:
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    there = out.read_bytes().count(b"\n")
    assert there < count
    done = subprocess.run([*command, "out.jsonl", "--resume"], capture_output=True)
    assert done.returncode == 6, done.stderr
    lines = lines_of(out)
    for line in lines:
        check_form(line)
    assert sorted(str(settled(line)) for line in lines) == sorted(
        str(settled(line)) for line in lines_of(tmp_path / "whole.jsonl")
    )
    status = subprocess.run(
        [sys.executable, "-m", "idefics_cli", "status", "out.jsonl", "-q", "b.jsonl", "--json"], capture_output=True
    )
    facts = json.loads(status.stdout)
    assert (facts["rows"], facts["failed"], facts["missing"], facts["not_asked"]) == (count + 1, 1, 0, 0)


def test_shards_of_a_batch_file_are_merged(cli_run: list[str], tmp_path: Path) -> None:
    write_lines(tmp_path / "b.jsonl", [request(f"id-{n}", image(n), "Who?", max_tokens=2) for n in range(8)])
    for shard in ("1/2", "2/2"):
        out = f"part-{shard[0]}.jsonl"
        run_one = [*cli_run, "-q", "b.jsonl", "-o", out, "--format", "openai-batch", "--shard", shard]
        assert subprocess.run(run_one).returncode == 0
    merge = [sys.executable, "-m", "idefics_cli", "merge", "part-1.jsonl", "part-2.jsonl", "-o", "all.jsonl"]
    merged = subprocess.run([*merge, "-q", "b.jsonl", "--shards", "2"], capture_output=True)
    assert merged.returncode == 0, merged.stderr
    lines = lines_of(tmp_path / "all.jsonl")
    assert [line["custom_id"] for line in lines] == [f"id-{number}" for number in range(8)]
    refused = subprocess.run([*merge[:-1], "all.csv"], capture_output=True, text=True)
    assert (refused.returncode, "name the merged one .jsonl" in refused.stderr) == (5, True)


def test_addresses_are_fetched_only_where_that_is_allowed(tmp_path: Path) -> None:
    part = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/a.png"}}
    questions = write_lines(tmp_path / "b.jsonl", [request("a", part, "?")])
    out = tmp_path / "out.jsonl"
    answered(questions, settings(out))
    assert "--allow-urls" in lines_of(out)[0]["error"]["message"]
    allowed = RunSettings(
        PageSettings(workers=1),
        ModelSettings("tiny"),
        QuestionSettings(allow_urls=True),
        OutputSettings(tmp_path / "allowed.jsonl", Format.OPENAI_BATCH),
    )
    answered(questions, allowed)
    assert lines_of(tmp_path / "allowed.jsonl")[0]["error"]["code"] != "urls_not_allowed"


def test_a_line_that_is_not_utf8_fails_and_the_others_are_answered(tmp_path: Path) -> None:
    questions = write_lines(tmp_path / "batch.jsonl", [request("a", "One?"), request("b", "Caf\u00e9?")])
    lines = questions.read_bytes().splitlines(keepends=True)
    latin = json.dumps(request("b", "Caf\u00e9?"), ensure_ascii=False).encode("latin-1")
    questions.write_bytes(lines[0] + latin + b"\n\n" + json.dumps(request("c", "Three?")).encode())
    engine = RequestEngine()
    answered(questions, settings(tmp_path / "out.jsonl"), engine)
    assert set(engine.wanted) == {"One?", "Three?"}
    (failed,) = [line for line in lines_of(tmp_path / "out.jsonl") if line["error"]]
    assert "not UTF-8 (byte 0xe9" in failed["error"]["message"]
    assert "batch.jsonl:2" in failed["response"]["body"]["idefics_cli"]["error"]


def test_pages_of_a_request_are_never_answered_one_by_one(tmp_path: Path) -> None:
    questions = write_lines(tmp_path / "batch.jsonl", [request("a", image(1), image(2), "?")])
    given = settings(tmp_path / "out.jsonl")
    each = dataclasses.replace(given, pages=PageSettings(workers=1, across=Across.EACH))
    with pytest.raises(UsageError, match="--across each: a request of a batch file has one answer"):
        answered(questions, each)


def test_a_seed_and_a_temperature_of_the_options_hold_where_a_line_has_none(tmp_path: Path) -> None:
    def wanted(name: str, temperature: float, seed: int | None = None) -> list[int | None]:
        lines = [request("a", "One?"), request("b", "Two?"), request("c", "Greedy?", temperature=0)]
        lines += [request("d", "Own?", seed=5)]
        given = settings(tmp_path / name)
        model = ModelSettings("tiny", temperature=temperature, seed=seed)
        engine = RequestEngine()
        answered(write_lines(tmp_path / "b.jsonl", lines), dataclasses.replace(given, model=model), engine)
        found = [engine.wanted[question] for question in ("One?", "Two?", "Greedy?", "Own?")]
        return [each.seed if each else None for each in found]

    first, other = wanted("1.jsonl", 0.7), wanted("2.jsonl", 0.7, seed=9)
    assert None not in first[:2]
    assert first[0] != first[1]
    assert first[:2] != other[:2]
    assert first[2:] == other[2:] == [None, 5]
    assert wanted("3.jsonl", 0.0) == [None, None, None, 5]
