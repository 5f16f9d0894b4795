"""The engine over transformers' own `generate`: the reference, and what runs what the native engine does not."""

from __future__ import annotations

import functools
import math
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from idefics_cli.config import ModelSettings
from idefics_cli.engine.attention import implementation
from idefics_cli.engine.base import EngineInfo
from idefics_cli.engine.checkpoint import Checkpoint
from idefics_cli.engine.device import DeviceChoice
from idefics_cli.engine.families.generation import check_length, random_key
from idefics_cli.engine.families.idefics2 import Idefics2Family
from idefics_cli.engine.native.engine import not_a_number
from idefics_cli.engine.native.models.idefics2 import normalize
from idefics_cli.engine.native.torch_device import torch_device, use_device
from idefics_cli.engine.transformers_generate import best_choice, generate_arguments, stops_at
from idefics_cli.engine.transformers_loading import load_checkpoint, load_random
from idefics_cli.errors import Failure, FailureKind, ModelError, RowFailedError, first_line
from idefics_cli.records import Answer, Crop, Request


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


class TransformersModel:
    """A checkpoint loaded by transformers, and batches of requests through `generate`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        family: Idefics2Family,
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
        self.is_on_host = False
        """Whether pixels are normalized and padded on the host, as transformers' processor does."""
        self.device = torch_device(choice, settings.gpu_memory)
        self._prompts = family.prompt_builder(settings.prompt)
        self._rules = family.generation(settings)
        self._dtype = choice.dtype
        dtype = getattr(torch, choice.dtype)
        load = load_random if random_weights else load_checkpoint
        self.model = load(checkpoint, self.device, dtype, implementation(settings))

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request]) -> list[Generated]:
        """Answer requests that go through `generate` together; one by one where tokens are drawn, or among choices.

        Raises:
            RowFailedError: a question can't be asked.

        """
        if self._rules.choices:
            return [self._choose(request) for request in requests]
        if not self._rules.temperature:
            return self._generate(requests)
        found = []
        for request in requests:
            # transformers draws from torch's generator: another stream than the native engine's.
            with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                torch.manual_seed(random_key(self._rules.seed, request.question, request.page_ids))
                found += self._generate([request])
        return found

    def _inputs(self, requests: Sequence[Request]) -> dict[str, Tensor]:
        """Return the model's arguments for requests, padded on the left.

        Raises:
            RowFailedError: a question can't be asked, or its prompt leaves no room for an answer.

        """
        prompts = [self._prompts.build(r.question, [len(page.crops) for page in r.pages]).tokens for r in requests]
        for prompt in prompts:
            check_length(len(prompt), self._rules, self._family.config.text.max_positions)
        longest = max(map(len, prompts))
        tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
        attention = torch.zeros_like(tokens)
        for row, prompt in enumerate(prompts):
            tokens[row, longest - len(prompt) :], attention[row, longest - len(prompt) :] = torch.tensor(prompt), 1
        pixels, mask = self.pixels([[crop for page in request.pages for crop in page.crops] for request in requests])
        return {
            "input_ids": tokens.to(self.device),
            "attention_mask": attention.to(self.device),
            "pixel_values": pixels.to(self.device, self.model.dtype),
            "pixel_attention_mask": mask.to(self.device),
        }

    def _choose(self, request: Request) -> Generated:
        inputs = self._inputs([request])
        text, tokens, logprob = best_choice(self.model, inputs, self._rules)
        return Generated(
            tokens, is_complete=True, logprob=logprob, prompt_tokens=inputs["input_ids"].shape[1], text=text
        )

    def _generate(self, requests: Sequence[Request]) -> list[Generated]:
        inputs, rules = self._inputs(requests), self._rules
        longest = inputs["input_ids"].shape[1]
        has_stop = functools.partial(self._prompts.has_stop, stop=rules.stop)
        generated = self.model.generate(
            **inputs,
            **generate_arguments(rules, ignore_eos=self._settings.ignore_eos),
            stopping_criteria=stops_at(has_stop, longest) if rules.stop else None,
            return_dict_in_generate=True,
            output_scores=True,
        )
        logprobs = self.model.compute_transition_scores(
            generated.sequences, generated.scores, generated.get("beam_indices"), normalize_logits=True
        ).tolist()
        rows = generated.sequences[:, longest:].tolist()
        prompts = inputs["attention_mask"].sum(1).tolist()
        outputs = []
        for prompt, row, scores in zip(prompts, rows, logprobs, strict=True):
            lengths = range(1, len(row) + 1)
            end = next((n for n in lengths if row[n - 1] in rules.eos_token_ids or has_stop(row[:n])), None)
            length = end or len(row)
            text = self._prompts.decode(row[:length], rules.stop)
            outputs.append(Generated(tuple(row[:length]), end is not None, sum(scores[:length]), prompt, text))
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
        for output in outputs:
            failure = not_a_number(self._dtype) if math.isnan(output.logprob) else None
            answers.append(
                Answer(
                    "" if failure else output.text,
                    confidence=math.exp(min(0.0, output.logprob)),
                    mean_logprob=output.logprob / len(output.tokens),
                    prompt_tokens=output.prompt_tokens,
                    new_tokens=len(output.tokens),
                    batch_size=1 if self._rules.choices or self._rules.temperature else len(requests),
                    decode_ms=spent,
                    warning="" if output.is_complete else f"answer cut at {self._rules.max_new_tokens} tokens",
                    failure=failure,
                )
            )
        return answers

    def pixels(self, crops: Sequence[Sequence[Crop]]) -> tuple[Tensor, Tensor]:
        """Pad crops to the largest: (requests, most crops, 3, height, width), and the mask of real pixels."""
        device = torch.device("cpu") if self.is_on_host else self.device
        dtype = torch.float32 if self.is_on_host else self.model.dtype
        every = [crop for some in crops for crop in some]
        shape = (len(crops), max(map(len, crops)), 3, *(max(crop.shape[axis] for crop in every) for axis in (0, 1)))
        pixels = torch.zeros(shape, device=device, dtype=dtype)
        mask = torch.zeros((*shape[:2], *shape[3:]), device=device, dtype=torch.long)
        for row, some in enumerate(crops):
            for index, crop in enumerate(some):
                height, width = crop.shape[:2]
                one = torch.from_numpy(np.array(crop))[None].to(device)
                pixels[row, index, :, :height, :width] = normalize(one, self._family.normalization, dtype)[0]
                mask[row, index, :height, :width] = 1
        return pixels, mask


