"""The tiny Idefics2: its configuration, tokenizer and processor, and how it starts training."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    Idefics2Config,
    Idefics2ForConditionalGeneration,
    Idefics2Processor,
    PreTrainedTokenizerFast,
)
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil

from tools.tiny_idefics2.lexicon import CHARACTERS

IMAGE_SIZE = 490  # longest edge of one image, in pixels
SHORTEST_EDGE = 196
PATCH = 14
LATENTS = 64
WIDTH = 256
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
IMAGE_MARKS = ("<fake_token_around_image>", "<image>", "<end_of_utterance>")

CHAT_TEMPLATE = (
    "{% for message in messages %}{{message['role'].capitalize()}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}"
    "{% if line['type'] == 'text' %}{{line['text']}}{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, `<s>` in front, Idefics2's three marks at the end of the vocabulary."""
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *CHARACTERS, *IMAGE_MARKS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=list(IMAGE_MARKS),
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    assert len(fast) == len(vocabulary)
    return fast


def make_processor() -> Idefics2Processor:
    """The processor whose images are `IMAGE_SIZE` at their longest edge."""
    image_processor = Idefics2ImageProcessorPil(
        size={"shortest_edge": SHORTEST_EDGE, "longest_edge": IMAGE_SIZE}, do_image_splitting=True
    )
    return Idefics2Processor(image_processor, make_tokenizer(), image_seq_len=LATENTS, chat_template=CHAT_TEMPLATE)


