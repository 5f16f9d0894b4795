"""The engine: words in, words out; `runner` does the work between."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from idefics_cli.config import ImageGeometry, ModelSettings, Quantize
from idefics_cli.engine import schedule
from idefics_cli.engine.checkpoint import Checkpoint, load_model, open_checkpoint
from idefics_cli.engine.clock import spent
from idefics_cli.engine.prompt import PromptBuilder
from idefics_cli.engine.runner import Prompt, Runner, RunnerSettings
from idefics_cli.errors import FailureKind, ModelError, RowFailedError
from idefics_cli.records import Answer, Request


class Idefics2Engine:
    """Runs an Idefics2 checkpoint; the weights are loaded with the first question."""

    def __init__(self, settings: ModelSettings, checkpoint: Checkpoint | None = None, model: Any = None) -> None:
        """Take a checkpoint and a model that are open already, or open and load those that the settings name."""
        self._settings = settings
        self._checkpoint = checkpoint or open_checkpoint(settings)
        self._prompts = PromptBuilder(self._checkpoint.processor, settings.prompt)
        self._model = model
        self._runner: Runner | None = None

    @property
    def name(self) -> str:
        """The checkpoint as it was asked for."""
        return self._settings.model

    @property
    def identity(self) -> str:
        """Checkpoint, revision and number format."""
        revision = self._settings.revision or getattr(self._checkpoint.config, "_commit_hash", None) or ""
        quantize = "" if self._settings.quantize is Quantize.NONE else f" {self._settings.quantize}"
        return f"{self._settings.model}@{revision} {self._checkpoint.dtype}{quantize}"

    @property
    def geometry(self) -> ImageGeometry:
        """The image sizes that the checkpoint takes."""
        return self._checkpoint.geometry

    @property
    def window(self) -> int:
        """Enough that the device seldom waits, and little enough that a window of pages fits the host's memory."""
        if self._checkpoint.device.type == "cuda":
            return 2 * (self._settings.batch_size or schedule.GPU_ROWS)
        return 4 * (self._settings.batch_size or schedule.CPU_ROWS)

    @property
    def batch_size(self) -> int:
        """How many questions are decoded together."""
        return self.runner.plan.rows

    @property
    def runner(self) -> Runner:
        """The model on its device, loaded at first use."""
        if self._runner is None:
            self._runner = self._loaded()
        return self._runner

    def answer(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """Answer requests, a window at a time; see `Engine.answer`."""
        stream = iter(requests)
        while window := list(itertools.islice(stream, self.window)):
            try:
                yield from self._answer_window(window)
            except torch.AcceleratorError as error:
                raise ModelError(f"the GPU failed and can't go on: {str(error).splitlines()[0]}") from error

    def _answer_window(self, window: Sequence[Request]) -> Iterator[Answer]:
        pages = {number: page for r in window for number, page in zip(r.page_ids, r.pages, strict=True)}
        encoded = self.runner.encode(pages, len(window))  # the device works while prompts are put together
        prompts = []
        # Numbers are the caller's and may repeat: a prompt carries its place in the window.
        for place, request in enumerate(window):
            try:
                tokens = self._prompts.tokens(request.question, [len(page.crops) for page in request.pages])
            except RowFailedError as failure:
                yield Answer(request.number, failure=str(failure))
                continue
            prompts.append(Prompt(place, tokens, request.page_ids, self._prompts.prefix_length(tokens)))
        for prompt in self.runner.run(prompts, encoded):
            yield self._answer(window[prompt.number].number, prompt)

    def _answer(self, number: int, prompt: Prompt) -> Answer:
        if prompt.failure is not None:
            return Answer(number, failure=str(prompt.failure))
        decoded = prompt.decoded
        assert decoded is not None
        if decoded.confidence != decoded.confidence:  # NaN
            return Answer(number, failure=f"{FailureKind.MODEL_ERROR}: the model's output is not a number")
        warnings = (
            "batch halved for memory" if prompt.is_halved else "",
            "" if decoded.ended else f"answer cut at {self._settings.max_new_tokens} tokens",
        )
        return Answer(
            number,
            self._checkpoint.processor.tokenizer.decode(list(decoded.tokens), skip_special_tokens=True).strip(),
            confidence=decoded.confidence,
            prompt_tokens=len(prompt.tokens),
            new_tokens=len(decoded.tokens) + decoded.ended,
            batch_size=prompt.batch_size,
            vision_ms=spent(prompt.vision),
            prefill_ms=spent(prompt.prefill),
            decode_ms=spent(prompt.decode),
            warning="; ".join(filter(None, warnings)),
        )

    def _loaded(self) -> Runner:
        settings, checkpoint = self._settings, self._checkpoint
        model = self._model if self._model is not None else load_model(checkpoint)
        generation = model.generation_config
        ends = generation.eos_token_id
        ends = [ends] if isinstance(ends, int) else list(ends or ())
        return Runner(
            model,
            checkpoint.normalization,
            checkpoint.device,
            RunnerSettings(
                rows=settings.batch_size,
                max_new_tokens=settings.max_new_tokens,
                ends=() if settings.fixed_length else tuple(ends),
                banned=tuple(ids[0] for ids in generation.bad_words_ids or () if len(ids) == 1),
                kernels=settings.kernels,
                fp8=settings.quantize is Quantize.FP8,
                gpu_memory=settings.gpu_memory,
            ),
        )
