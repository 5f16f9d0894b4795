"""Batch document visual question answering with Idefics2."""

from importlib.metadata import version

__version__ = version("idefics-cli")
