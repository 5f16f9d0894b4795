"""The plain transformers path, one question at a time: what the engine is compared with."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from idefics_cli.config import ImageGeometry, ModelSettings
from idefics_cli.engine.checkpoint import load_model, open_checkpoint
from idefics_cli.engine.prompt import PromptBuilder
from idefics_cli.engine.vision import normalize
from idefics_cli.records import Answer, Request


class StockEngine:
    """Answers with `Idefics2ForConditionalGeneration.generate`, padding and masks as the stock processor makes them."""

    def __init__(self, settings: ModelSettings) -> None:
        self._settings = settings
        self._checkpoint = open_checkpoint(settings)
        self._prompts = PromptBuilder(self._checkpoint.processor, settings.prompt)
        self.model: Any = load_model(self._checkpoint)

    @property
    def name(self) -> str:
        """The checkpoint as it was asked for."""
        return self._settings.model

    @property
    def identity(self) -> str:
        """Checkpoint and number format."""
        return f"stock {self._settings.model} {self._checkpoint.dtype}"

    @property
    def geometry(self) -> ImageGeometry:
        """The image sizes that the checkpoint takes."""
        return self._checkpoint.geometry

    @property
    def window(self) -> int:
        """One at a time."""
        return 1

    def answer(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """Answer requests in their order."""
        for request in requests:
            started = time.perf_counter()
            tokens = self.tokens(request)
            text = self._checkpoint.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
            spent = (time.perf_counter() - started) * 1e3
            yield Answer(request.number, text, new_tokens=len(tokens), batch_size=1, decode_ms=spent)

    @torch.inference_mode()
    def tokens(self, request: Request) -> list[int]:
        """Return the new tokens of one request, the end token included."""
        model = self.model
        crops = [crop for page in request.pages for crop in page.crops]
        height, width = (max(crop.shape[axis] for crop in crops) for axis in (0, 1))
        pixels = torch.zeros(1, len(crops), 3, height, width, device=model.device, dtype=model.dtype)
        mask = torch.zeros(1, len(crops), height, width, device=model.device, dtype=torch.long)
        for index, crop in enumerate(crops):
            rows, columns = crop.shape[:2]
            stacked = torch.from_numpy(np.ascontiguousarray(crop))[None].to(model.device)
            pixels[0, index, :, :rows, :columns] = normalize(stacked, self._checkpoint.normalization, model.dtype)[0]
            mask[0, index, :rows, :columns] = 1
        prompt = torch.tensor([self._prompts.tokens(request.question, [len(page.crops) for page in request.pages])])
        generated = model.generate(
            input_ids=prompt.to(model.device),
            attention_mask=torch.ones_like(prompt).to(model.device),
            pixel_values=pixels,
            pixel_attention_mask=mask,
            do_sample=False,
            max_new_tokens=self._settings.max_new_tokens,
        )
        return [int(token) for token in generated[0, prompt.shape[1] :]]
