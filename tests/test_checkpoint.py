from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from idefics_cli.config import ModelSettings
from idefics_cli.engine import open_engine
from idefics_cli.engine.checkpoint import find_locally, open_checkpoint, read_folder, samples_folder
from idefics_cli.errors import ModelError, UsageError
from tests.conftest import SAMPLES
from tests.small_checkpoints import save_checkpoint, settings_of

TINY = SAMPLES / "tiny-idefics2"
DEAD = "http://127.0.0.1:9"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "checkpoint", generation={})


def test_the_embedded_model_is_small_enough_to_ship() -> None:
    sizes = [file.stat().st_size for file in TINY.glob("*.safetensors")]
    assert sum(sizes) <= 32 * 2**20
    assert samples_folder() == SAMPLES
    assert find_locally(ModelSettings("tiny")) == TINY


def test_a_folder_is_read_with_what_stands_beside_its_weights(small: Path) -> None:
    checkpoint = open_checkpoint(settings_of(small))
    assert checkpoint.name == str(small)
    assert checkpoint.config["model_type"] == "idefics2"
    assert checkpoint.processor_config["size"] == {"longest_edge": 490, "shortest_edge": 196}
    assert checkpoint.generation_config["eos_token_id"] == 131
    assert checkpoint.chat_template is not None
    headers = checkpoint.tensors()
    assert headers["lm_head.weight"].shape == (132, 32)
    assert headers["lm_head.weight"].dtype == "F32"
    assert {name: list(header.shape) for name, header in headers.items()} == {
        name: list(tensor.shape) for name, tensor in load_file(small / "model.safetensors").items()
    }


