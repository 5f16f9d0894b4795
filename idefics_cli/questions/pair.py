"""Pairs questions with documents."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePath

from idefics_cli.errors import FailureKind, InputError, RowFailedError, shortened
from idefics_cli.questions.messages import check_count
from idefics_cli.questions.read import failed
from idefics_cli.records import Document, DocumentPart, Job, PagePart, Question, Turn

_SHOWN_CANDIDATES = 5
_SHOWN_NAME = 200


@dataclasses.dataclass(frozen=True)
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
    is_below: Callable[[str, Path], bool]
    """Whether all that a path or glob can name lies below a folder, wherever links lead."""
    allow_urls: bool = False
    root: Path | None = None
    """The folder below which a line may name documents; those of the command line are the user's own choice."""
    allow_empty: bool = False
    """Whether a question may be asked of no document at all."""

    def documents_of(self, question: Question) -> Sequence[Document]:
        """Return the documents a question is asked of.

        Raises:
            RowFailedError: there is none (kind bad-question), or its data URI does not decode.

        """
        return self._with_password(question.document, question.password)

    def together(self, question: Question) -> Job:
        """Return the job of a question about several documents; one that is a folder or glob becomes several.

        Raises:
            RowFailedError: one is not there (kind bad-question), or its data URI does not decode.
            ValueError: more than are read together.

        """
        found = [self._with_password(part.document, question.password) for part in question.documents]
        parts = [
            [DocumentPart(document.name, part.page) for document in documents]
            for part, documents in zip(question.documents, found, strict=True)
        ]
        check_count(sum(map(len, parts)), "documents")
        following = iter(parts)
        turns = tuple(
            Turn(turn.role, tuple(one for part in turn.content for one in _expanded(part, following)))
            for turn in question.turns
        )
        asked = dataclasses.replace(question, documents=tuple(itertools.chain(*parts)), turns=turns)
        documents = tuple(itertools.chain(*found))
        return Job(asked, documents[0], documents)

    def _with_password(self, name: str | None, password: str | None) -> Sequence[Document]:
        found = self._named(name)
        return found if password is None else [dataclasses.replace(each, password=password) for each in found]

    def _named(self, name: str | None) -> Sequence[Document]:
        if name is None:
            if not self.documents and not self.allow_empty:
                raise _bad("names no document, and none was given on the command line")
            return self.documents
        scheme = name[:8].lower()
        if scheme.startswith("data:"):
            return [self.decode(name)]
        if scheme.startswith(("http://", "https://")):
            if not self.allow_urls:
                raise _bad(f"{_shown(name)}: addresses are fetched only with --allow-urls")
            return [Document(name, url=name)]
        found, reason = self._on_disk(name)
        return found or self._given(name, reason)

    def _on_disk(self, name: str) -> tuple[Sequence[Document], str]:
        """Find files below the base, if looking there is allowed; without any, say the system's reason."""
        path = os.path.normpath(name if os.path.isabs(name) else os.path.join(self.base, name))  # noqa: PTH117, PTH118 - globs stay text
        try:
            if self.root is not None and not self.is_below(path, self.root):
                return (), ""
            found = self.expand(path)
        except (InputError, RowFailedError, OSError, ValueError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            return (), f" ({cause.strerror})" if isinstance(cause, OSError) and cause.strerror else ""
        root = self.root
        if root is not None and not all(document.path and self.is_below(document.path, root) for document in found):
            return (), ""
        return found, ""

    def _given(self, name: str, reason: str) -> Sequence[Document]:
        """Find those of the command line whose path ends in `name` or matches it as a glob."""
        wanted = _parts(name)
        last = wanted[-1] if wanted else ""
        matches = [d for d in self._by_file_name.get(last, ()) if _parts(d.path or "")[-len(wanted) :] == wanted]
        if len(matches) > 1:  # one that is spelled alike goes before one with another case
            end = PurePath(os.path.normpath(name)).parts
            matches = [d for d in matches if PurePath(d.path or "").parts[-len(end) :] == end] or matches
        is_ambiguous = len(matches) > 1
        if not matches and any(character in name for character in "*?["):
            matches = [d for d in self.documents if d.path and _matches(_parts(d.path), wanted)]
        if not matches and self.root is not None:
            raise _bad(f"document {_shown(name)} is neither below --root {self.root} nor among the documents given")
        if not matches:
            raise _bad(f"document {_shown(name)} is neither in {self.base} nor among the documents given{reason}")
        if is_ambiguous:
            paths = ", ".join(str(match.path) for match in matches[:_SHOWN_CANDIDATES])
            more = f" and {len(matches) - _SHOWN_CANDIDATES} more" if len(matches) > _SHOWN_CANDIDATES else ""
            raise _bad(f"document {_shown(name)} may be any of {paths}{more}; give more of its path")
        return matches

    @functools.cached_property
    def _by_file_name(self) -> dict[str, list[Document]]:
        names: dict[str, list[Document]] = {}
        for document in self.documents:
            if document.path:
                names.setdefault(_parts(document.path)[-1], []).append(document)
        return names


def pair(questions: Iterable[Question], pairing: Pairing) -> Iterator[Job]:
    """Yield a job for each question and document; a question that finds none yields one job that says why."""
    for question in questions:
        if question.failure:
            yield Job(question, None)
            continue
        try:
            if question.documents:
                yield pairing.together(question)
                continue
            if question.chat is not None:
                yield Job(question, None)
                continue
            documents = pairing.documents_of(question)
        except RowFailedError as error:
            yield Job(failed(question, error.failure.detail, error.failure.kind), None)
            continue
        except Exception as error:  # whatever a line holds, the others go on
            yield Job(failed(question, f"document: {error or type(error).__name__}"), None)
            continue
        for document in documents:
            yield Job(question, document)


def _expanded(
    part: str | DocumentPart | PagePart, documents: Iterator[Sequence[DocumentPart]]
) -> Sequence[str | DocumentPart | PagePart]:
    return next(documents) if isinstance(part, DocumentPart) else (part,)


def _matches(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether a path ends in the wanted parts, each a glob; `**` stands for any number of parts."""
    is_absolute = wanted[:1] == ("/",)
    ends = {0} if is_absolute else set(range(len(parts)))
    for pattern in wanted:
        if pattern == "**":
            ends = set(range(min(ends), len(parts) + 1)) if ends else ends
        else:
            ends = {end + 1 for end in ends if end < len(parts) and fnmatchcase(parts[end], pattern)}
    return len(parts) in ends


def _parts(path: str) -> tuple[str, ...]:
    """Split a path; its ending in lower case, since .PDF is .pdf."""
    *above, last = PurePath(os.path.normpath(path)).parts or ("",)
    stem, dot, suffix = last.rpartition(".")
    return (*above, stem + dot + suffix.lower() if dot else last)


def _bad(detail: str) -> RowFailedError:
    return RowFailedError(FailureKind.BAD_QUESTION, detail)


def _shown(name: str) -> str:
    return repr(shortened(name, _SHOWN_NAME))
