"""Small checkpoints of random weights of kinds that transformers runs, saved with their processors as a user has them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3Processor,
    Idefics3Config,
    Idefics3Processor,
    IdeficsConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextProcessor,
    LlavaProcessor,
    MllamaConfig,
    MllamaProcessor,
    SmolVLMConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

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

"""Every part where the conversation has it."""
IMAGES_FIRST_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'] | upper }}: {% endif %}"
    "{% for c in m['content'] if c['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ c['text'] }} {% endgeneration %}{% else %}{{ c['text'] }} "
    "{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""The images of a turn before its texts, and a mark around what the assistant says, as LLaVA has it."""
ALTERNATING_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '<start_of_image>' }}{% else %}{{ c['text'] | trim }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'model\n' }}{% endif %}"
)
"""No system turn, roles that alternate, texts trimmed, and what the text model begins with."""


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


IDEFICS3_VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 56,
    "patch_size": 14,
}  # fmt: skip
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


def save_idefics3(folder: Path, *, text: Mapping[str, Any] = {}, vision: Mapping[str, Any] = {}, **top: Any) -> Path:
    """An Idefics3 of tiles of 56 pixels and pages of 112, with the rotary scaling of Llama 3.1."""
    return _save_tiled(Idefics3Config, folder, {"rope_parameters": LLAMA3_ROPE, **text}, vision, top)


def save_smolvlm1(folder: Path, *, text: Mapping[str, Any] = {}, **top: Any) -> Path:
    """A SmolVLM of the first generation, an Idefics3 by its type: three heads for each of keys, head and embedding tied."""
    text = {"hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1, **text}
    return _save_tiled(Idefics3Config, folder, text, {}, {"tie_word_embeddings": True, **top})


def save_smolvlm2(folder: Path, **top: Any) -> Path:
    """A SmolVLM2: tiles of 6 x 6 patches and a rest, as the 2.2B has; an image token joins 3 x 3."""
    vision = {"image_size": 90}
    return _save_tiled(SmolVLMConfig, folder, {}, vision, {"scale_factor": 3, **top}, page=270)


def _save_tiled(
    kind: Any, folder: Path, text: Mapping[str, Any], vision: Mapping[str, Any], top: Mapping[str, Any], page: int = 112
) -> Path:
    vision = {**IDEFICS3_VISION, **vision}
    config = kind(
        vision_config=vision,
        text_config={**TEXT, "model_type": "llama", **text},
        **{"scale_factor": 2, "image_token_id": 130, **top},
    )
    _save(config, folder)
    tile = vision["image_size"]
    images = Idefics3ImageProcessorPil(size={"longest_edge": page}, max_image_size={"longest_edge": tile})
    Idefics3Processor(images, _tokenizer(), image_seq_len=4, chat_template=TEMPLATE).save_pretrained(folder)
    return folder


TILED = {"idefics3": save_idefics3, "smolvlm1": save_smolvlm1, "smolvlm2": save_smolvlm2}
"""What the native engine runs."""


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


def save_llava_next(folder: Path) -> Path:
    """A LLaVA-NeXT: pages of another shape are another number of tiles; its template puts images before texts."""
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    )
    grid = [[56, 112], [112, 56], [112, 112]]
    config = LlavaNextConfig(
        vision_config=vision, text_config=LlamaConfig(**TEXT), image_token_index=130, image_grid_pinpoints=grid
    )
    _save(config, folder)
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, image_grid_pinpoints=grid
    )
    LlavaNextProcessor(
        images, _tokenizer(), patch_size=14, vision_feature_select_strategy="default",
        chat_template=IMAGES_FIRST_TEMPLATE, num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def save_gemma3(folder: Path) -> Path:
    """A Gemma 3: what stands for an image in its template is no image token, and roles must alternate."""
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 56,
        "patch_size": 14,
    }  # fmt: skip
    tokens = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image>"}
    tokenizer = AutoTokenizer.from_pretrained(TINY, extra_special_tokens=tokens)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start_of_image>", "<end_of_image>"]})
    begin, end = tokenizer.convert_tokens_to_ids(["<start_of_image>", "<end_of_image>"])
    text = {**TEXT, "vocab_size": len(tokenizer), "head_dim": 16, "sliding_window": 512, "query_pre_attn_scalar": 16}
    config = Gemma3Config(
        vision_config=vision, text_config=text, mm_tokens_per_image=4, boi_token_index=begin, eoi_token_index=end,
        image_token_index=130, tie_word_embeddings=False,
    )  # fmt: skip
    _save(config, folder)
    images = Gemma3ImageProcessorPil(size={"height": 56, "width": 56})
    Gemma3Processor(images, tokenizer, image_seq_length=4, chat_template=ALTERNATING_TEMPLATE).save_pretrained(folder)
    return folder


def save_mllama(folder: Path) -> Path:
    """A Llama 3.2 Vision: texts see images by cross attention, through gates that are open here."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|image|>"]})
    image = tokenizer.convert_tokens_to_ids("<|image|>")  # the one that the head does not have
    vision = {
        "hidden_size": 32, "attention_heads": 2, "num_hidden_layers": 2, "num_global_layers": 1, "image_size": 28,
        "intermediate_size": 64, "patch_size": 14, "max_num_tiles": 2, "intermediate_layers_indices": [0, 1],
        "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]], "vision_output_dim": 96,
    }  # fmt: skip
    text = {**TEXT, "vocab_size": image, "num_hidden_layers": 3, "cross_attention_layers": [1]}
    _save(
        MllamaConfig(text_config=text, vision_config=vision, image_token_index=image, tie_word_embeddings=False), folder
    )
    weights = load_file(folder / "model.safetensors")
    opened = {
        name: torch.ones_like(one) if "gate" in name and one.numel() == 1 else one for name, one in weights.items()
    }
    save_file(opened, folder / "model.safetensors", metadata={"format": "pt"})
    images = MllamaImageProcessorPil(size={"height": 28, "width": 28}, max_image_tiles=2)
    template = TEMPLATE.replace("<image>", "<|image|>")
    MllamaProcessor(images, tokenizer, chat_template=template).save_pretrained(folder)
    return folder


SAVED = {"llava": save_llava, "llava_next": save_llava_next, "gemma3": save_gemma3, "mllama": save_mllama}


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
