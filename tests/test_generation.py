"""Generation settings: what the user asks for is what transformers' `generate` does, whatever is answered together."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from idefics_cli.config import ModelSettings, Quantize
from idefics_cli.engine import open_engine
from idefics_cli.errors import FailureKind, ModelError, UsageError
from idefics_cli.records import Answer, Request
from tests.small_checkpoints import (
    expected,
    model_inputs,
    noise_page,
    opened,
    save_checkpoint,
    settings_of,
    small_requests,
)

ENDS = [131, 103, 121]
BACKENDS = ["native", "transformers"]


def folder_of(kind: str, folder: Path) -> Path:
    """A checkpoint that the native engine runs, or one that transformers does."""
    return save_checkpoint(
        folder, generation={"eos_token_id": ENDS}, text={"hidden_act": "gelu" if kind == "transformers" else "silu"}
    )


@pytest.fixture(scope="module", params=BACKENDS)
def either(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of("native", tmp_path_factory.mktemp("small"))


def answers(settings: ModelSettings, requests: Sequence[Request]) -> list[Answer]:
    engine = open_engine(settings)
    try:
        found = [future.result() for future in [engine.submit(request) for request in requests]]
    finally:
        engine.close()
    assert not any(answer.failure for answer in found)
    return found


def texts(found: Sequence[Answer]) -> list[tuple[str, int]]:
    return [(answer.text, answer.new_tokens) for answer in found]


def many(count: int = 32) -> list[Request]:
    return [small_requests()[number % 6] for number in range(count)]


GREEDY: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"repetition_penalty": 1.7}, {"repetition_penalty": 1.7}),
    ({"repetition_penalty": 0.6}, {"repetition_penalty": 0.6}),
    ({"min_new_tokens": 9}, {"min_new_tokens": 9}),
    ({"repetition_penalty": 1.3, "min_new_tokens": 10}, {"repetition_penalty": 1.3, "min_new_tokens": 10}),
    ({"max_new_tokens": 1, "min_new_tokens": 1}, {"max_new_tokens": 1, "min_new_tokens": 1}),
]


@pytest.mark.parametrize(("given", "arguments"), GREEDY, ids=[",".join(given) for given, _ in GREEDY])
@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_greedy_settings_are_those_of_generate_at_any_batch_size(
    batch_size: int, given: dict[str, Any], arguments: dict[str, Any], small: Path
) -> None:
    found = answers(settings_of(small, batch_size=batch_size, **given), many())
    wanted = expected(small, **arguments)
    assert texts(found) == [wanted[number % 6] for number in range(32)]
    assert wanted != expected(small)  # they do ask for something


BACKEND: list[dict[str, Any]] = [{"repetition_penalty": 1.7}, {"min_new_tokens": 9}, {"num_beams": 3}]


@pytest.mark.parametrize("given", BACKEND, ids=str)
def test_the_backend_takes_the_same_settings(given: dict[str, Any], tmp_path: Path) -> None:
    folder = folder_of("transformers", tmp_path / "m")
    assert texts(answers(settings_of(folder, **given), small_requests())) == expected(folder, **given)


def test_beams_go_to_transformers_and_the_settings_say_so(small: Path) -> None:
    settings = settings_of(small, num_beams=3)
    engine = open_engine(settings)
    assert engine.info.settings["engine"].startswith("transformers ")
    assert engine.info.settings["--num-beams"] == "3"
    assert texts(answers(settings, small_requests())) == expected(small, num_beams=3)
    with pytest.raises(ModelError, match=r"--quantize fp8 .* num_beams 3"):
        open_engine(settings_of(small, num_beams=3, quantize=Quantize.FP8))


CHECKPOINTS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.7},
    {"no_repeat_ngram_size": 2},
    {"eos_token_id": ENDS, "min_new_tokens": 5},
    {"begin_suppress_tokens": [58, 122, 128]},
    {"bad_words_ids": [[58, 51], [94, 82], [103], [51, 58, 122]]},
    {"eos_token_id": ENDS, "repetition_penalty": 1.4, "no_repeat_ngram_size": 3, "begin_suppress_tokens": [58]},
]


@pytest.mark.parametrize("generation", CHECKPOINTS, ids=[",".join(one) for one in CHECKPOINTS])
def test_what_a_checkpoint_asks_for_is_done_natively_at_any_batch_size(
    generation: dict[str, Any], tmp_path: Path
) -> None:
    folder = save_checkpoint(tmp_path / "m", generation=generation)
    wanted = expected(folder)
    for batch_size in (1, 7, 32):
        settings = settings_of(folder, batch_size=batch_size)
        assert open_engine(settings).info.settings["engine"] == "native"
        assert texts(answers(settings, many())) == [wanted[number % 6] for number in range(32)]


def test_the_user_comes_before_the_checkpoint(tmp_path: Path) -> None:
    asked = {"eos_token_id": ENDS, "repetition_penalty": 1.7, "min_new_tokens": 9, "num_beams": 2}
    folder = save_checkpoint(tmp_path / "m", generation=asked)
    plain: dict[str, Any] = {"repetition_penalty": 1.0, "min_new_tokens": 0, "num_beams": 1}
    settings = settings_of(folder, **plain)
    assert open_engine(settings).info.settings["engine"] == "native"
    assert texts(answers(settings, small_requests())) == expected(folder, **plain)


# --- stop strings ---


@pytest.fixture(scope="module", params=BACKENDS)
def stoppable(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without special tokens in its answers, which transformers takes for text here."""
    generation = {"eos_token_id": ENDS, "suppress_tokens": [0, 1, 2, 3, 129, 130]}
    act = "gelu" if request.param == "transformers" else "silu"
    return save_checkpoint(tmp_path_factory.mktemp("stop"), generation=generation, text={"hidden_act": act})


