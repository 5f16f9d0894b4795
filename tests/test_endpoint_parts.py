"""What a client of other servers is made of, without a network."""

from __future__ import annotations

import asyncio
import math
import random
from email.utils import formatdate

import numpy as np
import pytest
from PIL import Image

from idefics_cli.config import Duration, EndpointSettings, RunSettings
from idefics_cli.config.server import ClientSettings
from idefics_cli.config.workers import Gpus, WorkerSettings
from idefics_cli.endpoint.address import read_address
from idefics_cli.endpoint.concurrency import AdaptiveLimit, Outcome
from idefics_cli.endpoint.dialect import Dialect
from idefics_cli.endpoint.errors import RefusedError
from idefics_cli.endpoint.gate import Gate
from idefics_cli.endpoint.images import WholePageProcessor
from idefics_cli.endpoint.retry import Health, RetryBudget, backoff, retry_after
from idefics_cli.errors import UsageError


def passed(limit: AdaptiveLimit, count: int) -> None:
    """Send requests, always as many as there may be, until so many have passed."""
    tickets = []
    for _ in range(count):
        while limit.has_room:
            tickets.append(limit.enter())
        limit.leave(tickets.pop(), Outcome.PASSED)
    for ticket in tickets:
        limit.leave(ticket, Outcome.UNKNOWN)


def test_the_limit_doubles_up_to_the_most_is_halved_and_climbs_one_by_one() -> None:
    limit = AdaptiveLimit(64)
    assert limit.size == 8
    passed(limit, 8)
    assert limit.size == 16
    passed(limit, 200)
    assert limit.size == 64
    limit.leave(limit.enter(), Outcome.OVERLOADED)
    assert limit.size == 32
    passed(limit, 34)
    assert limit.size == 33
    assert AdaptiveLimit(3).size == 3


def test_requests_of_one_window_that_are_overloaded_halve_it_once() -> None:
    limit = AdaptiveLimit(64)
    tickets = [limit.enter() for _ in range(8)]
    for ticket in tickets:
        limit.leave(ticket, Outcome.OVERLOADED)
    assert (limit.size, limit.in_flight) == (4, 0)
    for _ in range(10):
        limit.leave(limit.enter(), Outcome.OVERLOADED)
    assert limit.size == 1
    assert limit.has_room


def test_a_limit_that_is_not_used_does_not_grow() -> None:
    limit = AdaptiveLimit(64)
    for _ in range(50):
        limit.leave(limit.enter(), Outcome.PASSED)
    assert limit.size == 8


def test_failures_leave_the_limit_alone_unless_nothing_passes() -> None:
    limit = AdaptiveLimit(64)
    for _ in range(20):
        for outcome in (*[Outcome.FAILED] * 7, Outcome.PASSED):
            limit.leave(limit.enter(), outcome)
    assert limit.size == 8
    assert not limit.is_outage
    for _ in range(8):
        limit.leave(limit.enter(), Outcome.FAILED)
    assert (limit.size, limit.is_outage) == (1, True)
    passed(limit, 10)
    assert not limit.is_outage
    assert limit.size > 8


def test_delays_double_up_to_eight_seconds_and_differ() -> None:
    assert [backoff(tries, 0.5, 0.0) for tries in range(1, 8)] == [0.5, 1, 2, 4, 8, 8, 8]
    assert backoff(10**6, 0.5, 1.0) == 4.0
    drawn = {backoff(3, 0.5, random.Random(seed).random()) for seed in range(20)}
    assert len(drawn) == 20
    assert all(1 <= delay <= 2 for delay in drawn)


def test_retry_after_is_seconds_or_a_date_and_120_at_most() -> None:
    assert retry_after({"retry-after": "7"}, 0.0) == 7.0
    assert retry_after({"retry-after": "1.5"}, 0.0) == 1.5
    assert retry_after({"retry-after-ms": "250", "retry-after": "9"}, 0.0) == 0.25
    assert retry_after({"retry-after": formatdate(1000, usegmt=True)}, 990.0) == pytest.approx(10.0)
    assert retry_after({"retry-after": formatdate(1000, usegmt=True)}, 2000.0) == 0.0
    assert retry_after({"retry-after": "86400"}, 0.0) == 120.0
    for value in ("soon", "nan", "inf", ""):
        assert retry_after({"retry-after": value}, 0.0) is None
    assert retry_after({}, 0.0) is None


