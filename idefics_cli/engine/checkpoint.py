"""Finds a checkpoint and reads what stands beside its weights: a hub id, a folder, or the embedded tiny model.

Only safetensors are taken, and never code. Torch is not imported here, so that a run that asks nothing needs none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.resources
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from idefics_cli.config import TINY_MODEL, AdapterBase, ModelSettings
from idefics_cli.engine import hub
from idefics_cli.engine.adapter import Adapter, open_adapter
from idefics_cli.engine.base_check import check_base
from idefics_cli.engine.device import free_host_memory
from idefics_cli.engine.files import TensorHeader, digest_of, read_headers, read_json, reading
from idefics_cli.engine.processor_files import check_processor, processor_folder
from idefics_cli.engine.quantization import CompressedFormat, StoredFormat, stored_format
from idefics_cli.errors import ModelError, UsageError

GENERATION_CONFIG = "generation_config.json"
_TINY_FOLDER = "tiny-idefics2"
_FILES = ("*.json", "*.jinja", "*.safetensors")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder of weights, and the settings in it."""

    name: str
    """As it was asked for."""
    folder: Path
    config: Mapping[str, Any]
    generation_config: Mapping[str, Any]
    processor_config: Mapping[str, Any]
    """Of the image processor and the processor, in one mapping."""
    tokenizer_config: Mapping[str, Any]
    chat_template: str | None
    tokenizer_file: Path
    """The tokenizer, as the tokenizers library reads it."""
    stored: StoredFormat | None = None
    """How weights are quantized in the files; None where they are not."""
    adapter: Adapter | None = None
    """Merged into the weights while they are loaded."""
    image_size: Mapping[str, int] = field(default_factory=dict)
    """In the place of the image processor's `size`, by the user; the digest is without it."""

    def weight_files(self) -> tuple[Path, ...]:
        """Return the files with weights; raises ModelError where there are none, or one of them is missing."""
        return _weight_files(self.name, self.folder)

    def tensors(self) -> dict[str, TensorHeader]:
        """Return what the files' headers say of each tensor.

        Raises:
            ModelError: a file is damaged.

        """
        found: dict[str, TensorHeader] = {}
        for file in self.weight_files():
            headers = read_headers(file, self.name)
            if twice := sorted(found.keys() & headers.keys()):
                raise ModelError(f"{self.name}: {twice[0]} stands in {found[twice[0]].file.name} and in {file.name}")
            found |= headers
        return found

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of weights as they are loaded, by name.

        Raises:
            ModelError: a file is damaged, or parts of quantized weights do not go together.

        """
        headers = self.tensors()
        if self.stored is not None:
            return self.stored.weight_shapes(headers, self.name)
        return {name: header.shape for name, header in headers.items()}

    def read_ahead(self) -> None:
        """Ask the system to bring the weights into memory, where there is room, while torch is being imported."""
        with contextlib.suppress(OSError, ModelError):  # reading will tell
            files, free = self.weight_files(), free_host_memory()
            if hasattr(os, "posix_fadvise") and free and free > sum(file.stat().st_size for file in files):
                for file in files:
                    with file.open("rb") as stream:
                        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    def digest(self) -> str:
        """Return a digest of the content: settings whole, weights by their headers and the start of each tensor.

        New weights under an old path are noticed in milliseconds: training changes every tensor.
        """
        settings = (self.config, self.generation_config, self.processor_config, self.chat_template)
        files = {file: read_headers(file, self.name) for file in self.weight_files()}
        return digest_of(settings, files, self.tokenizer_file)


def samples_folder() -> Path:
    """Return the folder of the samples: inside the installed package, or beside it in a checkout.

    Raises:
        ModelError: the installation lacks it.

    """
    package = Path(str(importlib.resources.files("idefics_cli")))
    for folder in (package / "samples", package.parent / "samples"):
        if (folder / _TINY_FOLDER / "config.json").is_file():
            return folder
    raise ModelError("the embedded samples are missing from this installation; install idefics-cli again")


def open_checkpoint(settings: ModelSettings) -> Checkpoint:
    """Find a checkpoint, downloading what is missing, and read its settings.

    Raises:
        ModelError: no such checkpoint, or one that is not complete.

    """
    with reading(settings.model):
        name = settings.model
        folder = find_locally(settings) or hub.find_or_download(_wanted(settings))
        edges = (("longest_edge", settings.longest_edge), ("shortest_edge", settings.shortest_edge))
        size = {edge: pixels for edge, pixels in edges if pixels is not None}
        checkpoint = dataclasses.replace(read_folder(name, folder, settings.processor), image_size=size)
        if settings.adapter is None:
            return checkpoint
        if isinstance(checkpoint.stored, CompressedFormat):
            raise ModelError(
                f"{name}: --adapter can't be merged into weights in {checkpoint.stored.kind}: prepare it with it"
            )
        adapter = open_adapter(settings.adapter)
        if settings.adapter_base is AdapterBase.SAME:
            check_base(adapter, name, settings.revision, folder)
        return dataclasses.replace(checkpoint, adapter=adapter)


def read_folder(name: str, folder: Path, processor: str | None = None) -> Checkpoint:
    """Read the settings of a checkpoint in a folder.

    Args:
        name: as it was asked for.
        folder: of the weights.
        processor: a folder or hub id that has processor, tokenizer and chat template in the place of the folder, and
            generation settings where the folder has none.

    Raises:
        ModelError: it is not complete, or damaged.

    """
    config = _read_config(name, folder)
    beside = processor_folder(name, folder, processor)
    owner = processor or name
    # Saved by version 5 as one file, before as two, the image processor's under its own name.
    settings = read_json(beside / "processor_config.json", owner, required=False)
    images = read_json(beside / "preprocessor_config.json", owner, required=False)
    own = settings.get("image_processor") or {}
    if not isinstance(own, dict):
        raise ModelError(f"{owner}: processor_config.json: image_processor is not a JSON object")
    generation = next((one for one in (folder, beside) if (one / GENERATION_CONFIG).is_file()), folder)
    return Checkpoint(
        name,
        folder,
        config,
        read_json(generation / GENERATION_CONFIG, name, required=False),
        {**images, **settings, **own},
        read_json(beside / "tokenizer_config.json", owner, required=False),
        _chat_template(beside, settings, owner),
        beside / "tokenizer.json",
        stored_format(config, name),
    )


def _read_config(name: str, folder: Path) -> dict[str, Any]:
    """Read config.json; raises ModelError where it is missing, or is that of an adapter."""
    has_config = (folder / "config.json").is_file()
    if (folder / "adapter_config.json").is_file():
        # Where transformers runs it, an adapter beside weights would be taken up without being asked for.
        if not has_config:
            raise ModelError(f"{name}: an adapter, not a checkpoint: name its base, and --adapter {name}")
        raise ModelError(f"{name}: adapter_config.json beside weights: move the adapter to a folder for --adapter")
    if not has_config:
        raise ModelError(f"{name}: config.json is missing in {folder}")
    return read_json(folder / "config.json", name)


def find_locally(settings: ModelSettings) -> Path | None:
    """Return the folder of a checkpoint on this machine; None where a hub id has to be downloaded.

    Raises:
        ModelError: the name is neither a folder that is there nor a hub id.
        UsageError: a revision is asked for of a folder.

    """
    is_tiny = settings.model == TINY_MODEL
    if settings.revision is not None and (is_tiny or hub.is_folder(settings.model)):
        what = "embedded" if is_tiny else "a folder"
        raise UsageError(f"--revision is for checkpoints of the hub, and {settings.model} is {what}: leave it out")
    if is_tiny:
        return samples_folder() / _TINY_FOLDER
    return hub.find_locally(_wanted(settings))


def _wanted(settings: ModelSettings) -> hub.Wanted:
    name = settings.model

    def check(folder: Path) -> None:
        _read_config(name, folder)
        _weight_files(name, folder)
        if settings.processor is None:
            check_processor(name, folder)

    near = f"; did you mean {TINY_MODEL!r}?" if name.lower().strip() == TINY_MODEL else ""
    return hub.Wanted(
        name,
        settings.revision,
        "checkpoint",
        "--model",
        _FILES,
        check,
        near,
    )


def _weight_files(name: str, folder: Path) -> tuple[Path, ...]:
    """See `Checkpoint.weight_files`."""
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        files_of = read_json(index, name).get("weight_map")
        if not isinstance(files_of, dict):
            raise ModelError(f"{name}: {index.name} names no weights")
        names = sorted({Path(str(file)).name for file in files_of.values()})
    files = tuple(folder / file for file in names)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        others = sorted(file.name for file in folder.glob("*.bin"))
        hint = f"; {others[0]} is a pickle, which is never loaded: convert it to safetensors" if others else ""
        raise ModelError(f"{name}: {missing[0]} is missing in {folder}{hint}")
    return files


def _chat_template(folder: Path, processor: Mapping[str, Any], name: str) -> str | None:
    """Return the template of chat turns, wherever a version of transformers saved it; base checkpoints have none."""
    plain = folder / "chat_template.jinja"
    if plain.is_file():
        return plain.read_text(encoding="utf-8")
    saved = read_json(folder / "chat_template.json", name, required=False) or processor
    template = saved.get("chat_template")
    return template if isinstance(template, str) else None