def stops(folder: Path) -> list[str]:
    """Texts that come within some of the answers: of one token and of two."""
    found = [text for text, _ in expected(folder, eos_token_id=131)]
    one = next(match[0] for text in found if (match := re.search("[!-~]", text[3:])))
    two = next(match[0] for text in found[::-1] if (match := re.search("[!-~]{2}", text[4:])) and one not in match[0])
    return [one, two]


def test_stop_strings_end_an_answer_where_generate_ends_it(stoppable: Path) -> None:
    given = stops(stoppable)
    wanted = expected(stoppable, stop_strings=given)
    assert wanted != expected(stoppable)
    for batch_size in (1, 7):
        found = answers(settings_of(stoppable, stop=tuple(given), batch_size=batch_size), small_requests())
        assert [answer.new_tokens for answer in found] == [count for _, count in wanted]
        for answer, (text, count) in zip(found, wanted, strict=True):
            cut = min((text.find(stop) for stop in given if stop in text), default=len(text))
            assert answer.text == text[:cut].strip()
            assert bool(answer.warning) is (count == 12 and cut == len(text))
    ended = [answer for answer in found if not answer.warning]
    assert ended
    assert any(answer.warning for answer in answers(settings_of(stoppable), small_requests()))


def test_stop_strings_of_a_checkpoint_are_done_natively(tmp_path: Path) -> None:
    plain = {"suppress_tokens": [0, 1, 2, 3, 129, 130]}
    folder = save_checkpoint(tmp_path / "m", generation=plain)
    given = stops(folder)
    asking = save_checkpoint(tmp_path / "n", generation=plain | {"stop_strings": given})
    assert open_engine(settings_of(asking)).info.settings["engine"] == "native"
    found = answers(settings_of(asking), small_requests())
    assert [answer.new_tokens for answer in found] == [count for _, count in expected(folder, stop_strings=given)]


