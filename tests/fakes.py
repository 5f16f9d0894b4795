"""A stand-in for the engine: answers from the request alone, in a thread as engines do."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from idefics_cli.engine.base import EngineInfo
from idefics_cli.engine.families.idefics2 import Idefics2ImageProcessor
from idefics_cli.errors import Failure, FailureKind
from idefics_cli.records import Answer, Request, Turn


class FakeEngine:
    """Answers `<question> @<mean grey of the page>`, brighter pages with more confidence; keeps what it was asked."""

    def __init__(self, *, capacity: int = 4, image_processor: Idefics2ImageProcessor | None = None) -> None:
        self.info = EngineInfo(
            "fake", {"--model": "fake 1"}, capacity, image_processor or Idefics2ImageProcessor(490, 196)
        )
        self.asked: list[tuple[str, tuple[str, ...]]] = []
        """Question and page ids of each request; its pixels are let go."""
        self.conversations: list[tuple[Turn, ...]] = []
        self.starts = 0
        self.steps = 0
        self._threads = ThreadPoolExecutor(2)

    def start(self) -> None:
        self.starts += 1

    def submit(self, request: Request) -> Future[Answer]:
        self.asked.append((request.question, request.page_ids))
        self.conversations.append(request.conversation)
        answer = self._threads.submit(self.answer, request)
        answer.add_done_callback(self._step)
        return answer

    def _step(self, answer: Future[Answer]) -> None:
        self.steps += 1

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)

    def answer(self, request: Request) -> Answer:
        """Answer a request; what a test wants otherwise, it overrides."""
        if "fail" in request.question:
            return Answer(failure=Failure(FailureKind.MODEL_ERROR, "asked to fail"))
        greys = [round(float(page.crops[-1].mean())) for page in request.pages]
        return Answer(
            f"{request.question} @{'+'.join(map(str, greys))}",
            confidence=greys[0] / 255,
            mean_logprob=greys[0] / 255 - 1,
            prompt_tokens=10,
            new_tokens=2,
            batch_size=1,
            vision_ms=1.0,
            prefill_ms=2.0,
            decode_ms=3.0,
        )
