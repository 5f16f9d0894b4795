"""The engine over transformers' own `generate`: the reference, and what runs what the native engine does not."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future

import torch

from idefics_cli.config import ModelSettings
from idefics_cli.engine.base import EngineInfo, EngineStats
from idefics_cli.engine.checkpoint import Checkpoint
from idefics_cli.engine.device import DeviceChoice
from idefics_cli.engine.families.base import Family
from idefics_cli.engine.native.torch_device import use_device
from idefics_cli.engine.transformers_inputs import TransformersModel as TransformersModel
from idefics_cli.engine.transformers_inputs import load_model
from idefics_cli.engine.transformers_model import GenerateModel
from idefics_cli.errors import Failure, FailureKind, ModelError, RowFailedError, first_line
from idefics_cli.records import Answer, Request


class TransformersEngine:
    """Answers requests in batches of `--batch-size`, one at a time where it is auto: batches change answers there."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        family: Family,
        settings: ModelSettings,
        choice: DeviceChoice,
        info: EngineInfo,
        *,
        model: GenerateModel | None = None,
    ) -> None:
        """Load the weights and start the thread that answers.

        Raises:
            ModelError: see `GenerateModel`.

        """
        self.info = info
        self.steps = 0
        self._model = model or load_model(checkpoint, family, settings, choice)
        self._batch_size = settings.batch_size or 1
        self._submitted: queue.SimpleQueue[tuple[Request, Future[Answer]] | None] = queue.SimpleQueue()
        self._error: ModelError | None = None
        self._running = 0
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

    @property
    def stats(self) -> EngineStats:
        """See `LoadedEngine`."""
        return EngineStats(self._running, self._submitted.qsize())

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
                wanted = [one for one in batch if one[1].set_running_or_notify_cancel()]
                self._running = len(wanted)
                self._answer(wanted)
                self._running = 0
                self.steps += 1
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
