"""The engine: requests in, answers out, from any thread; one thread of its own runs the model."""

from __future__ import annotations

import dataclasses
import math
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import torch

from idefics_cli.engine.base import EngineInfo, EngineStats
from idefics_cli.engine.families.base import PromptBuilder
from idefics_cli.engine.families.generation import GenerationRules, random_key
from idefics_cli.engine.families.prompt_length import check_length, check_text
from idefics_cli.engine.native.core import EngineCore
from idefics_cli.engine.native.sequence import Sequence
from idefics_cli.engine.native.torch_device import use_device
from idefics_cli.errors import Failure, FailureKind, ModelError, RowFailedError, first_line
from idefics_cli.records import Answer, GeneratedTokens, Request

_SECONDS_BETWEEN_TOKENS = 0.025  # 40 times a second looks like a flow


@dataclass(frozen=True, slots=True)
class _Submission:
    """A new sequence."""

    sequence: Sequence
    future: Future[Answer]
    on_tokens: Callable[[GeneratedTokens], None] | None


@dataclass(frozen=True, slots=True)
class _Cancelled:
    """A sequence whose answer nobody waits for any more."""

    sequence: Sequence


class NativeEngine:
    """Runs a checkpoint on one device."""

    def __init__(
        self, core: EngineCore, info: EngineInfo, prompts: PromptBuilder, rules: GenerationRules, max_positions: int
    ) -> None:
        """Start the thread; see `load_native`."""
        self.info = info
        self.steps = 0
        self._core, self._prompts = core, prompts
        self._rules, self._max_positions = rules, max_positions
        self._submitted: queue.SimpleQueue[_Submission | _Cancelled | None] = queue.SimpleQueue()
        self._submissions: dict[Sequence, _Submission] = {}
        self._error: ModelError | None = None
        self._told_at = 0.0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def start(self) -> None:
        """See `Engine`: it is loaded already."""

    def submit(self, request: Request) -> Future[Answer]:
        """See `Engine`."""
        future: Future[Answer] = Future()
        try:
            rules = self._rules.for_request(request.generation)
            check_text(request.conversation, self._max_positions)
            prompt = self._prompts.build(
                request.conversation,
                [len(page.crops) for page in request.pages],
                request.shared_turns,
                [page.columns for page in request.pages],
            )
            check_length(len(prompt.tokens), rules, self._max_positions)
        except RowFailedError as error:
            future.set_result(Answer(failure=error.failure))
            return future
        sequence = Sequence(
            prompt,
            dict(zip(request.page_ids, request.pages, strict=True)),
            request.page_ids,
            request.shared_pages,
            random_key(rules.seed, request.asked, request.page_ids),
            rules if request.generation is not None else None,
            is_watched=request.on_tokens is not None,
        )
        with self._lock:
            if self._error is not None:
                raise self._error
            self._submitted.put(_Submission(sequence, future, request.on_tokens))

        def withdraw(done: Future[Answer]) -> None:
            if done.cancelled():
                self._submitted.put(_Cancelled(sequence))

        future.add_done_callback(withdraw)
        return future

    @property
    def stats(self) -> EngineStats:
        """See `LoadedEngine`."""
        stats = self._core.stats
        return dataclasses.replace(stats, waiting=stats.waiting + self._submitted.qsize())

    def close(self) -> None:
        """See `Engine`; ends after the step that is being done."""
        with self._lock:
            if self._error is None:
                self._error = ModelError("the engine has been closed")
            self._submitted.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        """Step while there is work; take what is submitted between the steps."""
        error = ModelError("the engine has been closed")
        try:
            use_device(self._core.device)
            while self._take():
                for sequence in self._core.step():
                    self._finish(sequence)
                self.steps += 1
                self._tell()
        except torch.AcceleratorError as cause:
            error = ModelError(f"the GPU failed and can't go on: {first_line(cause)}")
        except ModelError as cause:
            error = cause
        except BaseException as cause:  # nobody may wait for ever
            error = ModelError(f"the engine failed: {cause!r}")
            error.__cause__ = cause
        self._fail(error)

    def _tell(self) -> None:
        """Tell tokens so far to who waits for them: a first one at once, others from time to time."""
        now = time.monotonic()
        is_due = now - self._told_at >= _SECONDS_BETWEEN_TOKENS
        for sequence, (ids, logprobs) in self._core.watched(first_only=not is_due).items():
            submission = self._submissions.get(sequence)
            if submission is not None and submission.on_tokens is not None:
                rules = sequence.rules or self._rules
                submission.on_tokens(GeneratedTokens(ids, logprobs, self._prompts.decode, rules.stop))
        if is_due:
            self._told_at = now

    def _finish(self, sequence: Sequence) -> None:
        """Give an answer to who waits for it."""
        submission = self._submissions.pop(sequence, None)  # None: withdrawn meanwhile
        if submission is not None and submission.future.set_running_or_notify_cancel():
            submission.future.set_result(self._answer(sequence))

    def _take(self) -> bool:
        """Take submissions, waiting for one if there is nothing to do; says whether the engine goes on."""
        while True:
            try:
                submission = self._submitted.get(block=not self._core.has_work)
            except queue.Empty:
                return True
            if submission is None:
                return False
            if isinstance(submission, _Cancelled):
                if self._submissions.pop(submission.sequence, None) is not None:  # it is not answered meanwhile
                    self._core.cancel(submission.sequence)
                continue
            self._submissions[submission.sequence] = submission
            self._core.add(submission.sequence)

    def _fail(self, error: ModelError) -> None:
        """End every future, and refuse new requests; nothing is stepped any more."""
        with self._lock:
            if self._error is None:
                self._error = error
            while not self._submitted.empty():
                submission = self._submitted.get()
                if isinstance(submission, _Submission):
                    self._submissions[submission.sequence] = submission
        for future in [submission.future for submission in self._submissions.values()]:
            if not future.done() and future.set_running_or_notify_cancel():
                future.set_exception(error)

    def _answer(self, sequence: Sequence) -> Answer:
        vision, prefill, decode = sequence.costs_ms()
        if sequence.failure is not None or sequence.output is None:
            return Answer(vision_ms=vision, prefill_ms=prefill, decode_ms=decode, failure=sequence.failure)
        output, rules = sequence.output, sequence.rules or self._rules
        failure = None
        if math.isnan(output.logprob):
            failure = not_a_number(self.info.settings.get("--dtype"))
        text = output.text if output.text is not None else self._prompts.decode(output.tokens, rules.stop)
        warnings = (
            "memory was short: answered in smaller batches" if sequence.is_preempted else "",
            "" if output.is_complete else f"answer cut at {rules.max_new_tokens} tokens",
        )
        tokens = None
        if output.logprobs:
            tokens = GeneratedTokens(output.tokens, output.logprobs, self._prompts.decode, rules.stop)
        return Answer(
            "" if failure else text,
            confidence=math.exp(output.logprob),
            mean_logprob=output.logprob / len(output.tokens),
            prompt_tokens=len(sequence.prompt.tokens),
            new_tokens=len(output.tokens),
            batch_size=sequence.batch_size,
            vision_ms=vision,
            prefill_ms=prefill,
            decode_ms=decode,
            warning="; ".join(filter(None, warnings)),
            failure=failure,
            is_complete=output.is_complete,
            tokens=tokens,
        )


def not_a_number(dtype: str | None) -> Failure:
    """Return the failure of an answer whose probability is not a number; float16 may have overflowed."""
    way_out = ": float16 may have overflowed; try --dtype bfloat16 or float32" if dtype == "float16" else ""
    return Failure(FailureKind.MODEL_ERROR, f"the model's output is not a number{way_out}")
