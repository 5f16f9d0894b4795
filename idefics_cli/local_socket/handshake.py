"""What client and server tell each other before the first job; from then on they speak as a worker and its parent."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from idefics_cli import __version__
from idefics_cli.config import ModelSettings, PageSettings, RunSettings

_PROTOCOL = 1
_MOST_BYTES = 1024  # of a greeting: it is read before anything is trusted
SECONDS = 10.0
"""That either waits for the other's part."""
_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HOME",
    "HUGGINGFACE_HUB_CACHE",
    "XDG_CACHE_HOME",
)
"""What decides which files a model's name stands for, and which device is the first."""


@dataclass(frozen=True, slots=True)
class Source:
    """Which files a model is read from, as far as its settings and the environment say."""

    names: tuple[str | None, ...]
    """Of the checkpoint, its revision, adapter and processor; folders by their absolute paths."""
    environment: Mapping[str, str | None]

    @classmethod
    def of(cls, settings: ModelSettings) -> Source:
        """Return that of this process."""
        names = (
            _absolute(settings.model),
            settings.revision,
            _absolute(settings.adapter),
            _absolute(settings.processor),
        )
        return cls(names, {name: os.environ.get(name) for name in _VARIABLES})


@dataclass(frozen=True, slots=True)
class Hello:
    """What a client wants."""

    settings: RunSettings
    source: Source


@dataclass(frozen=True, slots=True)
class CountPages:
    """How many pages a file has; the answer is a number."""

    path: str
    settings: PageSettings


@dataclass(frozen=True, slots=True)
class Accepted:
    """The server answers as the client itself would: jobs may come."""

    window: int
    """Jobs that are worth having sent at once."""
    notes: tuple[str, ...]
    """See `EngineInfo.notes`."""
    settings: Mapping[str, str]
    """See `EngineInfo.settings`."""
    page_processes: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The server has another model, or can't do what is wanted."""

    why: str


def greet(connection: Connection) -> bool:
    """Tell the other end which version and installation this is; says whether it is the same there.

    Raises:
        EOFError: it has gone, or says nothing.
        OSError: likewise.

    """
    own = greeting()
    connection.send_bytes(own)
    if not connection.poll(SECONDS):
        raise EOFError
    return connection.recv_bytes(_MOST_BYTES) == own


@functools.cache
def greeting() -> bytes:
    """Return what this end says of itself: the files as they are when it is first asked for, at a server's start."""
    return json.dumps({"idefics-cli": __version__, "protocol": _PROTOCOL, "installation": _installation()}).encode()


def _installation() -> str:
    """Return what another installation of this version, or this one after a change, has another of."""
    package = Path(__file__).resolve().parents[1]
    files = (os.path.join(folder, name) for folder, _, names in os.walk(package) for name in names)  # noqa: PTH118
    newest = max((os.stat(file).st_mtime_ns for file in files if file.endswith(".py")), default=0)  # noqa: PTH116
    return hashlib.sha256(f"{package}\0{newest}".encode("utf-8", "surrogateescape")).hexdigest()


def travelling(settings: RunSettings) -> RunSettings:
    """Return settings that mean the same in another folder."""
    examples = settings.questions.examples
    if examples is None:
        return settings
    questions = dataclasses.replace(settings.questions, examples=Path(os.path.abspath(examples)))  # noqa: PTH100
    return dataclasses.replace(settings, questions=questions)


def received(connection: Connection, seconds: float = SECONDS) -> object:
    """Return what the other end sends; raises EOFError where nothing comes."""
    with contextlib.suppress(TimeoutError):
        if connection.poll(seconds):
            return connection.recv()
    raise EOFError


def _absolute(name: str | None) -> str | None:
    """Return the path of a folder that is there; a hub id, or `tiny`, as it is."""
    return os.path.abspath(name) if name is not None and Path(name).is_dir() else name  # noqa: PTH100
