"""Checkpoints and adapters whose files hold anything at all: each is one error that names the file and the fault."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from idefics_cli.config import RunSettings
from idefics_cli.engine import open_engine
from idefics_cli.errors import ModelError
from idefics_cli.session import Session
from tests.conftest import SAMPLES
from tests.small_checkpoints import save_checkpoint, settings_of

NORM = "model.text_model.norm.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "m", generation={})


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite_header(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the header of a safetensors file, and leave its tensors where they are."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + length])
    change(entries)
    header = json.dumps(entries).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])


def load(folder: Path, **changes: Any) -> None:
    engine = open_engine(settings_of(folder, **({"max_new_tokens": None} | changes)))
    try:
        engine.load()
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("chat_template.jinja", b"\xff"),
        ("config.json", b"[" * 100_000),
        ("processor_config.json", b"[" * 100_000),
        ("generation_config.json", b'{"max_new_tokens": -5}'),
        ("generation_config.json", b'{"max_new_tokens": Infinity}'),
        ("generation_config.json", b'{"no_repeat_ngram_size": Infinity}'),
        ("generation_config.json", b'{"eos_token_id": "131"}'),
        ("generation_config.json", b'{"eos_token_id": [1e400]}'),
        ("generation_config.json", b'{"suppress_tokens": "55"}'),
        ("generation_config.json", b'{"bad_words_ids": "55"}'),
        ("generation_config.json", b'{"bad_words_ids": [["5", "5"]]}'),
        ("tokenizer.json", b"{}"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_settings_that_hold_anything(folder: Path, file: str, content: bytes) -> None:
    (folder / file).write_bytes(content)
    with pytest.raises(ModelError, match=str(folder)):
        load(folder)


@pytest.mark.parametrize(
    "template", ["{{ messages + 1 }}", "hello", "<image><image>{{ messages[0]['content'][1]['text'] }}"]
)
def test_chat_templates_that_fail_end_the_run(folder: Path, template: str) -> None:
    (folder / "chat_template.jinja").write_text(template)
    with (
        Session(settings=RunSettings(model=settings_of(folder))) as session,
        pytest.raises(ModelError, match="the chat template"),
    ):
        session.ask(str(SAMPLES / "documents" / "notice.bmp"), "Who?")


@pytest.mark.parametrize(
    "changes",
    [
        {"data_offsets": [-100_000, -96_928]},
        {"data_offsets": [3072, 0]},
        {"data_offsets": [0.0, 128.0]},
        {"data_offsets": [0, 128]},  # where another tensor lies
        {"data_offsets": "no"},
        {"dtype": ["F32"]},
        {"shape": [32.0]},
        {"shape": [-32]},
    ],
    ids=str,
)
def test_headers_that_hold_anything(folder: Path, changes: dict[str, object]) -> None:
    rewrite_header(folder / "model.safetensors", lambda entries: entries[NORM].update(changes))
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged"):
        load(folder)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "m", generation={}, max_shard_size="60KB")
    first, second = sorted(folder.glob("*.safetensors"))[:2]
    tensors = load_file(second)
    save_file(tensors | {next(iter(load_file(first))): torch.zeros(1)}, second, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"stands in {first.name} and in {second.name}"):
        load(folder)


@pytest.mark.parametrize("name", ["a" * 300, "~nobody-of-this-name/x", "a\0b"])
def test_names_that_are_none(name: str) -> None:
    for option in ("model", "adapter", "processor"):
        settings = settings_of(name if option == "model" else "tiny")
        with pytest.raises(ModelError):
            open_engine(settings if option == "model" else settings_of("tiny", **{option: name}))


def test_files_that_change_between_opening_and_loading_are_noticed(folder: Path) -> None:
    engine = open_engine(settings_of(folder))
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, folder / "model.safetensors")
    with pytest.raises(ModelError, match="its files have changed while they were loaded"):
        engine.load()
    engine.close()


def test_a_session_that_was_closed_says_so() -> None:
    session = Session(settings=None, model="tiny")
    session.close()
    with pytest.raises(ModelError, match="the session has been closed"):
        session.ask(str(SAMPLES / "documents" / "letter.pdf"), "Who?")


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("text_config", "num_hidden_layers"),
        ("vision_config", "num_hidden_layers"),
        ("perceiver_config", "resampler_depth"),
    ],
)
@pytest.mark.parametrize("count", [10**9, 0, -1])
def test_layers_that_no_model_has_are_refused_at_once(folder: Path, part: str, key: str, count: int) -> None:
    config = json.loads((folder / "config.json").read_text())
    config[part][key] = count
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=rf"{key} is {count:,}: it takes 1 to 1,000"):
        open_engine(settings_of(folder))
