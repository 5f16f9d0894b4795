"""The seam: what a run needs of an engine, whatever stands behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from idefics_cli.config import ModelSettings
from idefics_cli.documents.page import ImageProcessor
from idefics_cli.records import Answer, Request


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a run must know of an engine before its weights are loaded."""

    name: str
    """The checkpoint, as the `model` column gives it."""
    settings: Mapping[str, str]
    """What of the engine can change an answer (checkpoint with revision and content, dtype, quantization, prompt,
    generation), each by the name that a user knows it by."""
    capacity: int
    """How many requests are worth having submitted at once; more only take memory."""
    image_processor: ImageProcessor
    """Makes the crops that the checkpoint takes; picklable, since page processes use it."""
    notes: tuple[str, ...] = ()
    """What a user is told of the engine at the start."""
    split_refusal: str = ""
    """Why pages are never split; empty where they may be."""
    chat_refusal: str = ""
    """Why questions can't go on after an answer; empty where they can."""
    examples_refusal: str = ""
    """Why examples can't stand before a question; empty where they can."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine is doing, and what it has done since its weights were loaded."""

    running: int = 0
    """Requests that are being decoded."""
    waiting: int = 0
    """Requests that are not decoded yet."""
    pages_encoded: int = 0
    pages_reused: int = 0
    """Pages of requests whose encoding was there already."""
    free_slots: int = 0
    """Of the KV cache: those that neither a request nor a prefix that is kept holds."""


class Engine(Protocol):
    """Answers questions about prepared pages."""

    @property
    def info(self) -> EngineInfo:
        """What it is; known before the weights are loaded."""

    def start(self) -> None:
        """Begin to load the weights in the background; the first request does so otherwise."""

    def submit(self, request: Request) -> Future[Answer]:
        """Answer a request, from any thread and at any time; never blocks for long.

        Requests whose `page_ids` are equal share the encoding of the page; what their conversations begin with may be
        computed once. An answer does not depend on which other
        requests are answered with it. A request that can't be answered has an answer with a `failure`; the future
        raises ModelError only when the model or its device can't be used any more. A future that is cancelled gives
        its request's room to others, at the next step where the engine can.
        """

    def close(self) -> None:
        """Stop, and free the device; requests that are not answered are cancelled."""


class SteppingEngine(Engine, Protocol):
    """An engine that shows whether it gets on."""

    @property
    def steps(self) -> int:
        """Steps of work done so far, each a small part of an answer where possible; any thread may read it."""


class LoadedEngine(SteppingEngine, Protocol):
    """An engine whose weights are there."""

    @property
    def stats(self) -> EngineStats:
        """What it is doing; from any thread."""


class LoadableEngine(SteppingEngine, Protocol):
    """An engine whose weights can be waited for."""

    def load(self) -> object:
        """Load the weights, or wait for those that are being loaded; raises ModelError."""


OpenEngine = Callable[[ModelSettings], LoadableEngine]
"""A function of a module where it is pickled."""
