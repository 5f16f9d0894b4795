from __future__ import annotations

from idefics_cli.diagnostics.canary import run_canary
from idefics_cli.errors import Failure, FailureKind
from idefics_cli.records import Answer, Request
from tests.fakes import FakeEngine


class Seeing(FakeEngine):
    """Answers from the page alone."""

    def answer(self, request: Request) -> Answer:
        return Answer(f"{request.pages[0].crops[-1].mean()}", confidence=0.5)


def test_a_model_that_sees_its_images_passes() -> None:
    """The tiny model does, too: `doctor` of README is run by test_readme.py."""
    checks = list(run_canary(Seeing()))
    assert [check.passed for check in checks] == [True, True]
    assert "in a batch of 6: " in checks[1].words


class Blind(FakeEngine):
    """Answers from the question alone, as versions that lost the image did."""

    def answer(self, request: Request) -> Answer:
        return Answer(request.question)


class MixedUp(FakeEngine):
    """Answers change with what was asked before."""

    def answer(self, request: Request) -> Answer:
        return Answer(f"{request.pages[0].crops[-1].mean()} {len(self.asked)}")


class Uncertain(FakeEngine):
    """The answer of a batch is the same, its confidence is not."""

    def answer(self, request: Request) -> Answer:
        return Answer(f"{request.pages[0].crops[-1].mean()}", confidence=1 / len(self.asked))


class Failing(FakeEngine):
    def answer(self, request: Request) -> Answer:
        return Answer(failure=Failure(FailureKind.MODEL_ERROR, "no"))


def test_models_that_do_not_see_their_images_or_mix_them_up_are_found_out() -> None:
    assert [check.passed for check in run_canary(Blind())] == [False, True]
    assert [check.passed for check in run_canary(MixedUp())] == [True, False]
    assert [check.passed for check in run_canary(Uncertain())] == [True, False]
    assert [check.passed for check in run_canary(Failing())] == [False]