def test_characters_of_several_tokens_are_found_once_they_are_whole(tmp_path: Path) -> None:
    """A tokenizer of bytes: what the tokens say so far may end within a character."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder = save_checkpoint(tmp_path / "m", generation={}, text={"vocab_size": 272}, top={"image_token_id": 260})
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    for token in ("<s>", "</s>", "<fake_token_around_image>", "<end_of_utterance>", "<image>"):
        tokenizer.add_special_tokens([token])
    tokenizer.save(str(folder / "tokenizer.json"))
    prompts = opened(settings_of(folder))[1].prompt_builder("{question}")
    tokens = tokenizer.encode("a\u4e2dé\u4e2d!").ids
    assert len(tokens) == 1 + 3 + 2 + 3 + 1
    found = [count for count in range(len(tokens) + 1) if prompts.has_stop(tokens[:count], ["é\u4e2d"])]
    assert found == [9, 10]
    assert [prompts.has_stop(tokens[:count], ["\u4e2d"]) for count in (3, 4)] == [False, True]
    assert prompts.decode(tokens, ["é\u4e2d"]) == "a\u4e2d"


def test_a_stop_string_with_a_special_token_is_refused(small: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--stop 'x<end_of_utterance>' holds the special token <end_of_utterance>"):
        open_engine(settings_of(small, stop=("x<end_of_utterance>",)))
    folder = save_checkpoint(tmp_path / "m", generation={"stop_strings": "</s>"})
    with pytest.raises(ModelError, match="stop_strings '</s>' holds"):
        open_engine(settings_of(folder))


# --- sampling ---

WARM: dict[str, Any] = {"temperature": 1.3, "top_p": 0.9, "max_new_tokens": 8}


def test_a_seed_gives_the_same_answers_in_any_batch_order_and_run(either: Path) -> None:
    requests = [*small_requests(), dataclasses.replace(small_requests()[0], question="How many?")]
    alone = [answers(settings_of(either, seed=5, batch_size=1, **WARM), [request])[0] for request in requests]
    for batch_size in (1, 3, 32):
        found = answers(settings_of(either, seed=5, batch_size=batch_size, **WARM), requests[::-1])[::-1]
        assert [(one.text, one.confidence, one.new_tokens) for one in found] == [
            (one.text, one.confidence, one.new_tokens) for one in alone
        ]
    engine = open_engine(settings_of(either, seed=5, **WARM))
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda request: engine.submit(request).result(), requests))
    engine.close()
    assert texts(found) == texts(alone)
    other = answers(settings_of(either, seed=6, **WARM), requests)
    assert texts(other) != texts(alone)
    assert texts(answers(settings_of(either, seed=0, **WARM), requests)) == texts(
        answers(settings_of(either, **WARM), requests)
    )
    assert texts(answers(settings_of(either, temperature=0.0, max_new_tokens=8), requests)) != texts(alone)


def test_a_temperature_of_zero_is_greedy(small: Path) -> None:
    assert texts(answers(settings_of(small, temperature=0.0), small_requests())) == expected(small)
    settings = open_engine(settings_of(small, temperature=0.0)).info.settings
    assert settings == open_engine(settings_of(small)).info.settings


@pytest.mark.parametrize(("temperature", "top_p"), [(0.7, None), (1.5, 0.8)])
def test_tokens_come_as_often_as_they_are_probable(temperature: float, top_p: float | None, small: Path) -> None:
    """The first tokens of many requests that differ in nothing but the name of their page."""
    request, count = Request("Who?", (noise_page(1, (2, 3)),), ("p",)), 600
    requests = [dataclasses.replace(request, page_ids=(str(number),)) for number in range(count)]
    settings = settings_of(small, temperature=temperature, top_p=top_p, max_new_tokens=1, batch_size=64)
    found = Counter(round(answer.confidence, 4) for answer in answers(settings, requests))
    inputs = model_inputs(settings)(request)
    model = AutoModelForImageTextToText.from_pretrained(small, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = model(**inputs).logits[:, -1].float()
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_p is not None:
        warpers.append(TopPLogitsWarper(top_p))
    probabilities = [p for p in warpers(inputs["input_ids"], logits).softmax(-1)[0].tolist() if p > 0]
    # The confidence of one token is its probability under what it was drawn from.
    assert all(min(abs(one - p) for p in probabilities) < 1e-3 for one in found)
    for p in sorted(probabilities)[-3:]:
        drawn = sum(times for one, times in found.items() if abs(one - p) < 1e-3)
        wanted = sum(one for one in probabilities if abs(one - p) < 1e-3)
        assert drawn / count == pytest.approx(wanted, abs=4 * (wanted * (1 - wanted) / count) ** 0.5)
    assert len(found) > 1


def test_a_low_temperature_draws_the_most_probable_tokens(small: Path) -> None:
    settings = settings_of(small, temperature=0.01, max_new_tokens=6)
    assert texts(answers(settings, small_requests())) == expected(small, limit=6)
    assert any(answer.confidence > 0.99 for answer in answers(settings, small_requests()))


# --- choices ---

CHOICES = ("Yes", "No", "1", "12", "a longer answer", "a longer one", ":h", "tx", "t", "R", "x")


def scores(folder: Path, request: Request, choices: Sequence[str]) -> list[float]:
    """The log-probability of each choice, each by a forward pass of its own over prompt and answer."""
    settings = settings_of(folder)
    prompts = opened(settings)[1].prompt_builder("{question}")
    inputs = model_inputs(settings)(request)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    prompt = inputs["input_ids"].shape[1]
    best = []
    for text in choices:
        ways = []
        for tokens in prompts.choice(text, ()).tokens:
            whole = torch.cat([inputs["input_ids"], torch.tensor([tokens])], 1)
            with torch.inference_mode():
                out = model(**inputs | {"input_ids": whole, "attention_mask": torch.ones_like(whole)})
            logprobs = out.logits[0, prompt - 1 :].log_softmax(-1)
            said = float(logprobs[:-1].gather(1, whole[0, prompt:, None]).sum())
            ways.append(said + float(logprobs[-1, ENDS].max()))
        best.append(max(ways))
    return best


def test_the_answer_is_the_most_probable_choice(either: Path) -> None:
    wanted = [scores(either, request, CHOICES) for request in small_requests()]
    best = [CHOICES[one.index(max(one))] for one in wanted]
    assert len(set(best)) > 1
    for batch_size in (1, 4, 32):
        settings = settings_of(either, choices=CHOICES, max_new_tokens=None, batch_size=batch_size)
        found = answers(settings, small_requests())
        assert [answer.text for answer in found] == best
        for answer, one in zip(found, wanted, strict=True):
            assert answer.confidence == pytest.approx(torch.tensor(max(one)).exp().item(), rel=1e-3)
            assert answer.mean_logprob == pytest.approx(max(one) / answer.new_tokens, rel=1e-3)
            assert not answer.warning


def test_choices_do_not_depend_on_their_order_or_company(small: Path) -> None:
    settings = settings_of(small, choices=CHOICES, max_new_tokens=None)
    found = answers(settings, many(40))
    assert {(one.text, one.confidence) for one in found[:6]} == {(one.text, one.confidence) for one in found}
    turned = answers(dataclasses.replace(settings, choices=CHOICES[::-1], batch_size=7), small_requests())
    assert [(one.text, one.confidence) for one in turned] == [(one.text, one.confidence) for one in found[:6]]


def test_a_choice_that_the_tokenizer_lacks_is_refused(small: Path) -> None:
    with pytest.raises(UsageError, match="--choices: the checkpoint can't write '\u4e2d'"):
        open_engine(settings_of(small, choices=("Yes", "\u4e2d"), max_new_tokens=None))


# --- kinds of checkpoints ---


def test_a_base_checkpoint_never_generates_image_tokens(tmp_path: Path) -> None:
    def base(name: str, act: str) -> Path:
        """A checkpoint without turns that would like to generate image tokens."""
        folder = save_checkpoint(tmp_path / name, generation={"eos_token_id": ENDS}, text={"hidden_act": act})
        (folder / "chat_template.jinja").unlink()
        tensors = load_file(folder / "model.safetensors")
        tensors["lm_head.weight"][129:131] *= 2
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    folder = base("base", "silu")
    requests = [dataclasses.replace(one, question=f"{n}: {one.question}") for n, one in enumerate(many(24))]
    wanted = expected(folder, requests=requests, suppress_tokens=[129, 130])
    assert wanted != expected(folder, requests=requests)
    for batch_size in (1, 7, 32):
        assert texts(answers(settings_of(folder, batch_size=batch_size), requests)) == wanted
    gelu = base("gelu", "gelu")
    assert texts(answers(settings_of(gelu), requests)) == expected(gelu, requests=requests, suppress_tokens=[129, 130])


def test_chatty_checkpoints_have_longer_answers(tmp_path: Path) -> None:
    def limit(name: str, **generation: Any) -> str:
        folder = save_checkpoint(tmp_path / name, generation=generation)
        return open_engine(settings_of(folder, max_new_tokens=None)).info.settings["--max-new-tokens"]

    assert limit("idefics2-8b") == "64"
    assert limit("idefics2-8b-base") == "64"
    assert limit("other", max_new_tokens=100) == "100"
    assert limit("idefics2-8b-chatty") == "512"
    folder = tmp_path / "idefics2-8b-chatty"
    some = small_requests()[:2]
    wanted = expected(folder, limit=512, requests=some)
    assert max(count for _, count in wanted) > 64
    for batch_size in (1, 7, 32):
        settings = settings_of(folder, max_new_tokens=None, batch_size=batch_size)
        assert texts(answers(settings, some)) == wanted


# --- what is refused, and what is said ---


def test_a_prompt_that_is_too_long_is_a_failed_row_whatever_runs(either: Path) -> None:
    engine = open_engine(settings_of(either))
    long = dataclasses.replace(small_requests()[0], question="a" * 1024)
    found = [engine.submit(request).result() for request in (long, small_requests()[0])]
    engine.close()
    assert found[0].failure is not None
    assert found[0].failure.kind is FailureKind.TOO_LARGE
    assert "(--max-new-tokens); the model takes 1024 together" in found[0].failure.detail
    assert found[1].failure is None


def test_settings_hold_what_was_asked_for_by_its_flag(small: Path) -> None:
    plain = dict(open_engine(settings_of(small)).info.settings)

    def added(**changes: Any) -> dict[str, str]:
        found = dict(open_engine(settings_of(small, **changes)).info.settings)
        assert {name: found[name] for name in plain if name != "--max-new-tokens"} == {
            name: value for name, value in plain.items() if name != "--max-new-tokens"
        }
        return {name: value for name, value in found.items() if name not in plain}

    assert added(temperature=0.5) == {"--temperature": "0.5", "--seed": "0"}
    assert added(temperature=0.5, top_p=0.9, seed=3) == {"--temperature": "0.5", "--top-p": "0.9", "--seed": "3"}
    assert added(min_new_tokens=2, repetition_penalty=1.1) == {
        "--min-new-tokens": "2",
        "--repetition-penalty": "1.1",
    }
    assert added(stop=("a", "b")) == {"--stop": "['a', 'b']"}
    assert added(choices=("a", "b"), max_new_tokens=None) == {"--choices": "['a', 'b']"}
    with pytest.raises(UsageError, match="--min-new-tokens 65 is more than the longest answer, --max-new-tokens 64"):
        open_engine(settings_of(small, max_new_tokens=None, min_new_tokens=65))
