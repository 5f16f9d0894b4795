from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, Idefics3Processor
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from idefics_cli.engine.checkpoint import read_folder
from idefics_cli.engine.families import native_family_of
from idefics_cli.engine.families.idefics3 import Idefics3Family
from idefics_cli.engine.families.idefics3_images import Idefics3ImageProcessor
from idefics_cli.errors import ModelError
from idefics_cli.records import plain_turns
from tests.other_checkpoints import save_idefics3
from tests.small_checkpoints import settings_of

LETTER, A4, LANDSCAPE, TINY, LONG, NARROW = (1275, 1650), (827, 1169), (1169, 827), (31, 40), (1800, 30), (3, 900)
SIZES = [LETTER, A4, LANDSCAPE, TINY, LONG, NARROW, (364, 364), (365, 364), (1, 1)]


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("edge", "tile"), [(1456, 364), (1536, 384), (2048, 512), (364, 364)])
def test_crops_are_the_stock_processors_pixel_for_pixel(
    size: tuple[int, int], split: bool, edge: int, tile: int
) -> None:
    pixels = np.random.default_rng(1).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    ours = pickle.loads(pickle.dumps(Idefics3ImageProcessor(edge, tile)))  # as page processes get it
    crops = ours.crops(image, split=split)
    for kind in (Idefics3ImageProcessorPil, SmolVLMImageProcessorPil):
        stock = kind(size={"longest_edge": edge}, max_image_size={"longest_edge": tile}, do_image_splitting=split)
        expected = stock(image, return_tensors="np", do_rescale=False, do_normalize=False, return_row_col_info=True)
        assert np.array_equal(np.stack(crops).transpose(0, 3, 1, 2), expected["pixel_values"][0])
        assert ours.columns(*size, split=split) == expected["cols"][0][0]


def test_tiles_of_pages_of_usual_sizes() -> None:
    ours = Idefics3ImageProcessor(2048, 512)
    counts = [len(ours.crops(Image.new("RGB", size), split=True)) for size in (LETTER, A4, LANDSCAPE, LONG)]
    assert counts == [17, 13, 13, 5]
    assert [ours.columns(*size, split=True) for size in (LETTER, A4, LANDSCAPE, LONG)] == [4, 3, 4, 4]
    assert (ours.longest_edge, ours.render_edge(split=True), ours.render_edge(split=False)) == (512, 2048, 2048)


def byte_level(folder: Path, *, marks: bool, adds_bos: bool) -> Path:
    """Give a checkpoint a byte-level BPE as Llama 3's and SmolVLM's; SmolVLM's has the marks of tiles as tokens."""
    letters = {letter: index + 3 for index, letter in enumerate(sorted(ByteLevel.alphabet()))}
    merges = [("Ċ", "Ċ"), ("e", "r"), ("Ġ", "t")]
    vocabulary = {"<unk>": 0, "<|begin|>": 1, "<end_of_utterance>": 2} | letters
    vocabulary |= {"".join(pair): len(vocabulary) + index for index, pair in enumerate(merges)}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    special = ["<|begin|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>"]
    if marks:
        special += ["<global-img>", *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    if adds_bos:
        tokenizer.post_processor = TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin|>", "pad_token": "<|begin|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "clean_up_tokenization_spaces": True}))
    config = json.loads((folder / "config.json").read_text())
    config["image_token_id"] = tokenizer.token_to_id("<image>")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def family(folder: Path) -> Idefics3Family:
    found = native_family_of(read_folder("m", folder))
    assert isinstance(found, Idefics3Family)
    return found


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_idefics3(tmp_path_factory.mktemp("idefics3"))


@pytest.mark.parametrize(("marks", "adds_bos"), [(True, False), (False, True)], ids=["smolvlm", "llama 3"])
@pytest.mark.parametrize("template", ["<|begin|>", "", None])
def test_tokens_of_byte_level_tokenizers_are_those_of_transformers_processor(
    marks: bool, adds_bos: bool, template: str | None, saved: Path, tmp_path: Path
) -> None:
    for file in saved.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    byte_level(tmp_path, marks=marks, adds_bos=adds_bos)
    chat = (saved / "chat_template.jinja").read_text()
    if template is None:
        (tmp_path / "chat_template.jinja").unlink()
    else:
        (tmp_path / "chat_template.jinja").write_text(template + chat)
    images = Idefics3ImageProcessorPil.from_pretrained(tmp_path)
    processor: Any = Idefics3Processor(images, AutoTokenizer.from_pretrained(tmp_path), image_seq_len=4)
    ours = family(tmp_path)
    prompts = ours.prompt_builder("{question}")
    for sheets, split in (([LETTER], True), ([LANDSCAPE, TINY], True), ([A4, LONG], False)):
        pages = [Image.new("RGB", size) for size in sheets]
        question = "Où est\n\nle total?"
        content = [*({"type": "image"} for _ in pages), {"type": "text", "text": question}]
        text = "<image>" * len(pages) + question
        if template is not None:
            messages = [{"role": "user", "content": content}]
            text = processor.tokenizer.apply_chat_template(
                messages, chat_template=template + chat, add_generation_prompt=True, tokenize=False
            )
        expected = processor(
            text=[text], images=[pages], do_image_splitting=split, add_special_tokens=not text.startswith("<|begin|>")
        )["input_ids"][0]
        counts = [len(ours.image_processor.crops(page, split=split)) for page in pages]
        columns = [ours.image_processor.columns(*page.size, split=split) for page in pages]
        prompt = prompts.build(plain_turns(question, len(pages)), counts, columns=columns)
        assert list(prompt.tokens) == expected
        image = ours.config.image_token_id
        assert prompt.tokens[: prompt.prefix_length].count(image) == expected.count(image) == 4 * sum(counts)
    tokens = processor.tokenizer("12.50 € , or so !", add_special_tokens=False).input_ids
    assert prompts.decode(tokens) == "12.50 € , or so !"


def test_the_end_of_an_utterance_ends_an_answer_and_images_never_stand_in_one(saved: Path) -> None:
    rules = family(saved).generation(settings_of(saved))
    assert rules.eos_token_ids == {2, 131}
    assert {129, 130} <= rules.suppressed_tokens


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("image_processor", {"max_image_size": {"longest_edge": 50}}, "max_image_size 50"),
        ("image_processor", {"max_image_size": {"longest_edge": 112}}, "more than the model's 4"),
        ("image_processor", {"do_resize": False}, "do_resize"),
        ("image_processor", {"size": {"height": 56, "width": 56}}, "sizes"),
        (None, {"image_seq_len": 9}, "image_seq_len 9 of the processor is not the model's number of tokens for a tile"),
    ],
)
def test_settings_that_do_not_fit_are_told(
    file: str | None, changes: dict[str, Any], words: str, saved: Path, tmp_path: Path
) -> None:
    for one in saved.iterdir():
        (tmp_path / one.name).write_bytes(one.read_bytes())
    settings = json.loads((tmp_path / "processor_config.json").read_text())
    (settings[file] if file else settings).update(changes)
    (tmp_path / "processor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=words):
        native_family_of(read_folder("m", tmp_path))
