"""Image features of pages, by page id: kept while a sequence needs them, and the latest for those that follow."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor

_KEPT_BYTES = 1 << 30  # a split page of the 8B model takes 2.6 MB in bfloat16


class EncoderCache:
    """Image features, least recently used first."""

    def __init__(self) -> None:
        self._features: OrderedDict[str, Tensor] = OrderedDict()
        self._references: dict[str, int] = {}
        self._bytes = 0

    def __contains__(self, page: str) -> bool:
        return page in self._features

    def __getitem__(self, page: str) -> Tensor:
        """Return the features of a page, (crops * latents, text width)."""
        return self._features[page]

    def put(self, page: str, features: Tensor) -> None:
        """Keep the features of a page."""
        self._features[page] = features
        self._bytes += features.nbytes
        self._evict()

    def acquire(self, page: str) -> None:
        """Keep a page's features, or its place for them, until `release`."""
        self._references[page] = self._references.get(page, 0) + 1
        if page in self._features:
            self._features.move_to_end(page)

    def release(self, page: str) -> None:
        """Drop one reference."""
        self._references[page] -= 1
        if self._references[page] == 0:
            del self._references[page]
            self._evict()

    def clear_unused(self) -> None:
        """Free the features that no sequence needs."""
        self._evict(0)

    def _evict(self, limit: int = _KEPT_BYTES) -> None:
        if self._bytes <= limit:
            return
        for page in [page for page in self._features if page not in self._references]:
            if self._bytes <= limit:
                break
            self._bytes -= self._features.pop(page).nbytes
