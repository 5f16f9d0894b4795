"""A stand-in for the engine: answers at once, from the request alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from idefics_cli.config import ImageGeometry
from idefics_cli.records import Answer, Request


class FakeEngine:
    """Answers `<question> @<mean grey of the page>`, brighter pages with more confidence; keeps what it was asked."""

    def __init__(self, *, window: int = 4, geometry: ImageGeometry | None = None) -> None:
        self.asked: list[Request] = []
        self.calls: list[int] = []
        self._window = window
        self._geometry = geometry or ImageGeometry(490, 196)

    @property
    def name(self) -> str:
        return "fake"

    @property
    def identity(self) -> str:
        return "fake 1"

    @property
    def geometry(self) -> ImageGeometry:
        return self._geometry

    @property
    def window(self) -> int:
        return self._window

    def answer(self, requests: Iterable[Request]) -> Iterator[Answer]:
        answers = []
        for request in requests:
            self.asked.append(request)
            greys = [round(float(page.crops[-1].mean())) for page in request.pages]
            if "fail" in request.question:
                answers.append(Answer(request.number, failure="model-error: asked to fail"))
                continue
            answers.append(
                Answer(
                    request.number,
                    f"{request.question} @{'+'.join(map(str, greys))}",
                    confidence=greys[0] / 255,
                    prompt_tokens=10,
                    new_tokens=2,
                    batch_size=1,
                    vision_ms=1.0,
                    prefill_ms=2.0,
                    decode_ms=3.0,
                )
            )
        self.calls.append(len(answers))
        yield from reversed(answers)  # the order of answers is nobody's promise