def make_config() -> Idefics2Config:
    """About 15 million parameters."""
    tokenizer = make_tokenizer()
    end = tokenizer.convert_tokens_to_ids("<end_of_utterance>")
    return Idefics2Config(
        vision_config={
            "hidden_size": WIDTH,
            "intermediate_size": 4 * WIDTH,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH,
        },
        perceiver_config={
            "hidden_size": WIDTH,
            "resampler_n_latents": LATENTS,
            "resampler_depth": 3,
            "resampler_n_heads": 8,
            "resampler_head_dim": 32,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-5,
        },
        text_config={
            "model_type": "mistral",
            "hidden_size": WIDTH,
            "intermediate_size": 4 * WIDTH,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": WIDTH // 4,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 4096,
            "sliding_window": None,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": end,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=end,
        tie_word_embeddings=False,
    )


def make_model(seed: int = 0) -> Idefics2ForConditionalGeneration:
    """A model ready to be trained from nothing.

    Its start differs from the library's own: latents drawn from a normal distribution (equal latents stay equal for
    ever), sine-cosine position embeddings (learned ones take too long to find neighbours), and linear layers whose
    outputs keep the size of their inputs (with deviations of 0.02 at this width, what the latents see of an image is
    a hundredth of what they are without it, and reading never starts).
    """
    torch.manual_seed(seed)
    model = Idefics2ForConditionalGeneration._from_config(
        make_config(), attn_implementation="sdpa", dtype=torch.float32
    )
    with torch.no_grad():
        model.model.connector.perceiver_resampler.latents.normal_()
        for name, parameter in (*model.model.connector.named_parameters(), *model.model.text_model.named_parameters()):
            if name == "embed_tokens.weight":
                parameter.normal_(std=0.5)
            elif parameter.ndim == 2 and "latents" not in name:
                closing = name.endswith(("o_proj.weight", "down_proj.weight"))
                parameter.normal_(std=parameter.shape[1] ** -0.5 * (0.5 if closing else 1.0))
        side = IMAGE_SIZE // PATCH
        model.model.vision_model.embeddings.position_embedding.weight.copy_(0.5 * sine_cosine_positions(side, WIDTH))
    model.generation_config.eos_token_id = model.config.text_config.eos_token_id
    model.generation_config.pad_token_id = model.config.text_config.pad_token_id
    model.generation_config.bos_token_id = model.config.text_config.bos_token_id
    return model


@lru_cache(maxsize=256)
def position_ids(rows: int, columns: int, device: torch.device) -> Tensor:
    """The position of each patch of a grid, (rows * columns,): the bucket of its fractional coordinates in float32.

    This is the rule that Idefics2 was trained with; transformers 5.0 to 5.20 apply it in the dtype of the pixels, which
    moves half of the patches in bfloat16.
    """
    side = IMAGE_SIZE // PATCH
    boundaries = torch.arange(1 / side, 1.0, 1 / side)
    row, column = (
        torch.bucketize(torch.arange(0, 1 - 1e-6, 1 / count), boundaries, right=True) for count in (rows, columns)
    )
    return (row[:, None] * side + column).flatten().to(device)


def sine_cosine_positions(side: int, width: int) -> Tensor:
    """Two-dimensional sine-cosine embeddings, (side * side, width): half of the width for rows, half for columns."""
    quarter = width // 4
    frequency = torch.exp(-math.log(10000.0) * torch.arange(quarter) / quarter)
    angle = torch.arange(side)[:, None] * frequency
    line = torch.cat((angle.sin(), angle.cos()), dim=1)
    return torch.cat((line.repeat_interleave(side, 0), line.repeat(side, 1)), dim=1)


class Reader(nn.Module):
    """The model with two extra heads, dropped afterwards, that name the characters of a patch.

    One names them from the patch itself and teaches the vision encoder to read; the other names them from the latents
    and the patch's position, and teaches the resampler to keep what was read.
    """

    CHARACTERS_A_PATCH = 3

    def __init__(self, model: Idefics2ForConditionalGeneration) -> None:
        super().__init__()
        self.model = model
        names = self.CHARACTERS_A_PATCH * model.config.text_config.vocab_size
        self.spell = nn.Linear(WIDTH, names)
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key_value = nn.Linear(WIDTH, 2 * WIDTH)
        self.recall = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, names)
        )
        side = IMAGE_SIZE // PATCH
        self.register_buffer("places", sine_cosine_positions(side, WIDTH).view(side, side, WIDTH), persistent=False)

    def look_up(self, latents: Tensor, rows: int, columns: int) -> Tensor:
        """What the latents (n, 64, width) say of each patch of a grid: (n, rows * columns, width)."""
        side = IMAGE_SIZE // PATCH
        row = torch.arange(rows, device=latents.device) * side // rows
        column = torch.arange(columns, device=latents.device) * side // columns
        places = self.places[row][:, column].reshape(1, rows * columns, WIDTH)  # type: ignore[index]
        key, value = self.key_value(latents).chunk(2, -1)

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (4, -1)).transpose(1, 2)

        query = heads(self.query(places)).expand(latents.shape[0], -1, -1, -1)
        found = nn.functional.scaled_dot_product_attention(query, heads(key), heads(value))
        return found.transpose(1, 2).flatten(2)

    def see(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images (n, 3, height, width) to patches (n, patches, width) and latents (n, 64, width)."""
        vision = self.model.model.vision_model
        rows, columns = pixels.shape[2] // PATCH, pixels.shape[3] // PATCH
        embeddings = vision.embeddings
        hidden = embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
        hidden = hidden + embeddings.position_embedding(position_ids(rows, columns, pixels.device))
        for layer in vision.encoder.layers:
            hidden = layer(hidden, None)
        patches = vision.post_layernorm(hidden)
        connector = self.model.model.connector
        context = connector.modality_projection(patches)
        resampler = connector.perceiver_resampler
        latents = resampler.latents.expand(context.shape[0], -1, -1)
        for layer in resampler.layers:
            latents = layer(latents, context)
        return patches, resampler.norm(latents)

    def read(self, latents: Tensor, tokens: Tensor, turns: Tensor, positions: Tensor) -> Tensor:
        """Return the last hidden states (pages, length, width) of pages with several question turns.

        Every turn sees the page's prefix (turn 0) and itself alone, so that each is what one question alone is.
        latents: (pages, images * 64, width) in the order of the image tokens.
        """
        text = self.model.model.text_model
        hidden = text.embed_tokens(tokens)
        where = (tokens == self.model.config.image_token_id)[..., None]
        hidden = hidden.masked_scatter(where, latents.to(hidden.dtype))
        length = tokens.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
        same = (turns[:, None, :] == 0) | (turns[:, :, None] == turns[:, None, :])
        mask = (causal & same)[:, None]
        embeddings = text.rotary_emb(hidden, positions)
        for layer in text.layers:
            hidden = layer(hidden, attention_mask=mask, position_ids=positions, position_embeddings=embeddings)
        return text.norm(hidden)


def load_checkpoint(model: Idefics2ForConditionalGeneration, folder: Path) -> None:
    """Fill a model with the weights of a checkpoint folder, which must name all of them."""
    weights = {name: value for shard in folder.glob("model*.safetensors") for name, value in load_file(shard).items()}
    model.load_state_dict(weights, strict=True)


def export(model: Idefics2ForConditionalGeneration, folder: Path) -> None:
    """Write a checkpoint as `from_pretrained` reads it: bfloat16, in files under 16 MiB, with its processor."""
    kept = {name: parameter.detach().to("cpu", torch.bfloat16) for name, parameter in model.state_dict().items()}
    copy = Idefics2ForConditionalGeneration._from_config(model.config, dtype=torch.bfloat16)
    copy.load_state_dict(kept)
    copy.generation_config = model.generation_config
    copy.save_pretrained(folder, max_shard_size="15MB")
    make_processor().save_pretrained(folder)
