"""Where processor, tokenizer and chat template are: beside the weights, or elsewhere."""

from __future__ import annotations

from pathlib import Path

from idefics_cli.config import DEFAULT_MODEL
from idefics_cli.engine.hub import Wanted, find_or_download
from idefics_cli.errors import ModelError

_FILES = ("*.json", "*.jinja")


def processor_folder(name: str, folder: Path, processor: str | None) -> Path:
    """Return the folder of processor and tokenizer; raises ModelError where it lacks them."""
    if processor is None:
        way = f": take them from elsewhere, for example with --processor {DEFAULT_MODEL}"
        check_processor(name, folder, way)
        return folder

    def check(found: Path) -> None:
        check_processor(processor, found)

    found = find_or_download(Wanted(processor, None, "processor", "--processor", _FILES, check))
    check(found)
    return found


def check_processor(name: str, folder: Path, way_out: str = "") -> None:
    """Refuse a folder that lacks processor or tokenizer; raises ModelError."""
    missing = [] if (folder / "tokenizer.json").is_file() else ["tokenizer.json"]
    if not any((folder / f"{start}processor_config.json").is_file() for start in ("", "pre")):
        missing.append("processor_config.json (or preprocessor_config.json)")
    if missing:
        raise ModelError(f"{name}: {' and '.join(missing)} is missing in {folder}{way_out}")
