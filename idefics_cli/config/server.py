"""How a server listens, what it holds at most, and whether questions are answered by one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from idefics_cli.config.option import Option, Panel, check_above_zero
from idefics_cli.errors import UsageError

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True, slots=True)
class Duration:
    """A span of time, as `90`, `90s`, `10m`, `2h` or `1d`."""

    seconds: float

    @classmethod
    def parse(cls, text: object) -> Duration:
        """Read it.

        Raises:
            UsageError: it is none, or not above 0.

        """
        match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([smhd]?)", str(text).strip())
        if match is None or not float(match[1]):
            raise UsageError(f"a time above 0 is wanted, as in 90s, 10m, 2h or 1d: not {str(text)!r}")
        return cls(float(match[1]) * _UNITS[match[2]])

    def __str__(self) -> str:
        return f"{self.seconds:g}s"


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """How a server listens, and what it holds at most."""

    host: Annotated[
        str, Option("Address to listen on; any but 127.0.0.1 is open to others.", Panel.COMMON, metavar="ADDRESS")
    ] = "127.0.0.1"
    port: Annotated[int, Option("Port to listen on; 0 takes a free one.", Panel.COMMON, metavar="N")] = 8000
    socket: Annotated[
        bool, Option("Listen only on a socket of this user's, for ask and run: no HTTP.", Panel.COMMON)
    ] = False
    keep_alive: Annotated[
        Duration | None,
        Option(
            "Let the weights go when nothing was asked for so long; the next question loads them again.",
            Panel.COMMON,
            metavar="10m",
            default="for ever",
            parse=Duration.parse,
        ),
    ] = None
    exit_when_idle: Annotated[
        bool, Option("With --keep-alive: end the server then, not only its weights.", Panel.COMMON)
    ] = False
    max_answer: Annotated[
        int, Option("Longest answer that a request may want, in tokens.", Panel.LIMITS, metavar="N")
    ] = 1024
    max_queue: Annotated[
        int, Option("Requests that are held at once; more are told to come again (429).", Panel.LIMITS, metavar="N")
    ] = 512
    max_body: Annotated[
        float, Option("Largest body of a request in MB; larger ones are refused (413).", Panel.LIMITS, metavar="MB")
    ] = 64.0
    stop_timeout: Annotated[
        float,
        Option("Seconds that requests have to be answered when the server is told to stop.", Panel.LIMITS, metavar="S"),
    ] = 30.0

    def __post_init__(self) -> None:
        if not 0 <= self.port < 1 << 16:
            raise UsageError(f"--port takes a number from 0 to 65535: not {self.port}")
        if not self.host.strip():
            raise UsageError("--host takes an address, such as 127.0.0.1, or 0.0.0.0 for all of this machine")
        if self.exit_when_idle and self.keep_alive is None:
            raise UsageError("--exit-when-idle goes with --keep-alive")
        check_above_zero("--max-answer", self.max_answer)
        check_above_zero("--max-queue", self.max_queue)
        check_above_zero("--max-body", self.max_body, "a number of MB")
        check_above_zero("--stop-timeout", self.stop_timeout, "a number of seconds")

    @property
    def max_body_bytes(self) -> int:
        """Largest body in bytes."""
        return int(self.max_body * 1e6)


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """Whether questions are answered by a server of this user's that has the model loaded."""

    no_server: Annotated[
        bool, Option("Load the model here, also where a server has it loaded.", Panel.MODEL, ("--no-server",))
    ] = False
    keep: Annotated[
        Duration | None,
        Option(
            "Keep the model loaded in the background until nothing was asked for so long.",
            Panel.MODEL,
            metavar="10m",
            default="not at all",
            parse=Duration.parse,
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.no_server and self.keep is not None:
            raise UsageError("--keep and --no-server exclude each other: answer through a server, or here")
