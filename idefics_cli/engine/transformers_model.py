"""Batches of requests through transformers' own `generate`, whatever makes the model's arguments."""

from __future__ import annotations

import functools
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from idefics_cli.config import ModelSettings
from idefics_cli.engine.attention import implementation
from idefics_cli.engine.checkpoint import Checkpoint
from idefics_cli.engine.device import DeviceChoice
from idefics_cli.engine.families.answer_text import AnswerReader
from idefics_cli.engine.families.base import Family
from idefics_cli.engine.families.generation import GenerationRules, random_key
from idefics_cli.engine.native.engine import not_a_number
from idefics_cli.engine.native.torch_device import torch_device
from idefics_cli.engine.transformers_generate import best_choice, generate_arguments, stops_at, transition_logprobs
from idefics_cli.engine.transformers_loading import load_checkpoint, load_random
from idefics_cli.errors import FailureKind, RowFailedError
from idefics_cli.records import Answer, GeneratedTokens, Request


@dataclass(frozen=True, slots=True)
class Generated:
    """The new tokens of one request."""

    tokens: tuple[int, ...]
    """End token or stop string included."""
    is_complete: bool
    """Whether the answer ended by itself, not at the limit."""
    logprob: float
    """Sum of their log-probabilities, after what the generation settings do to the logits."""
    prompt_tokens: int
    text: str
    logprobs: tuple[float, ...] = ()
    """Of each token; empty for choices."""


class GenerateModel(ABC):
    """A checkpoint loaded by transformers, and batches of requests through `generate`."""

    _best_choice = staticmethod(best_choice)

    def __init__(
        self,
        checkpoint: Checkpoint,
        family: Family,
        settings: ModelSettings,
        choice: DeviceChoice,
        *,
        random_weights: bool = False,
    ) -> None:
        """Load the weights.

        Args:
            checkpoint: whose weights are read.
            family: of the checkpoint.
            settings: of the model.
            choice: device and dtype.
            random_weights: whether weights are drawn instead: for measurements.

        Raises:
            ModelError: weights missing, damaged, or too large for the device.

        """
        self._family, self._settings = family, settings
        self.device = torch_device(choice, settings.gpu_memory)
        self._answers: AnswerReader = family.prompt_builder(settings.prompt)
        self._rules = family.generation(settings)
        self._dtype = choice.dtype
        dtype = getattr(torch, choice.dtype)
        load = load_random if random_weights else load_checkpoint
        self.model = load(checkpoint, self.device, dtype, implementation(settings), settings.quantize)

    @abstractmethod
    def _inputs(self, requests: Sequence[Request]) -> dict[str, Tensor]:
        """Return the model's arguments for requests, padded on the left.

        Raises:
            RowFailedError: a question can't be asked, or its prompt leaves no room for an answer.

        """

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request]) -> list[Generated]:
        """Answer requests that go through `generate` together; one by one where tokens are drawn, or among choices.

        Raises:
            RowFailedError: a question can't be asked.

        """
        if not all(request.pages for request in requests):
            raise RowFailedError(FailureKind.BAD_QUESTION, "there is no page: transformers is asked about pages here")
        if self._rules.choices:
            return [self._choose(request) for request in requests]
        if not (self._rules.temperature or any(request.generation for request in requests)):
            return self._generate(requests, self._rules)
        found = []
        for request in requests:
            rules = self._rules.for_request(request.generation)
            # transformers draws from torch's generator: another stream than the native engine's.
            with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                torch.manual_seed(random_key(rules.seed, request.asked, request.page_ids))
                found += self._generate([request], rules)
        return found

    def _choose(self, request: Request) -> Generated:
        self._rules.for_request(request.generation)
        inputs = self._inputs([request])
        text, tokens, logprob = self._best_choice(self.model, inputs, self._rules)
        return Generated(
            tokens, is_complete=True, logprob=logprob, prompt_tokens=inputs["input_ids"].shape[1], text=text
        )

    def _generate(self, requests: Sequence[Request], rules: GenerationRules) -> list[Generated]:
        inputs = self._inputs(requests)
        longest = inputs["input_ids"].shape[1]
        has_stop = functools.partial(self._answers.has_stop, stop=rules.stop)
        generated = self.model.generate(
            **inputs,
            **generate_arguments(rules, ignore_eos=self._settings.ignore_eos),
            stopping_criteria=stops_at(has_stop, longest) if rules.stop else None,
            return_dict_in_generate=True,
            output_scores=True,
        )
        logprobs = transition_logprobs(generated, longest).tolist()
        rows = generated.sequences[:, longest:].tolist()
        prompts = inputs["attention_mask"].sum(1).tolist()
        outputs = []
        for prompt, row, scores in zip(prompts, rows, logprobs, strict=True):
            lengths = range(1, len(row) + 1)
            end = next((n for n in lengths if row[n - 1] in rules.eos_token_ids or has_stop(row[:n])), None)
            length = end or len(row)
            text = self._answers.decode(row[:length], rules.stop)
            each = tuple(scores[:length])
            outputs.append(Generated(tuple(row[:length]), end is not None, sum(each), prompt, text, each))
        return outputs

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer requests that go through `generate` together.

        Raises:
            RowFailedError: a question can't be asked.

        """
        started = time.perf_counter()
        outputs = self.generate(requests)
        spent = (time.perf_counter() - started) * 1e3 / len(requests)
        answers = []
        for request, output in zip(requests, outputs, strict=True):
            rules = self._rules.for_request(request.generation)
            failure = not_a_number(self._dtype) if math.isnan(output.logprob) else None
            answers.append(
                Answer(
                    "" if failure else output.text,
                    confidence=math.exp(min(0.0, output.logprob)),
                    mean_logprob=output.logprob / len(output.tokens),
                    prompt_tokens=output.prompt_tokens,
                    new_tokens=len(output.tokens),
                    batch_size=1 if rules.choices or rules.temperature or request.generation else len(requests),
                    decode_ms=spent,
                    warning="; ".join(
                        filter(None, (self._family.warning, self._warning(request), _cut(output, rules)))
                    ),
                    failure=failure,
                    is_complete=output.is_complete,
                    tokens=GeneratedTokens(output.tokens, output.logprobs, self._answers.decode, rules.stop)
                    if output.logprobs
                    else None,
                )
            )
        return answers

    def _warning(self, request: Request) -> str:  # noqa: ARG002 - for kinds of models that have one
        """Return what the answer to a request should be read with; empty for nothing."""
        return ""


def _cut(output: Generated, rules: GenerationRules) -> str:
    return "" if output.is_complete else f"answer cut at {rules.max_new_tokens} tokens"