def test_a_server_is_gone_when_nothing_has_passed_since_its_first_failure_for_so_long() -> None:
    health = Health(10.0)
    assert not health.failed(100.0)
    assert not health.failed(109.0)
    health.passed(109.5)
    assert health.has_passed_since(109.0)
    assert not health.has_passed_since(110.0)
    assert health.down_for(200.0) == 0.0
    assert not health.failed(200.0)
    assert health.down_for(205.0) == 5.0
    assert health.failed(210.0)
    assert not Health(1.0).has_passed_since(0.0)


def test_a_budget_is_eight_failures_or_eighty_refusals_for_too_many_requests() -> None:
    budget = RetryBudget()
    assert [budget.spend(1.0) for _ in range(8)] == [False] * 7 + [True]
    budget = RetryBudget()
    assert [budget.spend(0.1) for _ in range(80)].index(True) == 79


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1"),
        (" http://localhost:8000/ ", "http://localhost:8000/v1"),
        ("http://localhost:8000/v1/", "http://localhost:8000/v1"),
        ("HTTPS://Example.ORG:443/v1/chat/completions", "https://example.org/v1"),
        ("http://[::1]:8000/v1/models", "http://[::1]:8000/v1"),
        ("https://example.org/api", "https://example.org/api/v1"),
        ("https://example.org/v1beta/openai/", "https://example.org/v1beta/openai"),
    ],
)
def test_an_address_is_read_with_and_without_its_version(given: str, base: str) -> None:
    address = read_address(given, {})
    assert (address.base, address.completions, address.key) == (base, f"{base}/chat/completions", None)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("localhost:8000", "takes an address"),
        ("ftp://x/v1", "takes an address"),
        ("http://", "takes an address"),
        ("", "takes an address"),
        ("http://x:99999/v1", "takes an address"),
        ("http://x/v1\n", None),
        ("http://x/a b", "takes an address"),
        ("http://[x/v1", "takes an address"),
        ("https://me:secret@example.org/v1", "takes no user"),
        ("https://example.org/v1?key=secret", r"from \? or # on"),
        ("https://example.org/v1?who=a@b&key=secret", r"from \? or # on"),
        ("https://me:secret/word@example.org/v1", "takes an address"),
        ("ftp://me:x@secret@example.org/v1", "takes an address"),
        ("me:secret@example.org/v1", "takes an address"),
    ],
)
def test_what_is_no_address_is_a_usage_error_without_secrets(given: str, words: str | None) -> None:
    if words is None:
        assert read_address(given, {}).base == "http://x/v1"
        return
    with pytest.raises(UsageError, match=words) as caught:
        read_address(given, {})
    assert "secret" not in str(caught.value)


def test_the_key_comes_from_the_environment_and_is_shown_nowhere() -> None:
    both = {"IDEFICS_CLI_API_KEY": " ours ", "OPENAI_API_KEY": "theirs"}
    address = read_address("http://example.org", both)
    assert address.key == "ours"
    assert "ours" not in repr(address)
    assert address.exposes_key
    assert address.redacted("wrong key ours") == "wrong key ***"
    assert read_address("http://x", {"IDEFICS_CLI_API_KEY": "", "OPENAI_API_KEY": "theirs"}).key == "theirs"
    for safe in ("https://example.org", "http://127.0.0.5", "http://localhost:1", "http://[::1]"):
        assert not read_address(safe, both).exposes_key
    assert not read_address("http://example.org", {}).exposes_key
    with pytest.raises(UsageError, match="OPENAI_API_KEY") as caught:
        read_address("http://x", {"OPENAI_API_KEY": "a\nb"})
    assert "a\nb" not in str(caught.value)