class TransformersEngine:
    """Answers requests in batches of `--batch-size`, one at a time where it is auto: batches change answers there."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        family: Idefics2Family,
        settings: ModelSettings,
        choice: DeviceChoice,
        info: EngineInfo,
        *,
        model: TransformersModel | None = None,
    ) -> None:
        """Load the weights and start the thread that answers.

        Raises:
            ModelError: see `TransformersModel`.

        """
        self.info = info
        self._model = model or TransformersModel(checkpoint, family, settings, choice)
        self._batch_size = settings.batch_size or 1
        self._submitted: queue.SimpleQueue[tuple[Request, Future[Answer]] | None] = queue.SimpleQueue()
        self._error: ModelError | None = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def start(self) -> None:
        """See `Engine`: it is loaded already."""

    def submit(self, request: Request) -> Future[Answer]:
        """See `Engine`."""
        future: Future[Answer] = Future()
        with self._lock:
            if self._error is not None:
                raise self._error
            self._submitted.put((request, future))
        return future

    def close(self) -> None:
        """See `Engine`; ends after the batch that is being answered."""
        with self._lock:
            if self._error is None:
                self._error = ModelError("the engine has been closed")
            self._submitted.put(None)
        self._thread.join()

    def _run(self) -> None:
        use_device(self._model.device)
        while (submission := self._submitted.get()) is not None:
            batch = [submission]
            while len(batch) < self._batch_size and not self._submitted.empty():
                following = self._submitted.get()
                if following is None:
                    self._submitted.put(None)
                    break
                batch.append(following)
            if self._error is None:
                self._answer([one for one in batch if one[1].set_running_or_notify_cancel()])
                continue
            for _, future in batch:
                if future.set_running_or_notify_cancel():
                    future.set_exception(self._error)

    def _answer(self, batch: Sequence[tuple[Request, Future[Answer]]]) -> None:
        """Answer a batch; what fails in it is asked again by itself, so that the others do not suffer."""
        if not batch:
            return
        requests = [request for request, _ in batch]
        try:
            for (_, future), answer in zip(batch, self._model.answer(requests), strict=True):
                future.set_result(answer)
            return
        except RowFailedError as error:
            failure = error.failure
        except torch.OutOfMemoryError:
            failure = Failure(FailureKind.OUT_OF_MEMORY, "the question and its pages do not fit the memory")
        except torch.AcceleratorError as error:
            self._error = ModelError(f"the GPU failed and can't go on: {first_line(error)}")
            for _, future in batch:
                future.set_exception(self._error)
            return
        except Exception as error:
            failure = Failure(FailureKind.MODEL_ERROR, f"{type(error).__name__}: {error}")
        if len(batch) == 1:
            batch[0][1].set_result(Answer(failure=failure))
            return
        for one in batch:
            self._answer([one])
