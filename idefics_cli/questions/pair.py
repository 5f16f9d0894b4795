"""Pairs questions with documents."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePath

from idefics_cli.errors import FailureKind, InputError, RowFailedError
from idefics_cli.records import Document, Job, Question


@dataclasses.dataclass(frozen=True, slots=True)
class Pairing:
    """How a line's `document` finds its documents."""

    documents: Sequence[Document]
    """Those of the command line."""
    base: Path
    """Where relative paths start: the folder of the questions file, or where one stands for a stream."""
    expand: Callable[[str], list[Document]]
    """Expands a path or glob; raises InputError where nothing is."""
    decode: Callable[[str], Document]
    """Decodes a data URI; raises RowFailedError."""
    fetch: Callable[[str], Document] | None = None
    """Fetches an http(s) address; raises RowFailedError; None refuses them."""
    root: Path | None = None
    """The folder below which a line may name documents; those of the command line are the user's own choice."""

    def documents_of(self, question: Question) -> Sequence[Document]:
        """Return the documents a question is asked of.

        Raises:
            RowFailedError: there is none (kind bad-question), or its data URI does not decode.

        """
        name = question.document
        if name is None:
            if not self.documents:
                raise RowFailedError(
                    FailureKind.BAD_QUESTION, "names no document, and none was given on the command line"
                )
            return self.documents
        if name.startswith("data:"):
            return [self.decode(name)]
        if name.startswith(("http://", "https://")):
            if self.fetch is None:
                raise RowFailedError(FailureKind.BAD_QUESTION, f"{name}: addresses are fetched with --allow-urls alone")
            return [self.fetch(name)]
        path = name if os.path.isabs(name) else os.path.join(self.base, name)  # noqa: PTH117, PTH118 - globs stay text
        try:
            found = self.expand(os.path.normpath(path))
        except InputError:
            return [self._given_with_end(name)]
        self._check_root(name, found)
        return found

    def _check_root(self, name: str, found: Sequence[Document]) -> None:
        """Refuse documents outside the root, wherever links lead."""
        if self.root is None:
            return
        root = self.root.resolve()
        if not all(Path(document.path or "").resolve().is_relative_to(root) for document in found):
            raise RowFailedError(FailureKind.BAD_QUESTION, f"document {name!r} lies outside of --root {self.root}")

    def _given_with_end(self, name: str) -> Document:
        """Find the command line's document whose path ends in `name`."""
        end = PurePath(os.path.normpath(name)).parts
        matches = [d for d in self.documents if d.path and PurePath(d.path).parts[-len(end) :] == end]
        if not matches:
            raise RowFailedError(
                FailureKind.BAD_QUESTION, f"document {name!r} is neither in {self.base} nor among the documents given"
            )
        if len(matches) > 1:
            paths = ", ".join(str(match.path) for match in matches)
            raise RowFailedError(
                FailureKind.BAD_QUESTION, f"document {name!r} may be any of {paths}; give more of its path"
            )
        return matches[0]


def pair(questions: Iterable[Question], pairing: Pairing) -> Iterator[Job]:
    """Yield a job for each question and document; a question that finds none yields one job that says why."""
    for question in questions:
        if question.failure:
            yield Job(question, None)
            continue
        try:
            documents = pairing.documents_of(question)
        except RowFailedError as failure:
            yield Job(dataclasses.replace(question, failure=str(failure)), None)
            continue
        for document in documents:
            yield Job(question, document)


def pair_all(questions: Iterable[Question], pairing: Pairing) -> list[Job]:
    """Pair every question of a file, and bring the jobs of one document together, in the order of first mention.

    An address that can't be fetched, or a data URI that does not decode, fails as a row.

    Raises:
        InputError: a question that can't be asked.

    """
    by_document: dict[Document | None, list[Job]] = {}
    problems: list[str] = []
    for job in pair(questions, pairing):
        if (job.question.failure or "").startswith(FailureKind.BAD_QUESTION):
            problems.append(f"{job.question.place}: {job.question.failure}")
        by_document.setdefault(job.document, []).append(job)
    if problems:
        raise InputError(
            "\n".join(problems[:10]) + (f"\n... and {len(problems) - 10} more" if len(problems) > 10 else "")
        )
    return [job for jobs in by_document.values() for job in jobs]