def test_headers_tell_where_tensors_lie(small: Path) -> None:
    header = open_checkpoint(settings_of(small)).tensors()["model.text_model.norm.weight"]
    data = header.file.read_bytes()[header.start : header.start + header.size]
    expected = load_file(small / "model.safetensors")["model.text_model.norm.weight"]
    assert torch.equal(torch.frombuffer(bytearray(data), dtype=torch.float32), expected)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("./nofolder", r"^\./nofolder: no such folder$"),
        ("/nowhere/at/all", "no such folder"),
        ("~/nowhere-at-all", "no such folder"),
        ("Tiny", "did you mean 'tiny'"),
        (" tiny", "did you mean 'tiny'"),
        ("not a name", "neither a folder here nor a hub id"),
        ("a/b/c", "neither a folder here nor a hub id"),
    ],
)
def test_a_name_that_is_nothing_is_refused_without_asking_the_hub(name: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        open_checkpoint(ModelSettings(name))


def test_a_file_is_no_folder(small: Path) -> None:
    with pytest.raises(ModelError, match="not a folder"):
        open_checkpoint(settings_of(small / "config.json"))


OPENS = """
import sys, time
from idefics_cli.config import ModelSettings
from idefics_cli.engine import open_engine
from idefics_cli.errors import ModelError
started = time.monotonic()
try:
    given = dict(argument.split("=") for argument in sys.argv[2:])
    engine = open_engine(ModelSettings(sys.argv[1], device="cpu", **given))
    print("opened", engine.info.settings["engine"])
except ModelError as error:
    print(error)
print(time.monotonic() - started)
assert "torch" not in sys.modules
"""


def open_in_a_process(name: str, home: Path, *given: str, **variables: str) -> tuple[str, float]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_HOME": str(home), "HTTPS_PROXY": DEAD, "HTTP_PROXY": DEAD, "ALL_PROXY": DEAD, "NO_PROXY": ""}
    environment |= {"https_proxy": DEAD, "http_proxy": DEAD, "all_proxy": DEAD, "no_proxy": ""} | variables
    done = subprocess.run(
        [sys.executable, "-c", OPENS, name, *given], capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.returncode == 0, done.stderr
    words, seconds = done.stdout.strip().split("\n")
    return words, float(seconds)


@pytest.mark.parametrize("variables", [{}, {"HF_HUB_OFFLINE": "1"}])
def test_a_hub_id_without_a_network_says_how_to_get_it_within_seconds(
    variables: dict[str, str], tmp_path: Path
) -> None:
    words, seconds = open_in_a_process("someone/nothing", tmp_path, **variables)
    assert "not on this machine, and the hub can't be reached" in words
    assert "hf download someone/nothing" in words
    assert "--model FOLDER" in words
    assert seconds < 8


def cached(home: Path, source: Path, revision: str = "main", name: str = "checkpoint") -> Path:
    """Lay a snapshot out as the hub's cache does."""
    repository = home / "hub" / f"models--someone--{name}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = repository / "snapshots" / commit
    shutil.copytree(source, snapshot)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / revision).write_text(commit)
    return snapshot


def test_a_revision_of_a_folder_is_refused(small: Path) -> None:
    for model, words in ((str(small), "is a folder"), ("tiny", "is embedded")):
        with pytest.raises(UsageError, match=f"--revision is for checkpoints of the hub, and .*{words}: leave it out"):
            open_checkpoint(ModelSettings(model, revision="v2"))
    with pytest.raises(UsageError, match="--revision takes a branch, tag or commit"):
        ModelSettings(revision=" ")


@pytest.mark.parametrize("revision", ["", "v2"])
def test_a_snapshot_in_the_cache_needs_no_network(revision: str, small: Path, tmp_path: Path) -> None:
    cached(tmp_path / "home", small, revision or "main")
    given = [f"revision={revision}"] if revision else []
    words, seconds = open_in_a_process("someone/checkpoint", tmp_path / "home", *given)
    assert words == "opened native"
    assert seconds < 8


def test_an_adapter_in_the_cache_needs_no_network_and_its_base_is_known_by_its_id(small: Path, tmp_path: Path) -> None:
    home, adapter = tmp_path / "home", tmp_path / "adapter"
    cached(home, small)
    adapter.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "base_model_name_or_path": "someone/checkpoint"}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    part = "base_model.model.model.text_model.layers.0.self_attn.q_proj.lora_"
    save_file(
        {f"{part}A.weight": torch.ones(2, 32), f"{part}B.weight": torch.ones(32, 2)},
        adapter / "adapter_model.safetensors",
    )
    cached(home, adapter, name="adapter")
    given = "adapter=someone/adapter"
    assert open_in_a_process("someone/checkpoint", home, given)[0] == "opened native"
    words, _ = open_in_a_process("someone/checkpoint", home, "adapter=someone/other")
    assert "hub can't be reached" in words
    assert "hf download someone/other" in words
    assert "--adapter FOLDER" in words
    cached(home, small, name="second")
    assert "an adapter of someone/checkpoint" in open_in_a_process("someone/second", home, given)[0]


def test_a_processor_in_the_cache_needs_no_network(small: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    cached(home, small, name="whole")
    (small / "tokenizer.json").unlink()
    cached(home, small)
    assert open_in_a_process("someone/checkpoint", home, "processor=someone/whole")[0] == "opened native"
    assert "--processor FOLDER" in open_in_a_process("someone/checkpoint", home, "processor=someone/nothing")[0]


def test_a_snapshot_that_lacks_weights_is_completed_from_the_hub(small: Path, tmp_path: Path) -> None:
    snapshot = cached(tmp_path / "home", small)
    (snapshot / "model.safetensors").unlink()
    words, _ = open_in_a_process("someone/checkpoint", tmp_path / "home")
    assert "hub can't be reached" in words


def test_pickled_weights_are_never_loaded(small: Path) -> None:
    (small / "model.safetensors").unlink()
    torch.save({"x": torch.zeros(1)}, small / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"model\.safetensors is missing .* pytorch_model\.bin is a pickle"):
        open_engine(settings_of(small))


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json"])
def test_a_folder_that_lacks_a_file_is_refused(missing: str, small: Path) -> None:
    (small / missing).unlink()
    with pytest.raises(ModelError, match=f"{missing} is missing"):
        open_checkpoint(settings_of(small))


def test_quantized_weights_are_refused_by_the_name_of_the_method(small: Path) -> None:
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    with pytest.raises(ModelError, match="weights quantized by gptq"):
        open_checkpoint(settings_of(small))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data[:8] + b"[" + data[9:],
        lambda data: (1 << 20).to_bytes(8, "little") + data[8:],
    ],
    ids=["half", "empty", "length", "not JSON", "wrong length"],
)
def test_damaged_weights_are_refused_when_the_checkpoint_is_opened(damage, small: Path) -> None:  # type: ignore[no-untyped-def]
    file = small / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged"):
        open_engine(settings_of(small))


