from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from idefics_cli.engine.families.generation import Choice, GenerationRules
from idefics_cli.engine.native.choices import step_decoder
from idefics_cli.engine.native.decode import LaunchedStep, Start
from idefics_cli.engine.native.models.decoder import Decoder, KVCache, Segment
from idefics_cli.engine.native.ops import torch_ops
from idefics_cli.engine.native.sequence import Output
from idefics_cli.engine.native.token_decoder import TokenDecoder
from tests.small_checkpoints import CPU, packed_segments, save_checkpoint, settings_of, weights_of

ROOM = 60  # slots of a sequence


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("small"))


@torch.inference_mode()
def decode(
    folder: Path,
    *,
    together: int,
    rows: int,
    ends: Collection[int] = (),
    suppressed: Collection[int] = (),
    count: int = 8,
    watched: Collection[int] = (),
    ahead: int = 0,
) -> list[Output]:
    """Decode six prompts, so many together; the next takes the index of one that has ended.

    So many steps are launched before one is read.

    What is told of those that are watched, at most of their steps, must be what their outputs begin with.
    """
    torch.manual_seed(0)
    prompts = [torch.randn(length, 32) for length in (5, 40, 17, 33, 8, 21)]
    weights, family = weights_of(settings_of(folder))
    model = Decoder(weights, family.config.text, tie_word_embeddings=False)
    cache = KVCache(family.config.text, 1 + together * ROOM, torch.float32, CPU)
    rules = GenerationRules(count, frozenset(ends), frozenset(suppressed))
    decoder = TokenDecoder(model, cache, torch_ops, max_num_seqs=together, rows=rows, rules=rules)
    waiting, running, done = list(range(6)), dict[int, int](), dict[int, Output]()
    told: list[tuple[int, tuple[int, ...], tuple[float, ...]]] = []
    launched: list[LaunchedStep] = []
    steps = 0
    while waiting or running:
        for index in [index for index in range(together) if index not in running and waiting]:
            if waiting:
                number = running[index] = waiting.pop(0)
                segment = Segment(len(prompts[number]), suffix_start=1 + index * ROOM)
                packed = packed_segments([segment])
                hidden = prompts[number].clone()
                states = model.forward(hidden, packed.positions, packed.slots, packed.metadata, cache, torch_ops)
                launched.append(decoder.start([Start(index, segment, ())], states[packed.last]))
        going_on = [index for index in running if decoder.goes_on(index)]
        if going_on:
            launched.append(decoder.step(going_on))
        while len(launched) > (ahead if going_on else 0):
            for index, output in decoder.read(launched.pop(0)).items():
                done[running.pop(index)] = output
        steps += 1
        for index in [index for index, number in running.items() if number in watched and (number + steps) % 3]:
            tokens, logprobs = decoder.tokens_so_far(index)
            longest = max((len(before) for number, before, _ in told if number == running[index]), default=0)
            assert len(tokens) >= longest if ahead else len(tokens) > longest
            told.append((running[index], tokens, logprobs))
    for number, tokens, logprobs in told:
        assert done[number].tokens[: len(tokens)] == tokens
        assert done[number].logprobs[: len(tokens)] == logprobs
    assert {number for number, _, _ in told} == set(watched)
    return [done[number] for number in range(6)]


@pytest.mark.parametrize("together", [2, 3, 6])
def test_sequences_are_decoded_alike_in_any_company(together: int, folder: Path) -> None:
    assert decode(folder, together=together, rows=4) == decode(folder, together=1, rows=4)


@pytest.mark.parametrize("ahead", [1, 2, 5])
@pytest.mark.parametrize("together", [1, 2, 6])
def test_steps_launched_ahead_change_no_answer(ahead: int, together: int, folder: Path) -> None:
    free = decode(folder, together=together, rows=4)
    ends = [free[0].tokens[3], free[2].tokens[0]]
    for some in ([], ends):
        expected = decode(folder, together=together, rows=4, ends=some)
        assert decode(folder, together=together, rows=4, ends=some, ahead=ahead, watched=[0, 4]) == expected


@pytest.mark.parametrize("watched", [range(6), [0, 3, 4]])
def test_tokens_so_far_are_told_at_any_steps(watched: Collection[int], folder: Path) -> None:
    assert decode(folder, together=3, rows=4, watched=watched) == decode(folder, together=3, rows=4)


def test_a_sequence_ends_with_its_end_token_or_at_the_limit(folder: Path) -> None:
    free = decode(folder, together=3, rows=4)
    assert {len(output.tokens) for output in free} == {8}
    assert not any(output.is_complete for output in free)
    end = free[0].tokens[3]
    for output, before in zip(decode(folder, together=3, rows=4, ends=[end]), free, strict=True):
        ends = end in before.tokens
        assert output.is_complete is ends
        assert output.tokens == (before.tokens[: before.tokens.index(end) + 1] if ends else before.tokens)


def test_suppressed_tokens_never_come(folder: Path) -> None:
    suppressed = {output.tokens[0] for output in decode(folder, together=6, rows=8)}
    found = decode(folder, together=6, rows=8, suppressed=suppressed)
    assert suppressed.isdisjoint(token for output in found for token in output.tokens)


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails at operations that wait for the device, or whose result's shape depends on what tensors hold."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "item", "is_nonzero", "equal")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        assert not any(name in str(func) for name in self.WAITING if str(func).startswith(f"aten.{name}")), func
        if str(func).startswith("aten.index"):
            indices = args[1] if isinstance(args[1], list | tuple) else []
            assert not any(one is not None and one.dtype is torch.bool for one in indices), func
        self.count += 1
        return func(*args, **(kwargs or {}))

    count = 0


EVERYTHING = GenerationRules(
    max_new_tokens=8,
    eos_token_ids=frozenset([131]),
    suppressed_tokens=frozenset([3]),
    begin_suppressed_tokens=frozenset([58]),
    bad_words=((5, 6), (7, 8, 9)),
    min_new_tokens=3,
    repetition_penalty=1.2,
    no_repeat_ngram_size=2,
    forced_eos_token_ids=frozenset([131]),
    temperature=0.8,
    top_p=0.9,
)
CHOICES = GenerationRules(5, frozenset([131]), choices=(Choice("a", ((5, 6), (6,))), Choice("b", ((5, 7, 8),))))


@pytest.mark.parametrize("rules", [GenerationRules(8), EVERYTHING, CHOICES], ids=["plain", "everything", "choices"])
@torch.inference_mode()
def test_a_step_asks_nothing_of_the_host(rules: GenerationRules, folder: Path) -> None:
    """What a CUDA graph needs, seen on a CPU; attention aside, whose torch form is never recorded."""
    ops: Any = SimpleNamespace(**vars(torch_ops) | {"paged_attention": lambda queries, *_: queries})
    settings = settings_of(folder)
    weights, family = weights_of(settings)
    model = Decoder(weights, family.config.text, tie_word_embeddings=False)
    cache = KVCache(family.config.text, 1 + 2 * ROOM, torch.float32, CPU)
    prompts = family.prompt_builder("{question}")
    decoder = step_decoder(model, cache, ops, rules, prompts, max_num_seqs=2, rows=4)
    segments = [Segment(9, suffix_start=1), Segment(9, suffix_start=1 + ROOM)]
    starts = [Start(index, segment, (1, 5, 6, 5, 7, 8, 5, 6, 7)) for index, segment in enumerate(segments)]
    decoder.start(starts, torch.randn(2, 32))
    with Watch() as watch:  # type: ignore[no-untyped-call]
        for _ in range(3):
            decoder.step([0, 1])
    assert watch.count > 100
