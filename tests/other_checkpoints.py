"""Small checkpoints of random weights of kinds that transformers runs, saved with their processors as a user has them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3Processor,
    IdeficsConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from tests.conftest import SAMPLES

TINY = SAMPLES / "tiny-idefics2"
TEXT = {
    "vocab_size": 132, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}:{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def save_idefics1(folder: Path) -> Path:
    """An Idefics with three tokens in its additional vocabulary, as the published ones have."""
    text = {**TEXT, "vocab_size": 129, "additional_vocab_size": 3}
    text.pop("num_key_value_heads")
    vision = {
        "image_size": 28, "patch_size": 14, "embed_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 37,
    }  # fmt: skip
    config = IdeficsConfig(
        **text, vision_config=vision, use_resampler=False, cross_layer_interval=1, alpha_initializer="ones", alpha_type="vector", tie_word_embeddings=False,
    )  # fmt: skip
    _save(config, folder)
    shutil.copy(TINY / "tokenizer.json", folder)
    own = json.loads((TINY / "tokenizer_config.json").read_text())
    own.pop("processor_class", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(own))
    settings = {"image_processor_type": "IdeficsImageProcessor", "image_size": 28, "image_num_channels": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def save_idefics3(folder: Path) -> Path:
    """An Idefics3 that tiles its images."""
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 56,
        "patch_size": 14,
    }  # fmt: skip
    text = {**TEXT, "model_type": "llama"}
    _save(Idefics3Config(vision_config=vision, text_config=text, scale_factor=2, image_token_id=130), folder)
    images = Idefics3ImageProcessorPil(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    Idefics3Processor(images, _tokenizer(), image_seq_len=4, chat_template=TEMPLATE).save_pretrained(folder)
    return folder


def save_llava(folder: Path) -> Path:
    """A LLaVA, whose images are squares of one size."""
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    )
    _save(LlavaConfig(vision_config=vision, text_config=LlamaConfig(**TEXT), image_token_index=130), folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    LlavaProcessor(
        images, _tokenizer(), patch_size=14, vision_feature_select_strategy="default", chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip
    return folder


SAVED = {"idefics3": save_idefics3, "llava": save_llava}


def _tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TINY)


def _save(config: Any, folder: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and "embed" not in name and "alpha" not in name:
            torch.nn.init.normal_(weight, std=1.5 * weight[0].numel() ** -0.5)
        elif "embed" in name:
            torch.nn.init.normal_(weight, std=1.0)
    model.save_pretrained(folder)
    (folder / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0})
    )
