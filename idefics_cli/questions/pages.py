"""Page selections such as `1-3,7,-1`; pages count from 1, negative ones from the end."""

from __future__ import annotations

import re
from collections.abc import Sequence

from idefics_cli.errors import FailureKind, RowFailedError, UsageError, shortened

_NUMBER = "-?[0-9]{1,9}"
_PART = re.compile(f"(?P<first>{_NUMBER})(?:-(?P<last>{_NUMBER}))?")
_WHOLE_FLOAT = re.compile(r"(-?[0-9]+)\.0+")
_SHOWN_LENGTH = 40


def check_selection(selection: str) -> None:
    """Check the form of a selection.

    Raises:
        UsageError: it does not read as pages.

    """
    _parts(selection)


def selection_of(value: object) -> str | None:
    """Return the selection in the `page` of a line: a text, a number of JSON, or a spreadsheet's `3.0`; None for none.

    Raises:
        RowFailedError: it does not read as pages (kind no-such-page).

    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RowFailedError(FailureKind.NO_SUCH_PAGE, "page: give a number or a text, as in 1-3,7,-1")
    text = str(value).strip()
    if match := _WHOLE_FLOAT.fullmatch(text):
        text = match[1]
    try:
        check_selection(text)
    except UsageError as error:
        raise RowFailedError(FailureKind.NO_SUCH_PAGE, f"page: {error}") from error
    return text


def select_pages(selection: str | None, count: int) -> tuple[int, ...]:
    """Return the pages of a document of `count` pages, each once, in the order given; None selects all.

    Raises:
        RowFailedError: a page the document does not have (kind no-such-page).
        UsageError: the selection does not read as pages.

    """
    if selection is None:
        return tuple(range(1, count + 1))
    pages: dict[int, None] = {}
    for first, last in _parts(selection):
        low, high = _resolve(first, count, selection), _resolve(last, count, selection)
        if low > high:
            raise RowFailedError(FailureKind.NO_SUCH_PAGE, f"page range {first}-{last} runs backwards")
        pages.update(dict.fromkeys(range(low, high + 1)))
    return tuple(pages)


def format_pages(pages: Sequence[int]) -> str:
    """Write pages as a selection: `3`, `1-4`, `1,3`."""
    if len(pages) > 1 and tuple(pages) == tuple(range(pages[0], pages[-1] + 1)):
        return f"{pages[0]}-{pages[-1]}"
    return ",".join(map(str, pages))


def _parts(selection: str) -> list[tuple[int, int]]:
    parts = []
    for part in selection.split(","):
        match = _PART.fullmatch(part.strip())
        first, last = (int(match["first"]), int(match["last"] or match["first"])) if match else (0, 0)
        if first == 0 or last == 0:
            raise UsageError(f"{_shown(selection)} does not name pages: give numbers from 1, as in 1-3,7,-1")
        parts.append((first, last))
    return parts


def _resolve(page: int, count: int, selection: str) -> int:
    resolved = page if page > 0 else count + 1 + page
    if not 1 <= resolved <= count:
        plural = "page" if count == 1 else "pages"
        raise RowFailedError(
            FailureKind.NO_SUCH_PAGE, f"page {page} (pages {_shown(selection)}): the document has {count} {plural}"
        )
    return resolved


def _shown(selection: str) -> str:
    return repr(shortened(selection, _SHOWN_LENGTH))
