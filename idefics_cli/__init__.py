"""Batch document visual question answering with Idefics2."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from idefics_cli.session import Session

__version__ = version("idefics-cli")
__all__ = ["Session", "__version__"]


def __getattr__(name: str) -> Any:
    """Import `Session` when it is asked for: page processes do without what it needs."""
    if name == "Session":
        from idefics_cli.session import Session

        return Session
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
