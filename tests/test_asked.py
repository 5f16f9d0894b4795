from __future__ import annotations

import json
from pathlib import Path

from idefics_cli.asked import asked_rows
from idefics_cli.config import Across, ModelSettings, PageSettings, QuestionSettings, RunSettings, Shard
from idefics_cli.inputs import read_inputs
from idefics_cli.session import Session
from tests.conftest import SAMPLES
from tests.fakes import FakeEngine

FAX = str(SAMPLES / "documents" / "fax.tiff")


def settings_of(across: Across, shard: Shard | None = None) -> RunSettings:
    pages = PageSettings(across=across, workers=1)
    return RunSettings(pages, ModelSettings("tiny"), QuestionSettings(shard=shard))


def test_the_rows_asked_for_are_those_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "damaged.pdf").write_bytes(b"no document")
    lines: list[dict[str, object]] = [
        {"document": FAX, "question": "Who?"},
        {"document": FAX, "page": "2-1", "question": "Who?", "id": 7},
        {"document": "damaged.pdf", "question": "Who?"},
        {"documents": [FAX, {"document": FAX, "page": "2"}], "question": "Which?"},
    ]
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for across in Across:
        settings = settings_of(across)
        with Session(settings=settings, engine=FakeEngine()) as session:
            expected = [row.key for row in session.rows(read_inputs([], str(file), settings))]
        found = [row.key for row in asked_rows(read_inputs([], str(file), settings), settings)]
        assert found == expected
        assert len(found) > 3
        of_shards = [
            {row.key for row in asked_rows(read_inputs([], str(file), one), one)}
            for one in (settings_of(across, Shard(1, 2)), settings_of(across, Shard(2, 2)))
        ]
        assert of_shards[0] | of_shards[1] == set(found)
        assert not of_shards[0] & of_shards[1]


def test_a_row_that_is_asked_for_has_words(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(
        f'{{"document": "{FAX}", "page": "2-1", "question": "Who?"}}\n'
        f'{{"documents": ["{FAX}", "{FAX}"], "page": "1", "question": "Which?"}}\n'
    )
    settings = settings_of(Across.BEST)
    words = [row.words for row in asked_rows(read_inputs([], str(file), settings), settings)]
    assert words == [f"{FAX}, page 2-1: Who?", f"{FAX}; {FAX}, page 1; 1: Which?"]
