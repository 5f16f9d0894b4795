from __future__ import annotations

import pytest
from transformers import LlamaConfig, MistralConfig

from idefics_cli.engine.families.model_config import LLAMA, MISTRAL, check_shapes, decoder_config, vision_config
from idefics_cli.errors import ModelError
from tests.small_checkpoints import opened, save_checkpoint, settings_of


@pytest.mark.parametrize(("defaults", "theirs"), [(MISTRAL, MistralConfig()), (LLAMA, LlamaConfig())])
def test_what_a_file_leaves_out_is_what_transformers_takes_for_it(defaults: dict[str, object], theirs: object) -> None:
    found, gaps = decoder_config({}, "m", defaults)
    assert gaps == ()
    for ours, name in (
        ("vocab_size", "vocab_size"),
        ("hidden_size", "hidden_size"),
        ("intermediate_size", "intermediate_size"),
        ("num_layers", "num_hidden_layers"),
        ("num_heads", "num_attention_heads"),
        ("num_kv_heads", "num_key_value_heads"),
        ("max_positions", "max_position_embeddings"),
        ("eps", "rms_norm_eps"),
        ("rope_theta", "default_theta"),
    ):
        assert getattr(found, ours) == getattr(theirs, name), ours
    assert found.sliding_window == getattr(theirs, "sliding_window", None)


@pytest.mark.parametrize(
    ("values", "gap"),
    [
        ({"model_type": "gemma"}, "text model gemma"),
        ({"hidden_act": "gelu"}, "text hidden_act gelu"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_type yarn"),
        ({"mlp_bias": True}, "biases in the text model"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
    ],
)
def test_what_the_native_engine_does_not_do_is_named(values: dict[str, object], gap: str) -> None:
    assert decoder_config(values, "m", LLAMA)[1] == (gap,)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_attention_heads": 0}, "config.json: text_config: "),
        ({"hidden_size": "wide"}, "'wide'"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "factor"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1,000,000,000: it takes 1 to 1,000"),
    ],
)
def test_settings_of_the_wrong_kind_are_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        decoder_config(values, "m")


def test_a_tower_takes_the_defaults_of_its_family() -> None:
    found = vision_config({"hidden_size": 64, "image_size": 980}, num_attention_heads=4, patch_size=14)
    assert (found.num_heads, found.patch_size, found.positions, found.num_layers) == (4, 14, 70, 12)


def test_weights_that_lack_or_that_nobody_reads_are_named(tmp_path_factory: pytest.TempPathFactory) -> None:
    checkpoint, family, _ = opened(settings_of(save_checkpoint(tmp_path_factory.mktemp("m"))))
    shapes = dict(checkpoint.weight_shapes())
    check_shapes(family.config, shapes, "m")
    name = "model.text_model.norm.weight"
    for changed, words in (
        ({one: shape for one, shape in shapes.items() if one != name}, "lacks 1 weights"),
        ({**shapes, name: (1,)}, "another shape for 1 weights"),
        ({**shapes, "extra": (1,)}, "no place in its config.json for 1 weights, extra"),
    ):
        with pytest.raises(ModelError, match=words):
            check_shapes(family.config, changed, "m")
    check_shapes(family.config, {**shapes, "model.text_model.rotary_emb.inv_freq": (8,)}, "m")
