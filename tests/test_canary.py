from __future__ import annotations

from collections.abc import Iterable, Iterator

from idefics_cli.canary import sing
from idefics_cli.config import ModelSettings
from idefics_cli.engine.idefics2 import Idefics2Engine
from idefics_cli.records import Answer, Request
from tests.fakes import FakeEngine


def test_the_canary_is_well_with_the_tiny_model(tiny_settings: ModelSettings) -> None:
    findings = list(sing(Idefics2Engine(tiny_settings)))
    assert len(findings) == 2
    assert all(finding.is_fine for finding in findings)
    assert "2024-03-05" in findings[0].words


class Blind(FakeEngine):
    """Answers from the question alone, as versions that lost the image did."""

    def answer(self, requests: Iterable[Request]) -> Iterator[Answer]:
        return (Answer(request.number, request.question) for request in requests)


class MixedUp(FakeEngine):
    """Answers of a batch run into one another."""

    def answer(self, requests: Iterable[Request]) -> Iterator[Answer]:
        some = list(requests)
        return (Answer(r.number, f"{r.pages[0].crops[-1].mean()} {len(some)}") for r in some)


class Failing(FakeEngine):
    def answer(self, requests: Iterable[Request]) -> Iterator[Answer]:
        return (Answer(request.number, failure="model-error: no") for request in requests)


def test_a_model_that_is_not_well_is_found_out() -> None:
    assert [finding.is_fine for finding in sing(Blind())] == [False, True]
    assert [finding.is_fine for finding in sing(MixedUp())] == [True, False]
    assert [finding.is_fine for finding in sing(Failing())] == [False]
