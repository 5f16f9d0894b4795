"""A server of the OpenAI chat form that answers in the place of a model of this process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from idefics_cli.config.option import Option, Panel, check_above_zero, flag_of, positive_or_auto
from idefics_cli.config.server import Duration
from idefics_cli.errors import UsageError

_TIMEOUT, _CONCURRENCY, _GIVE_UP_AFTER = 300.0, 64, 300.0
_MOST_CONCURRENCY = 4096


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """Which server answers, and how patiently it is asked; without a URL, none."""

    url: Annotated[
        str | None,
        Option(
            "Ask a server of the OpenAI chat form, with or without /v1; --model is the model's name there. The key is "
            "taken from IDEFICS_CLI_API_KEY, else OPENAI_API_KEY.",
            Panel.ENDPOINT,
            ("--endpoint",),
            metavar="URL",
            default="the model runs here",
        ),
    ] = None
    endpoint_timeout: Annotated[
        float | None,
        Option(
            "Seconds that one request may take before it is sent again.",
            Panel.ENDPOINT,
            metavar="SECONDS",
            default=f"{_TIMEOUT:g}",
        ),
    ] = None
    concurrency: Annotated[
        int | None,
        Option(
            "Most requests at once; fewer while the server says that it has too many.",
            Panel.ENDPOINT,
            metavar="auto|N",
            default=f"auto: {_CONCURRENCY}",
            parse=positive_or_auto,
        ),
    ] = None
    give_up_after: Annotated[
        Duration | None,
        Option(
            "End with exit code 4 when no request has passed for so long.",
            Panel.ENDPOINT,
            metavar="5m",
            default="5m",
            parse=Duration.parse,
        ),
    ] = None
    is_model_named: bool = False
    """Whether `--model` was given; the default model is asked for by its name then too, whatever the server lists."""
    retry_delay: float = 0.5
    """Seconds before a request is sent a second time; twice as many before each further one, up to 8."""

    def __post_init__(self) -> None:
        check_above_zero("--endpoint-timeout", self.endpoint_timeout, "a number of seconds")
        check_above_zero("--concurrency", self.concurrency)
        if (self.concurrency or 0) > _MOST_CONCURRENCY:
            raise UsageError(f"--concurrency takes {_MOST_CONCURRENCY:,} at most: not {self.concurrency:,}")
        if self.url is None:
            for name in ("endpoint_timeout", "concurrency", "give_up_after"):
                if getattr(self, name) is not None:
                    raise UsageError(f"{flag_of(name)} goes with --endpoint")

    @property
    def timeout_seconds(self) -> float:
        """Seconds that one request may take."""
        return self.endpoint_timeout or _TIMEOUT

    @property
    def most_requests(self) -> int:
        """Most requests at once."""
        return self.concurrency or _CONCURRENCY

    @property
    def patience_seconds(self) -> float:
        """Seconds without a request that passes after which the run ends."""
        return self.give_up_after.seconds if self.give_up_after else _GIVE_UP_AFTER
