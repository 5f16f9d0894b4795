"""What a run is asked: questions from a file or a pipe, paired with their documents."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from idefics_cli.config import RunSettings
from idefics_cli.documents import discover
from idefics_cli.documents.fetch import fetch
from idefics_cli.errors import InputError
from idefics_cli.questions.pair import Pairing, pair, pair_all
from idefics_cli.questions.read import read_file
from idefics_cli.questions.stream import QuestionStream
from idefics_cli.records import Document, Job

_KEPT_ADDRESSES = 8


@dataclass(frozen=True, slots=True)
class Asked:
    """The questions of a run, paired with their documents."""

    jobs: Iterable[Job]
    columns: tuple[str, ...]
    """The user's own columns."""
    total: int | None
    """Jobs; unknown for a pipe."""
    ready: Callable[[], bool]


def read_questions(name: str, documents: Sequence[Document], settings: RunSettings) -> Asked:
    """Read and pair questions: a file at once and checked whole, a pipe as its lines come.

    Args:
        name: of the questions' file; `-` is stdin.
        documents: those of the command line.
        settings: of the run.

    Raises:
        InputError: they can't be read, or a file's question finds no document.

    """
    root = settings.root
    # One address is often asked several questions in a row.
    fetching = functools.lru_cache(_KEPT_ADDRESSES)(fetch) if settings.allow_urls else None
    if name == "-":
        # A file object of its own: at exit Python flushes sys.stdin, which a thread that still reads from it holds.
        stream = QuestionStream(os.fdopen(os.dup(0), "rb"))
        questions = iter(stream)
        first = next(questions, None)
        if first is None:
            raise InputError("<stdin>: no questions in it")
        pairing = Pairing(documents, Path.cwd(), discover.expand, discover.from_data_uri, fetching, root)
        jobs = pair(itertools.chain([first], questions), pairing)
        return Asked(jobs, tuple(first.extra), None, stream.ready)
    path = Path(name)
    listed = read_file(path)
    paired = pair_all(listed, Pairing(documents, path.parent, discover.expand, discover.from_data_uri, fetching, root))
    columns = tuple(dict.fromkeys(column for question in listed for column in question.extra))
    return Asked(paired, columns, len(paired), lambda: True)
