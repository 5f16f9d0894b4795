"""Adapters made by PEFT itself: merged while loading, they answer as in plain PEFT; what can't be merged is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText

from idefics_cli.config import AdapterBase, Dtype, ModelSettings, Quantize
from idefics_cli.engine import open_engine
from idefics_cli.engine.native.weights import CheckpointSource
from idefics_cli.errors import ModelError, UsageError
from idefics_cli.records import Answer
from tests.small_checkpoints import CPU, opened, reference, save_checkpoint, settings_of, small_requests

RECIPE = r".*(text_model|modality_projection|perceiver_resampler).*(down_proj|gate_proj|up_proj|k_proj|q_proj|v_proj|o_proj).*$"
LAYER = "model.text_model.layers.0."
SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "patterns": {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 3}, "alpha_pattern": {"v_proj": 32}},
    "list of modules": {"target_modules": ["q_proj", "fc1"], "layers_to_transform": None},
    "convolution": {"target_modules": ["patch_embedding", "q_proj"]},
    "convolution, dora": {"target_modules": ["patch_embedding", "q_proj"], "use_dora": True},
    "embedding": {"target_modules": ["embed_tokens", "lm_head", "position_embedding"]},
    "embedding, dora": {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True},
    "biases of targets": {"target_modules": ["fc1", "q_proj"], "bias": "lora_only"},
    "all biases": {"target_modules": ["fc1", "q_proj"], "bias": "all"},
    "whole modules": {"modules_to_save": ["lm_head", "modality_projection"], "target_modules": ["q_proj"]},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("models") / "base", generation={})


def save_adapter(base: Path, folder: Path, **changes: Any) -> Path:
    """Save an adapter whose every tensor differs from what it begins as."""
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(**({"r": 4, "lora_alpha": 6, "target_modules": RECIPE} | changes)))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if weight.requires_grad:
                if "magnitude" in name:
                    weight.mul_(1 + 0.3 * torch.rand_like(weight))
                else:
                    weight.add_(torch.randn_like(weight) * 0.2)
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def lora(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(base, tmp_path_factory.mktemp("adapters") / "lora")


@pytest.fixture
def copy(lora: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(lora, tmp_path / "adapter"))


def change(folder: Path, **values: Any) -> Path:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return folder


def answers(settings: ModelSettings) -> list[Answer]:
    engine = open_engine(settings)
    found = [future.result() for future in [engine.submit(request) for request in small_requests()]]
    engine.close()
    assert not any(answer.failure for answer in found)
    return found


def expected(base: Path, adapter: Path) -> list[tuple[float, int]]:
    """Confidence and number of tokens by plain PEFT."""
    ours = reference(settings_of(base))
    ours.model = PeftModel.from_pretrained(ours.model, adapter).eval()
    return [(answer.confidence, answer.new_tokens) for request in small_requests() for answer in ours.answer([request])]


@pytest.mark.parametrize("kind", SETTINGS)
def test_answers_are_those_of_plain_peft(kind: str, base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(base, tmp_path / "adapter", **SETTINGS[kind])
    found = answers(settings_of(base, adapter=str(adapter)))
    wanted = expected(base, adapter)
    plain = [answer.text for answer in answers(settings_of(base))]
    assert [answer.text for answer in found] != plain
    assert [answer.new_tokens for answer in found] == [tokens for _, tokens in wanted]
    assert [answer.confidence for answer in found] == pytest.approx([value for value, _ in wanted], rel=2e-3)


@pytest.mark.parametrize("kind", ["lora", "dora", "whole modules"])
def test_weights_are_those_that_peft_merges(kind: str, base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(base, tmp_path / "adapter", **SETTINGS[kind])
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    checkpoint, _, _ = opened(settings_of(base, adapter=str(adapter)))
    source = CheckpointSource(checkpoint, torch.float32, CPU)
    for name in checkpoint.tensors():
        assert torch.allclose(source(name), merged[name], atol=1e-5)


@pytest.mark.parametrize("kind", ["lora", "dora", "whole modules"])
def test_the_transformers_backend_merges_too(kind: str, tmp_path: Path) -> None:
    base = save_checkpoint(tmp_path / "base", generation={"sequence_bias": [[[103], -10.0], [[121], -10.0]]})
    adapter = save_adapter(base, tmp_path / "adapter", **SETTINGS[kind])
    settings = settings_of(base, adapter=str(adapter))
    assert open_engine(settings).info.settings["engine"].startswith("transformers")
    found = [(answer.confidence, answer.new_tokens) for answer in answers(settings)]
    wanted = expected(base, adapter)
    assert [tokens for _, tokens in found] == [tokens for _, tokens in wanted]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in wanted], rel=2e-3)


def test_merging_is_done_before_casting_and_quantizing(base: Path, lora: Path) -> None:
    settings = settings_of(base, adapter=str(lora))
    name = f"{LAYER}mlp.up_proj.weight"
    checkpoint, _, _ = opened(settings)
    exact = CheckpointSource(checkpoint, torch.float32, CPU)(name)
    assert torch.equal(CheckpointSource(checkpoint, torch.bfloat16, CPU)(name), exact.bfloat16())
    model = reference(dataclasses.replace(settings, dtype=Dtype.BFLOAT16)).model
    assert torch.equal(model.state_dict()[name], exact.bfloat16())
    plain, adapted = (
        answers(settings_of(base, quantize=Quantize.FP8, adapter=adapter)) for adapter in (None, str(lora))
    )
    assert [answer.text for answer in plain] != [answer.text for answer in adapted]


def test_an_adapter_in_half_precision_is_merged_in_float32(base: Path, copy: Path) -> None:
    file = copy / "adapter_model.safetensors"
    halves = {name: tensor.bfloat16() for name, tensor in load_file(file).items()}
    save_file(halves, file)
    name = f"{LAYER}mlp.up_proj"
    checkpoint, _, _ = opened(settings_of(base, adapter=str(copy)))
    a, b = (halves[f"base_model.model.{name}.lora_{part}.weight"].float() for part in "AB")
    weight = load_file(base / "model.safetensors")[f"{name}.weight"]
    merged = CheckpointSource(checkpoint, torch.float32, CPU)(f"{name}.weight")
    assert torch.allclose(merged, weight + b @ a * 6 / 4, atol=1e-6)


def test_settings_go_by_the_content_of_the_adapter(base: Path, lora: Path, copy: Path) -> None:
    def settings(adapter: Path | None) -> Mapping[str, str]:
        return open_engine(settings_of(base, adapter=str(adapter) if adapter else None)).info.settings

    assert settings(None)["--adapter (its content)"] == "none"
    assert settings(copy) == settings(lora) != settings(None)
    assert settings(change(copy, lora_alpha=7)) != settings(lora)
    change(copy, lora_alpha=6)
    file = copy / "adapter_model.safetensors"
    save_file({name: tensor * 2 for name, tensor in load_file(file).items()}, file)
    assert settings(copy) != settings(lora)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"peft_type": "IA3"}, "an adapter of type IA3"),
        ({"peft_type": None}, "an adapter of type None"),
        ({"trainable_token_indices": [3]}, r"trainable_token_indices \[3\], which can't be merged"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out True"),
        ({"lora_bias": True}, "lora_bias True"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"target_parameters": ["latents"]}, "target_parameters"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"something_new": {"x": 1}}, "something_new {'x': 1}, which can't be merged"),
        ({"init_lora_weights": "pissa"}, "pissa.*path_initial_model_for_weight_conversion"),
        ({"auto_mapping": {"base_model_class": "LlamaForCausalLM"}}, "auto_mapping.*LlamaForCausalLM"),
        ({"auto_mapping": "x"}, "auto_mapping"),
        ({"bias": "some"}, "bias some"),
        ({"r": 0}, "r 0 is not a rank"),
        ({"r": "x"}, "r x is not a rank"),
        ({"r": 5}, r"lora_. *.*the adapter's rank ask"),
        ({"rank_pattern": {"q_proj": 3}}, "q_proj.*the adapter's rank ask"),
        ({"rank_pattern": {"(": 3}}, "the pattern"),
        ({"alpha_pattern": {"q_proj": "much"}}, "could not convert"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save names lm_head, for which the adapter has no weights"),
        ({"use_dora": True}, "no magnitude for .*use_dora is True"),
        ({"base_model_name_or_path": None}, "does not say what its base is"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_be_merged_are_refused_by_name(
    values: dict[str, Any], words: str, base: Path, copy: Path
) -> None:
    with pytest.raises(ModelError, match=words) as refused:
        open_engine(settings_of(base, adapter=str(change(copy, **values))))
    assert str(copy) in str(refused.value)


PREFIX = f"base_model.model.{LAYER}mlp.up_proj."


def other_weights(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, folder / "adapter_model.safetensors")

    return apply


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "adapter_config.json").unlink(), "adapter_config.json is missing"),
        (lambda folder: (folder / "adapter_config.json").write_text("["), "adapter_config.json can't be read"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "adapter_model.safetensors is missing"),
        (
            lambda folder: (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin"),
            "adapter_model.bin is a pickle, which is never loaded",
        ),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x" * 99), "damaged"),
        (other_weights(lambda t: t.pop(f"{PREFIX}lora_A.weight")), "one of lora_A and lora_B .* lacks the other"),
        (other_weights(lambda t: t.update({"x.weight": torch.zeros(1)})), "a weight named x.weight"),
        (other_weights(lambda t: t.update({f"{PREFIX}lora_C.weight": torch.zeros(1)})), "lora_C.* can't be merged"),
        (
            other_weights(lambda t: t.update({"base_model.model.model.new.weight": torch.zeros(1)})),
            "changes model.new.weight, which the checkpoint does not have",
        ),
        (
            other_weights(lambda t: t.update({f"base_model.model.{LAYER}mlp.up_proj.weight": torch.zeros(2, 2)})),
            r"up_proj.weight has the shape \(2, 2\)",
        ),
        (other_weights(lambda t: t.update({f"{PREFIX}lora_B.weight": torch.zeros(60, 4)})), "shape .60, 4.*of another base"),
        (other_weights(lambda t: t.update({f"{PREFIX}lora_A.weight": torch.zeros(4, 32).int()})), "stored as I32"),
        (
            other_weights(
                lambda t: t.update(
                    {f"base_model.model.{LAYER}input_layernorm.lora_{part}.weight": torch.zeros(4, 4) for part in "AB"}
                )
            ),
            "as a product, which it is not",
        ),
        (other_weights(lambda t: t.clear()), "the adapter has no weights"),
        (
            other_weights(lambda t: t.update({f"{PREFIX}lora_magnitude_vector": torch.ones(64)})),
            "has a magnitude for .* use_dora is False",
        ),
    ],
)  # fmt: skip
def test_files_and_weights_that_do_not_fit_are_refused(
    damage: Callable[[Path], None], words: str, base: Path, copy: Path
) -> None:
    damage(copy)
    with pytest.raises(ModelError, match=words) as refused:
        open_engine(settings_of(base, adapter=str(copy)))
    assert str(copy) in str(refused.value)


def test_a_name_that_is_no_adapter(base: Path) -> None:
    with pytest.raises(ModelError, match=r"^./nothing: no such folder"):
        open_engine(settings_of(base, adapter="./nothing"))
    with pytest.raises(UsageError, match="--adapter takes"):
        settings_of(base, adapter=" ")
    with pytest.raises(UsageError, match="--adapter-base goes with --adapter"):
        settings_of(base, adapter_base=AdapterBase.ANY)


def test_an_adapter_in_the_place_of_a_checkpoint_or_beside_one(base: Path, lora: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="an adapter, not a checkpoint: name its base, and --adapter"):
        open_engine(settings_of(lora))
    both = shutil.copytree(base, tmp_path / "both")
    shutil.copy(lora / "adapter_config.json", both)
    with pytest.raises(ModelError, match=r"adapter_config\.json beside weights"):
        open_engine(settings_of(both))


def test_weights_that_are_tied_are_not_changed_in_one_place_only(tmp_path: Path) -> None:
    base = save_checkpoint(tmp_path / "base", generation={}, top={"tie_word_embeddings": True})
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["embed_tokens", "q_proj"])
    with pytest.raises(ModelError, match=r"embed_tokens\.weight, which the checkpoint ties"):
        open_engine(settings_of(base, adapter=str(adapter)))


HUB = "models--someone--base/snapshots/0123456789abcdef"


@pytest.mark.parametrize(
    ("base_name", "revision", "place", "words"),
    [
        ("Someone/Base", None, "elsewhere/base", None),
        ("Someone/Base", "v2", "elsewhere/base", None),  # what a folder is a revision of, nothing tells
        ("someone/base", None, "elsewhere/other", "--model someone/base, or --adapter-base any"),
        ("/far/away/base", None, "elsewhere/base/", None),
        ("/far/away/base", None, "elsewhere/other", "take the checkpoint that it was trained on, or --adapter-base"),
        ("someone/base", None, HUB, None),
        ("other/base", None, HUB, "--model other/base"),
        ("/cache/models--someone--base/snapshots/77", None, HUB, None),
        ("/cache/models--other--base/snapshots/77", None, HUB, "--model other/base"),
        ("someone/base", "0123456789abcdef", HUB, None),
        ("someone/base", "main", HUB, None),
        ("someone/base", "v2", HUB, "at revision v2, not main: --revision v2"),
    ],
)
def test_the_base_is_compared(
    base_name: str, revision: str | None, place: str, words: str | None, base: Path, copy: Path, tmp_path: Path
) -> None:
    folder = tmp_path / place
    shutil.copytree(base, folder)
    change(copy, base_model_name_or_path=base_name, revision=revision)
    settings = settings_of(folder, adapter=str(copy))
    if words is None:
        open_engine(settings)
    else:
        with pytest.raises(ModelError, match=words):
            open_engine(settings)
    open_engine(dataclasses.replace(settings, adapter_base=AdapterBase.ANY))
