"""The plain transformers path: what the engine is compared with, in tests and in `bench`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from idefics_cli.config import ImageGeometry, ModelSettings
from idefics_cli.engine.checkpoint import Checkpoint, load_model, open_checkpoint
from idefics_cli.engine.clock import Lap
from idefics_cli.engine.prompt import PromptBuilder
from idefics_cli.engine.vision import normalize
from idefics_cli.records import Answer, Crop, Request


class StockEngine:
    """Answers with `Idefics2ForConditionalGeneration.generate`, padding and masks as the stock processor makes them."""

    def __init__(
        self, settings: ModelSettings, checkpoint: Checkpoint | None = None, model: Any = None, *, on_host: bool = False
    ) -> None:
        """Take a checkpoint and a model that are open already, or open and load those that the settings name.

        Args:
            settings: of the model; `batch_size` requests go through `generate` together, one where it is 0.
            checkpoint: open already.
            model: loaded already.
            on_host: whether pixels are normalized and padded on the host, as the stock processor does.

        """
        self._settings, self._on_host = settings, on_host
        self._checkpoint = checkpoint or open_checkpoint(settings)
        self._prompts = PromptBuilder(self._checkpoint.processor, settings.prompt)
        self.model: Any = load_model(self._checkpoint) if model is None else model

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
        """As many as go through `generate` together."""
        return self._settings.batch_size or 1

    def answer(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """Answer requests in their order."""
        waiting = list(requests)
        for start in range(0, len(waiting), self.window):
            some = waiting[start : start + self.window]
            started = time.perf_counter()
            generated = self.tokens(some)
            spent = (time.perf_counter() - started) * 1e3 / len(some)
            for request, tokens in zip(some, generated, strict=True):
                text = self._checkpoint.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
                yield Answer(request.number, text, new_tokens=len(tokens), batch_size=len(some), decode_ms=spent)

    @torch.inference_mode()
    def tokens(self, requests: Sequence[Request]) -> list[list[int]]:
        """Return the new tokens of requests that go through `generate` together, the end token included."""
        device, limit = self._checkpoint.device, self._settings.max_new_tokens
        pixels, mask = self._pixels([[crop for page in request.pages for crop in page.crops] for request in requests])
        prompts = [
            torch.tensor(self._prompts.tokens(request.question, [len(page.crops) for page in request.pages]))
            for request in requests
        ]
        longest = max(len(prompt) for prompt in prompts)
        tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
        attention = torch.zeros_like(tokens)
        for row, prompt in enumerate(prompts):
            tokens[row, longest - len(prompt) :], attention[row, longest - len(prompt) :] = prompt, 1
        generated = self.model.generate(
            input_ids=tokens.to(device),
            attention_mask=attention.to(device),
            pixel_values=pixels.to(device, self.model.dtype),
            pixel_attention_mask=mask.to(device),
            do_sample=False,
            max_new_tokens=limit,
            min_new_tokens=limit if self._settings.fixed_length else None,
        )
        ends = self.model.generation_config.eos_token_id
        return [_until_end(row, ends) for row in generated[:, longest:].tolist()]

    @torch.inference_mode()
    def stage_ms(self, request: Request, *, rows: int, length: int) -> tuple[float, float]:
        """Measure tower and connector for a request's pages, and a decode step of rows with prompts of some length."""
        device, limit = self._checkpoint.device, self._settings.max_new_tokens
        pixels, mask = self._pixels([[crop for page in request.pages for crop in page.crops]])
        pixels, mask = pixels.to(device, self.model.dtype), mask.to(device)
        tokens = torch.randint(3, self._checkpoint.config.text_config.vocab_size, (rows, length), device=device)
        tokens[tokens == self._checkpoint.config.image_token_id] = 0

        def generate(count: int) -> None:
            self.model.generate(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                do_sample=False,
                max_new_tokens=count,
                min_new_tokens=count,
            )

        spent = []
        for work in (
            lambda: self.model.get_image_features(pixels, mask),
            lambda: generate(1),
            lambda: generate(limit),
        ):
            work()  # warms up
            lap = Lap(device)
            work()
            spent.append(lap.stop().ms)
        vision, first, every = spent
        return vision, (every - first) / (limit - 1)

    def _pixels(self, crops: Sequence[Sequence[Crop]]) -> tuple[Tensor, Tensor]:
        """Pad crops to the largest: (rows, most crops, 3, height, width), and the mask of real pixels."""
        device = torch.device("cpu") if self._on_host else self._checkpoint.device
        dtype = torch.float32 if self._on_host else self.model.dtype
        every = [crop for some in crops for crop in some]
        shape = (len(crops), max(map(len, crops)), 3, *(max(crop.shape[axis] for crop in every) for axis in (0, 1)))
        pixels = torch.zeros(shape, device=device, dtype=dtype)
        mask = torch.zeros((*shape[:2], *shape[3:]), device=device, dtype=torch.long)
        for row, some in enumerate(crops):
            for index, crop in enumerate(some):
                height, width = crop.shape[:2]
                one = torch.from_numpy(np.array(crop))[None].to(device)
                pixels[row, index, :, :height, :width] = normalize(one, self._checkpoint.normalization, dtype)[0]
                mask[row, index, :height, :width] = 1
        return pixels, mask


def _until_end(tokens: list[int], ends: int | list[int] | None) -> list[int]:
    """Cut the padding that follows the end of a row that ended before others."""
    known = {ends} if isinstance(ends, int) else set(ends or ())
    first = next((place for place, token in enumerate(tokens) if token in known), len(tokens))
    return tokens[: first + 1]
