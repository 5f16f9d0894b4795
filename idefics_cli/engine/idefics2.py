"""The engine: encodes each page once, answers its questions in batches."""

from __future__ import annotations

import itertools
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from idefics_cli.config import ImageGeometry, ModelSettings
from idefics_cli.engine import schedule
from idefics_cli.engine.checkpoint import Checkpoint, load_model, open_checkpoint
from idefics_cli.engine.decode import Decoded, greedy
from idefics_cli.engine.prompt import PromptBuilder
from idefics_cli.engine.vision import encode_crops
from idefics_cli.errors import FailureKind, ModelError, RowFailedError
from idefics_cli.records import Answer, PreparedPage, Request

_CACHED_PAGES = 256  # a split page of the 8B model takes 2.6 MB in bfloat16
_CROPS_AT_ONCE = {"cpu": 5, "cuda": 40}


@dataclass(frozen=True, slots=True)
class _Row:
    """A request on its way: its prompt's tokens and its share of the vision time."""

    request: Request
    tokens: list[int]
    vision_ms: float


class Idefics2Engine:
    """Runs an Idefics2 checkpoint; the weights are loaded with the first question."""

    def __init__(self, settings: ModelSettings) -> None:
        self._checkpoint: Checkpoint = open_checkpoint(settings)
        self._prompts = PromptBuilder(self._checkpoint.processor, settings.prompt)
        self._settings = settings
        self._pages: OrderedDict[int, Tensor] = OrderedDict()
        self._loaded: Any = None
        self._batch_size = settings.batch_size

    @property
    def name(self) -> str:
        """The checkpoint as it was asked for."""
        return self._settings.model

    @property
    def identity(self) -> str:
        """Checkpoint, revision and number format."""
        revision = self._settings.revision or getattr(self._checkpoint.config, "_commit_hash", None) or ""
        return f"{self._settings.model}@{revision} {self._checkpoint.dtype}"

    @property
    def geometry(self) -> ImageGeometry:
        """The image sizes that the checkpoint takes."""
        return self._checkpoint.geometry

    @property
    def window(self) -> int:
        """Four batches: enough to bring prompts of like length together."""
        return 4 * (self._settings.batch_size or (16 if self._checkpoint.device.type == "cuda" else schedule.CPU_BATCH))

    @property
    def batch_size(self) -> int:
        """How many questions are decoded together."""
        if not self._batch_size:
            self._batch_size = self._auto_batch_size()
        return self._batch_size

    @property
    def model(self) -> Any:
        """The weights, loaded at first use."""
        if self._loaded is None:
            self._loaded = load_model(self._checkpoint)
        return self._loaded

    def answer(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """Answer requests, a window at a time; see `Engine.answer`."""
        stream = iter(requests)
        while window := list(itertools.islice(stream, self.window)):
            try:
                yield from self._answer_window(window)
            except torch.AcceleratorError as error:
                raise ModelError(f"the GPU failed and can't go on: {str(error).splitlines()[0]}") from error

    def _answer_window(self, window: Sequence[Request]) -> Iterator[Answer]:
        rows: list[_Row] = []
        shares = self._encode_pages(window)
        for request in window:
            failure = next(
                (str(shares[page]) for page in request.page_ids if isinstance(shares[page], RowFailedError)), None
            )
            if failure is None:
                try:
                    tokens = self._prompts.tokens(request.question, [len(page.crops) for page in request.pages])
                except RowFailedError as error:
                    failure = str(error)
                else:
                    vision_ms = sum(share for page in request.page_ids if isinstance(share := shares[page], float))
                    rows.append(_Row(request, tokens, vision_ms))
                    continue
            yield Answer(request.number, failure=failure)
        for batch in schedule.batches([len(row.tokens) for row in rows], self.batch_size):
            yield from self._answer_batch([rows[index] for index in batch])
        while len(self._pages) > _CACHED_PAGES:
            self._pages.popitem(last=False)

    # --- vision ---

    def _encode_pages(self, window: Sequence[Request]) -> dict[int, float | RowFailedError]:
        """Encode the pages that are new; return each page's milliseconds a request, or why it failed."""
        pages: dict[int, PreparedPage] = {}
        uses: dict[int, int] = {}
        for request in window:
            for page_id, page in zip(request.page_ids, request.pages, strict=True):
                pages[page_id] = page
                uses[page_id] = uses.get(page_id, 0) + 1
        shares: dict[int, float | RowFailedError] = dict.fromkeys(pages, 0.0)
        model = self.model
        at_once = _CROPS_AT_ONCE[model.device.type]
        for page_id, page in pages.items():
            if page_id in self._pages:
                self._pages.move_to_end(page_id)
                continue
            started = time.perf_counter()
            try:
                latents = self._encode(page, at_once)
            except RowFailedError as failure:
                shares[page_id] = failure
                continue
            self._pages[page_id] = latents
            shares[page_id] = (time.perf_counter() - started) * 1e3 / uses[page_id]
        return shares

    def _encode(self, page: PreparedPage, at_once: int) -> Tensor:
        """Encode a page to (crops * latents, width), with fewer crops at once where memory is short."""
        while True:
            try:
                latents = encode_crops(self.model, page.crops, self._checkpoint.normalization, at_once)
                if self.model.device.type == "cuda":
                    torch.cuda.synchronize()
                return torch.cat(latents)
            except torch.OutOfMemoryError:
                pass  # its traceback holds tensors: recover outside of the handler
            torch.cuda.empty_cache()
            at_once = min(at_once, len(page.crops)) // 2
            if at_once == 0:
                raise RowFailedError(FailureKind.OUT_OF_MEMORY, "one crop of the page does not fit the GPU's memory")

    # --- decoding ---

    def _answer_batch(self, rows: Sequence[_Row]) -> Iterator[Answer]:
        """Decode rows together; a batch that does not fit is halved until it does."""
        model = self.model
        generation = model.generation_config
        ends = generation.eos_token_id
        batch = None
        try:
            started = time.perf_counter()
            embeds = [self._embed(row) for row in rows]
            embed_ms = (time.perf_counter() - started) * 1e3
            batch = greedy(
                model,
                embeds,
                ends=[ends] if isinstance(ends, int) else list(ends or ()),
                banned=[ids[0] for ids in generation.bad_words_ids or () if len(ids) == 1],
                max_new_tokens=self._settings.max_new_tokens,
            )
        except torch.OutOfMemoryError:
            pass
        if batch is None:
            yield from self._answer_halves(rows)
            return
        count = len(rows)
        for row, decoded in zip(rows, batch.rows, strict=True):
            answer = Answer(
                row.request.number,
                prompt_tokens=len(row.tokens),
                new_tokens=len(decoded.tokens) + decoded.ended,
                batch_size=count,
                vision_ms=row.vision_ms,
                prefill_ms=(embed_ms + batch.prefill_ms) / count,
                decode_ms=batch.decode_ms / count,
            )
            yield self._finished(answer, decoded)

    def _answer_halves(self, rows: Sequence[_Row]) -> Iterator[Answer]:
        torch.cuda.empty_cache()
        if len(rows) == 1:
            words = f"{FailureKind.OUT_OF_MEMORY}: the question does not fit the GPU's memory, even alone"
            yield Answer(rows[0].request.number, failure=words)
            return
        middle = len(rows) // 2
        self._batch_size = max(1, middle)
        for half in (rows[:middle], rows[middle:]):
            for answer in self._answer_batch(half):
                yield replace(answer, warning="; ".join(filter(None, (answer.warning, "batch halved for memory"))))

    def _finished(self, answer: Answer, decoded: Decoded) -> Answer:
        if decoded.confidence != decoded.confidence:  # NaN
            return replace(answer, failure=f"{FailureKind.MODEL_ERROR}: the model's output is not a number")
        text = self._checkpoint.processor.tokenizer.decode(list(decoded.tokens), skip_special_tokens=True).strip()
        warning = "" if decoded.ended else f"answer cut at {self._settings.max_new_tokens} tokens"
        return replace(answer, text=text, confidence=decoded.confidence, warning=warning)

    def _embed(self, row: _Row) -> Tensor:
        """Embed a prompt, (length, width), its image tokens replaced by the latents of its pages."""
        model = self.model
        with torch.inference_mode():
            tokens = torch.tensor(row.tokens, device=model.device)
            embeds: Tensor = model.get_input_embeddings()(tokens)
            latents = torch.cat([self._pages[page] for page in row.request.page_ids]).to(embeds.dtype)
            embeds[tokens == model.config.image_token_id] = latents
        return embeds

    def _auto_batch_size(self) -> int:
        model = self.model
        text = model.config.text_config
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        width = torch.finfo(model.dtype).bits // 8
        keys_values = 2 * text.num_hidden_layers * text.num_key_value_heads * head * width
        activations = width * (4 * text.hidden_size + 3 * text.intermediate_size)
        tokens_a_row = 5 * (self._checkpoint.processor.image_seq_len + 1) + 128 + self._settings.max_new_tokens
        free = torch.cuda.mem_get_info()[0] if model.device.type == "cuda" else None
        return schedule.auto_batch_size(free, keys_values + activations, tokens_a_row)
