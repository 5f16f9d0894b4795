from __future__ import annotations

import dataclasses

import torch
from PIL import Image
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil

from idefics_cli.config import ModelSettings
from idefics_cli.documents.crops import make_crops
from idefics_cli.documents.images import load_frame
from idefics_cli.engine.stock import StockEngine
from idefics_cli.records import Document, PreparedPage, Request
from tests.conftest import SAMPLES, TINY


def test_it_is_the_processor_and_generate_as_the_model_card_shows_them(tiny_settings: ModelSettings) -> None:
    engine = StockEngine(tiny_settings)
    processor = engine._checkpoint.processor
    for name, split in (("small-print.png", True), ("notice.bmp", False)):
        image: Image.Image = load_frame(Document(name, str(SAMPLES / "documents" / name)), 1, 10**9)
        page = PreparedPage(make_crops(image, split=split, geometry=TINY), "pillow", 0, 0)
        ours = engine.tokens([Request(0, "What is the total?", (page,), (0,))])[0]
        content = [{"type": "image"}, {"type": "text", "text": "What is the total?"}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        processor.image_processor = Idefics2ImageProcessorPil(
            size={"longest_edge": 490, "shortest_edge": 196}, do_image_splitting=split
        )
        inputs = processor(text=text, images=[image], return_tensors="pt")
        with torch.inference_mode():
            generated = engine.model.generate(**inputs, do_sample=False, max_new_tokens=32)
        assert ours == generated[0, inputs["input_ids"].shape[1] :].tolist()


def test_batches_give_the_answers_of_one_at_a_time_whatever_stands_on_the_host(
    tiny_settings: ModelSettings, sample_requests: list[Request]
) -> None:
    some = sample_requests[:10]
    alone = StockEngine(tiny_settings)
    expected = [alone.tokens([request])[0] for request in some]
    for on_host in (True, False):
        engine = StockEngine(dataclasses.replace(tiny_settings, batch_size=4), on_host=on_host)
        assert [tokens for start in (0, 4, 8) for tokens in engine.tokens(some[start : start + 4])] == expected
        assert [answer.new_tokens for answer in engine.answer(some)] == [len(tokens) for tokens in expected]
