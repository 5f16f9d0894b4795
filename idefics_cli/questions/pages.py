"""Page selections such as `1-3,7,-1`; pages count from 1, negative ones from the end."""

from __future__ import annotations

import re

from idefics_cli.errors import FailureKind, RowFailedError, UsageError

_PART = re.compile(r"(?P<first>-?\d+)(?:-(?P<last>-?\d+))?")


def check_selection(selection: str) -> None:
    """Check the form of a selection.

    Raises:
        UsageError: it does not read as pages.

    """
    _parts(selection)


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


def _parts(selection: str) -> list[tuple[int, int]]:
    parts = []
    for part in selection.split(","):
        match = _PART.fullmatch(part.strip())
        if match is None or int(match["first"]) == 0 or int(match["last"] or 1) == 0:
            raise UsageError(f"{selection!r} are no pages: give numbers from 1, as in 1-3,7,-1")
        first = int(match["first"])
        parts.append((first, int(match["last"]) if match["last"] else first))
    return parts


def _resolve(page: int, count: int, selection: str) -> int:
    resolved = page if page > 0 else count + 1 + page
    if not 1 <= resolved <= count:
        plural = "page" if count == 1 else "pages"
        raise RowFailedError(
            FailureKind.NO_SUCH_PAGE, f"page {page} of {selection!r}: the document has {count} {plural}"
        )
    return resolved
