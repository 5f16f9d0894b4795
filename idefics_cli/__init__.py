"""Batch document visual question answering with Idefics2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from idefics_cli.session import Session

    __version__: str

__all__ = ["Session", "__version__"]


def __getattr__(name: str) -> Any:
    """Import what is asked for: page processes and `--help` do without what it needs."""
    if name == "Session":
        from idefics_cli.session import Session

        return Session
    if name == "__version__":
        from importlib.metadata import version

        return version("idefics-cli")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
