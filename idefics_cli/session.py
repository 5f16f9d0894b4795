"""The way in for other programs: an engine and page processes that stay, and rows as they are done."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from types import TracebackType

from idefics_cli.config import RunSettings, Split
from idefics_cli.documents.page import DocumentInfo
from idefics_cli.documents.pool import PagePool, result_of
from idefics_cli.endpoint import open_endpoint
from idefics_cli.engine import open_engine
from idefics_cli.engine.base import Engine, OpenEngine
from idefics_cli.errors import ModelError, RowFailedError, UsageError
from idefics_cli.inputs import Inputs, read_examples, read_inputs
from idefics_cli.pipeline import Progress, run
from idefics_cli.records import Document, Row
from idefics_cli.results.fingerprint import settings_fingerprint, settings_values


def open_engine_of(settings: RunSettings, open_with: OpenEngine = open_engine) -> Engine:
    """Open what answers a run: a server that the settings name, else the checkpoint.

    Raises:
        IdeficsCliError: as `open_endpoint`, or `open_engine`.

    """
    return open_with(settings.model) if settings.endpoint.url is None else open_endpoint(settings)


class Session:
    """Answers questions about documents; the weights are loaded once, with the first question.

    Example:
        with Session("tiny") as session:
            print(session.ask("invoice.pdf", "What is the total?").answer)

    """

    def __init__(
        self,
        model: str | None = None,
        settings: RunSettings | None = None,
        *,
        engine: Engine | None = None,
        pool: PagePool | None = None,
    ) -> None:
        """Open a checkpoint; nothing is loaded yet.

        Args:
            model: hub id, folder, or `tiny`; before that of the settings.
            settings: everything else that a run is told.
            engine: takes the place of the checkpoint's.
            pool: page processes; None starts some when they are needed.

        Raises:
            InputError: the examples can't be read.
            ModelError: no such checkpoint, or one that can't be run, or can't be given the examples.
            UsageError: its pages can't be split as the settings want.

        """
        settings = settings or RunSettings()
        if model is not None:
            settings = dataclasses.replace(
                settings,
                model=dataclasses.replace(settings.model, model=model),
                endpoint=dataclasses.replace(settings.endpoint, is_model_named=True),
            )
        self.settings = settings
        path = settings.questions.examples
        self.examples = read_examples(path, settings.questions) if path is not None else None
        """What stands in front of every question."""
        examples_digest = self.examples.digest() if self.examples else ""
        self.engine = engine or open_engine_of(settings)
        if self.examples and (refusal := self.engine.info.examples_refusal):
            raise ModelError(f"--examples: {refusal}")
        refusal, split = self.engine.info.split_refusal, settings.pages.split
        if refusal and split is not Split.AUTO:
            raise UsageError(f"--split {split}: {self.engine.info.name}: {refusal}; leave --split out")
        self.pool = pool or PagePool(settings.pages)
        self._is_closed = False
        self.setting_values = settings_values(self.engine.info.settings, settings, examples=examples_digest)
        """Every setting that can change an answer, by the name that a user knows it by."""

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the page processes, and free the device."""
        self._is_closed = True
        self.pool.close()
        self.engine.close()

    def ask(self, document: str, question: str) -> Row:
        """Ask one question of one document; a row that failed says why in `error`.

        Raises:
            InputError: no such document, or several.
            ModelError: the model can't be loaded, or its device has failed.

        """
        return next(self.run([document], [question]))

    def run(self, documents: Sequence[str], questions: str | Sequence[str]) -> Iterator[Row]:
        """Ask questions of documents and yield their rows as they are done, in the order of the questions.

        Args:
            documents: files, folders and globs; questions of a file may name others.
            questions: the name of a CSV or JSONL file, or the questions themselves.

        Raises:
            InputError: questions that can't be read, or no document.
            ModelError: the model can't be loaded, or its device has failed.

        """
        return self.rows(read_inputs(documents, questions, self.settings))

    def page_count(self, path: str) -> int:
        """Return how many pages a file has; 1 where it can't be read."""
        try:
            return result_of(self.pool.open(Document(path, path)), DocumentInfo).pages
        except (RowFailedError, CancelledError):
            return 1

    def rows(
        self,
        inputs: Inputs,
        *,
        take_answered: Callable[[str], bool] = lambda _: False,
        progress: Progress | None = None,
    ) -> Generator[Row, None, None]:
        """Yield the rows of inputs that are read already; see `pipeline.run`.

        Raises:
            ModelError: the session has been closed, or as `run`.

        """
        if self._is_closed:
            raise ModelError("the session has been closed")
        return run(
            inputs.jobs,
            self.engine,
            self.pool,
            self.settings,
            examples=self.examples,
            fingerprint=settings_fingerprint(self.setting_values),
            take_answered=take_answered,
            progress=progress,
        )