@pytest.mark.parametrize("words", [b"{", b"[1]", b"\xff\xfe", b""])
def test_settings_that_are_no_json_object_are_named(words: bytes, small: Path) -> None:
    (small / "generation_config.json").write_bytes(words)
    with pytest.raises(ModelError, match=r"generation_config\.json"):
        open_checkpoint(settings_of(small))


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"text_config": {"hidden_size": "wide"}}),
        ("config.json", {"text_config": [1]}),
        ("config.json", {"vision_config": {"patch_size": 0}}),
        ("config.json", {"quantization_config": None}),
        ("config.json", {"quantization_config": "awq"}),
        ("generation_config.json", {"eos_token_id": ["end"]}),
        ("generation_config.json", {"bad_words_ids": [5]}),
        ("generation_config.json", {"suppress_tokens": 5}),
        ("processor_config.json", {"image_seq_len": "many"}),
        ("processor_config.json", {"image_processor": {"size": 490}}),
        ("processor_config.json", {"image_processor": {"image_mean": "grey"}}),
        ("processor_config.json", {"image_processor": [1]}),
        ("tokenizer.json", {"model": None}),
        ("model.safetensors.index.json", {"weight_map": [1]}),
    ],
)
def test_settings_of_the_wrong_kind_are_a_model_error(file: str, values: dict[str, object], small: Path) -> None:
    path = small / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | values))
    try:
        engine = open_engine(settings_of(small))
        assert engine.info.image_processor
        engine.start()
        engine.close()
    except ModelError as error:
        assert str(small) in str(error)
    else:
        assert values == {"quantization_config": None}  # says that there is none


def test_a_chat_template_that_is_none_is_named(small: Path) -> None:
    (small / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(ModelError, match="the chat template can't be read"):
        open_engine(settings_of(small))


def test_the_digest_goes_by_content(small: Path, tmp_path: Path) -> None:
    def digest(folder: Path) -> str:
        return read_folder("any name", folder).digest()

    first = digest(small)
    copy = tmp_path / "copy"
    shutil.copytree(small, copy)
    assert digest(copy) == first
    tensors = load_file(copy / "model.safetensors")
    for name in ("lm_head.weight", "model.text_model.norm.weight"):
        changed = dict(tensors)
        changed[name] = tensors[name] * 1.01
        save_file(changed, copy / "model.safetensors", metadata={"format": "pt"})
        assert digest(copy) != first
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    for file in ("generation_config.json", "processor_config.json", "config.json", "tokenizer.json"):
        whole = (copy / file).read_text()
        values = json.loads(whole)
        (copy / file).write_text(json.dumps(values | {"something": 1}))
        assert digest(copy) != first
        (copy / file).write_text(whole)


def test_the_digest_of_the_embedded_model_takes_milliseconds() -> None:
    checkpoint = open_checkpoint(ModelSettings("tiny"))
    started = time.monotonic()
    checkpoint.digest()
    assert time.monotonic() - started < 0.5


def test_reading_ahead_changes_nothing_and_leaves_errors_to_the_reader(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "m")
    checkpoint = open_checkpoint(settings_of(folder))
    before = checkpoint.digest()
    checkpoint.read_ahead()
    assert checkpoint.digest() == before
    (folder / "model.safetensors").unlink()
    checkpoint.read_ahead()
