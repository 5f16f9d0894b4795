"""The seam: what a run needs of an engine, whatever runs behind it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from idefics_cli.config import ImageGeometry
from idefics_cli.records import Answer, Request


class Engine(Protocol):
    """Answers questions about prepared pages."""

    @property
    def name(self) -> str:
        """The checkpoint, as the `model` column gives it."""

    @property
    def identity(self) -> str:
        """Checkpoint, revision and number format: part of each row's key, since it can change the answer."""

    @property
    def geometry(self) -> ImageGeometry:
        """The image sizes that the checkpoint takes; known before the weights are loaded."""

    @property
    def window(self) -> int:
        """How many requests are worth having at hand before a call of `answer`."""

    def answer(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """Answer requests; each gets exactly one answer, in any order.

        Requests whose `page_ids` are equal share the encoding of the page. An answer does not depend on which other
        requests came with it.

        Raises:
            ModelError: the model or its device can't be used any more.

        """