def test_a_dialect_changes_only_for_what_an_error_names() -> None:
    def refused(words: str, status: int = 400, param: str = "") -> RefusedError:
        return RefusedError(words, status=status, param=param)

    plain = Dialect()
    renamed = plain.after(refused("'max_tokens' is not supported; use 'max_completion_tokens' instead"))
    assert renamed == Dialect("max_completion_tokens")
    assert plain.after(refused("unsupported", param="max_tokens")) == renamed
    assert renamed.after(refused("max_completion_tokens is too large")) is None
    assert plain.after(refused("Unexpected fields: {'logprobs'}", 422)) == Dialect(logprobs=False)
    assert plain.after(refused("the image can't be read")) is None
    assert plain.after(refused("max_completion_tokens", 404)) is None


def test_a_page_stays_whole_and_is_twice_as_large_where_its_text_is_small() -> None:
    processor = WholePageProcessor(100)
    assert (processor.render_edge(split=False), processor.render_edge(split=True)) == (100, 200)
    page = Image.new("RGB", (300, 150), "white")
    assert [crop.shape for crop in processor.crops(page, split=False)] == [(50, 100, 3)]
    assert [crop.shape for crop in processor.crops(page, split=True)] == [(100, 200, 3)]
    assert [crop.shape for crop in processor.crops(page.transpose(Image.Transpose.ROTATE_90), split=False)] == [
        (100, 50, 3)
    ]
    assert [crop.shape for crop in processor.crops(Image.new("RGB", (1000, 1)), split=False)] == [(1, 100, 3)]
    small = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    (crop,) = processor.crops(small, split=False)
    assert np.array_equal(crop, np.asarray(small))


def test_settings_of_an_endpoint_go_with_one() -> None:
    given = EndpointSettings("http://x", 1.5, 3, Duration(60.0))
    assert (given.timeout_seconds, given.most_requests, given.patience_seconds) == (1.5, 3, 60.0)
    plain = EndpointSettings("http://x")
    assert (plain.timeout_seconds, plain.most_requests, plain.patience_seconds) == (300.0, 64, 300.0)
    for flag, settings in (
        ("--endpoint-timeout", {"endpoint_timeout": 1.0}),
        ("--concurrency", {"concurrency": 2}),
        ("--give-up-after", {"give_up_after": Duration(1.0)}),
    ):
        with pytest.raises(UsageError, match=f"{flag} goes with --endpoint"):
            EndpointSettings(**settings)
    for flag, settings in (
        ("--endpoint-timeout", {"endpoint_timeout": math.inf}),
        ("--concurrency", {"concurrency": 0}),
        ("--concurrency", {"concurrency": 5000}),
    ):
        with pytest.raises(UsageError, match=flag):
            EndpointSettings("http://x", **settings)
    with pytest.raises(UsageError, match="--gpus and --endpoint"):
        RunSettings(workers=WorkerSettings(gpus=Gpus(2)), endpoint=plain)
    with pytest.raises(UsageError, match="--ray and --endpoint"):
        RunSettings(workers=WorkerSettings(ray="auto"), endpoint=plain)
    with pytest.raises(UsageError, match="--keep and --endpoint"):
        RunSettings(server=ClientSettings(keep=Duration(1.0)), endpoint=plain)


def test_requests_go_through_the_gate_in_the_order_in_which_they_come() -> None:
    async def scenario() -> list[int]:
        gate, entered = Gate(AdaptiveLimit(1)), []

        async def one(number: int) -> None:
            ticket = await gate.enter()
            entered.append(number)
            await asyncio.sleep(0)
            gate.leave(ticket, Outcome.PASSED)
            if number < 3:  # asks at once again, while others wait
                ticket = await gate.enter()
                entered.append(number + 10)
                gate.leave(ticket, Outcome.PASSED)

        await asyncio.gather(*(one(number) for number in range(5)))
        return entered

    assert asyncio.run(scenario()) == [0, 1, 2, 3, 4, 10, 11, 12]


def test_a_request_that_is_withdrawn_at_the_gate_holds_up_no_other() -> None:
    async def scenario() -> None:
        gate = Gate(AdaptiveLimit(1))
        ticket = await gate.enter()
        first, second = asyncio.ensure_future(gate.enter()), asyncio.ensure_future(gate.enter())
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        gate.leave(ticket, Outcome.PASSED)
        await asyncio.wait_for(second, 30)

    asyncio.run(scenario())
