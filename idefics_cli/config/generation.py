"""How answers are generated."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass
from typing import Annotated

from idefics_cli.config.option import Option, Panel, check_above_zero, check_text, positive_or_auto
from idefics_cli.errors import UsageError

MOST_CHOICES = 200
"""Of --choices: each takes a few decoding steps of every question."""


def parse_choices(value: str) -> tuple[str, ...]:
    """Read `A,B,C`; a choice that holds a comma stands in double quotes, as in CSV.

    Raises:
        UsageError: it does not read as choices.

    """
    try:
        (row,) = csv.reader([value], skipinitialspace=True, strict=True)
    except (csv.Error, ValueError) as error:
        raise UsageError(f"--choices takes answers on one line, as in A,B,C: {error}") from error
    return tuple(choice.strip() for choice in row)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSettings:
    """How answers are generated; None leaves a setting to the checkpoint."""

    max_new_tokens: Annotated[
        int | None,
        Option(
            "Longest answer, in tokens.",
            Panel.GENERATION,
            metavar="auto|N",
            default="auto: 64, chatty checkpoints 512",
            parse=positive_or_auto,
        ),
    ] = None
    min_new_tokens: Annotated[
        int | None, Option("Shortest answer, in tokens.", Panel.GENERATION, metavar="N", default="the checkpoint's")
    ] = None
    temperature: Annotated[
        float | None,
        Option(
            "Sample answers from probabilities at this temperature; 0 takes the most probable token.",
            Panel.GENERATION,
            metavar="T",
            default="0",
        ),
    ] = None
    top_p: Annotated[
        float | None,
        Option(
            "With --temperature: sample from the fewest tokens that have this probability together.",
            Panel.GENERATION,
            metavar="P",
            default="1",
        ),
    ] = None
    seed: Annotated[
        int | None,
        Option("With --temperature: another number, other answers.", Panel.GENERATION, metavar="N", default="0"),
    ] = None
    repetition_penalty: Annotated[
        float | None,
        Option(
            "Make tokens that the prompt or the answer holds less probable (above 1).",
            Panel.GENERATION,
            metavar="X",
            default="the checkpoint's",
        ),
    ] = None
    num_beams: Annotated[
        int | None,
        Option("Beam search, by transformers; 1 is none.", Panel.GENERATION, metavar="N", default="the checkpoint's"),
    ] = None
    stop: Annotated[
        tuple[str, ...],
        Option("End the answer before this text. May be repeated.", Panel.GENERATION, metavar="TEXT"),
    ] = ()
    choices: Annotated[
        tuple[str, ...] | None,
        Option(
            "The answer is one of these: the most probable one.",
            Panel.GENERATION,
            metavar="A,B,C",
            default="any answer",
            parse=parse_choices,
        ),
    ] = None

    @property
    def is_sampling(self) -> bool:
        """Whether tokens are drawn at random."""
        return bool(self.temperature)

    def __post_init__(self) -> None:
        check_above_zero("--max-new-tokens", self.max_new_tokens)
        self._check_ranges()
        if not self.is_sampling:
            for flag, given in (("--top-p", self.top_p), ("--seed", self.seed)):
                if given is not None:
                    raise UsageError(f"{flag} is for sampling: give --temperature above 0 too, or leave {flag} out")
        elif (self.num_beams or 1) > 1:
            raise UsageError("--temperature and --num-beams exclude each other: sample, or search with beams")
        if self.max_new_tokens is not None and (self.min_new_tokens or 0) > self.max_new_tokens:
            raise UsageError(
                f"--min-new-tokens {self.min_new_tokens} is more than --max-new-tokens {self.max_new_tokens}"
            )
        if self.choices is not None:
            self._check_choices(self.choices)

    def _check_ranges(self) -> None:
        for flag, value, least, most in (
            ("--min-new-tokens", self.min_new_tokens, 0, 10**9),
            ("--top-p", self.top_p, 1e-6, 1.0),
            ("--seed", self.seed, 0, 2**63 - 1),
            ("--repetition-penalty", self.repetition_penalty, 0.01, 100.0),
            ("--num-beams", self.num_beams, 1, 1000),
        ):
            if value is not None and not least <= value <= most:
                raise UsageError(f"{flag} takes a number from {least} to {most}: not {value}")
        if self.temperature and not 0.01 <= self.temperature <= 100:  # below, logits outgrow float32
            raise UsageError(f"--temperature takes 0 (greedy) or a number from 0.01 to 100: not {self.temperature}")
        if not all(self.stop):
            raise UsageError("--stop takes a text of one character or more")
        for flag, texts in (("--stop", self.stop), ("--choices", self.choices or ())):
            for text in texts:
                check_text(flag, text)

    def _check_choices(self, choices: tuple[str, ...]) -> None:
        if len(choices) < 2 or not all(map(str.strip, choices)):
            raise UsageError("--choices takes two answers or more, as in --choices Yes,No")
        texts = [choice.strip() for choice in choices]
        if len(choices) > MOST_CHOICES:
            raise UsageError(f"--choices takes {MOST_CHOICES} answers at most, not {len(choices):,}: each is scored")
        if twice := next((one for one, count in Counter(texts).items() if count > 1), None):
            raise UsageError(f"--choices holds {twice!r} twice")
        for flag, given in (
            ("--max-new-tokens", self.max_new_tokens),
            ("--min-new-tokens", self.min_new_tokens),
            ("--temperature", self.temperature),
            ("--repetition-penalty", self.repetition_penalty),
            ("--num-beams", self.num_beams),
            ("--stop", self.stop or None),
        ):
            if given is not None:
                raise UsageError(f"--choices takes the most probable of the answers that it names: leave {flag} out")
