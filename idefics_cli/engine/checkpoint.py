"""Finds a checkpoint and reads what stands beside its weights: a hub id, a folder, or the embedded tiny model.

Only safetensors are taken, and never code. Torch is not imported here, so that a run that asks nothing needs none.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.resources
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idefics_cli.config import TINY_MODEL, ModelSettings
from idefics_cli.engine.device import free_host_memory
from idefics_cli.errors import ModelError, first_line

_TINY_FOLDER = "tiny-idefics2"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_FILES = ("*.json", "*.jinja", "*.safetensors")
_SAMPLE = 4096  # bytes of each tensor that enter the digest
_HUB_TIMEOUT = 10.0  # seconds for the hub's first answer


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

    @property
    def tokenizer_file(self) -> Path:
        """The tokenizer, as the tokenizers library reads it."""
        return self.folder / "tokenizer.json"

    def weight_files(self) -> tuple[Path, ...]:
        """Return the files with weights.

        Raises:
            ModelError: there are none, or one of them is missing.

        """
        index = self.folder / "model.safetensors.index.json"
        if index.is_file():
            files_of = _read_json(index, self.name).get("weight_map")
            if not isinstance(files_of, dict):
                raise ModelError(f"{self.name}: {index.name} names no weights")
            names = sorted({Path(str(name)).name for name in files_of.values()})
        else:
            names = ["model.safetensors"]
        files = tuple(self.folder / name for name in names)
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            others = sorted(file.name for file in self.folder.glob("*.bin"))
            hint = f"; {others[0]} is a pickle, which is never loaded: convert it to safetensors" if others else ""
            raise ModelError(f"{self.name}: {missing[0]} is missing in {self.folder}{hint}")
        return files

    def tensors(self) -> dict[str, TensorHeader]:
        """Return what the files' headers say of each tensor.

        Raises:
            ModelError: a file is damaged.

        """
        found: dict[str, TensorHeader] = {}
        for file in self.weight_files():
            found |= _read_header(file, self.name)
        return found

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
        digest = hashlib.blake2b(digest_size=16)
        settings = (self.config, self.generation_config, self.processor_config, self.chat_template)
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
        digest.update(self.tokenizer_file.read_bytes())
        for file in self.weight_files():
            headers = _read_header(file, self.name)
            with file.open("rb") as stream:
                for name, header in sorted(headers.items()):
                    digest.update(f"{name} {header.dtype} {header.shape}".encode())
                    stream.seek(header.start)
                    digest.update(stream.read(min(_SAMPLE, header.size)))
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """Where a tensor lies in its file."""

    file: Path
    dtype: str
    """As safetensors names it: F32, BF16 ..."""
    shape: tuple[int, ...]
    start: int
    """Offset in the file, in bytes."""
    size: int
    """Bytes."""


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
    name = settings.model
    folder = find_locally(settings)
    if folder is None:
        folder = _download(name, settings.revision)
    return read_folder(name, folder)


def read_folder(name: str, folder: Path) -> Checkpoint:
    """Read the settings of a checkpoint in a folder.

    Raises:
        ModelError: it is not complete, or damaged.

    """
    for required in ("config.json", "tokenizer.json"):
        if not (folder / required).is_file():
            raise ModelError(f"{name}: {required} is missing in {folder}")
    config = _read_json(folder / "config.json", name)
    quantization = config.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise ModelError(f"{name}: weights quantized by {method} can't be loaded; use the unquantized checkpoint")
    # Saved by version 5 as one file, before as two, the image processor's under its own name.
    processor = _read_json(folder / "processor_config.json", name, required=False)
    images = _read_json(folder / "preprocessor_config.json", name, required=False)
    own = processor.get("image_processor") or {}
    if not isinstance(own, dict):
        raise ModelError(f"{name}: processor_config.json: image_processor is not a JSON object")
    return Checkpoint(
        name,
        folder,
        config,
        _read_json(folder / "generation_config.json", name, required=False),
        {**images, **processor, **own},
        _read_json(folder / "tokenizer_config.json", name, required=False),
        _chat_template(folder, processor, name),
    )


def find_locally(settings: ModelSettings) -> Path | None:
    """Return the folder of a checkpoint on this machine; None where a hub id has to be downloaded.

    Raises:
        ModelError: the name is neither a folder that is there nor a hub id.

    """
    name = settings.model
    if name == TINY_MODEL:
        return samples_folder() / _TINY_FOLDER
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if name.startswith((".", "~", os.sep)) or path.exists():
        raise ModelError(f"{name}: {'not a folder' if path.exists() else 'no such folder'}")
    if not _HUB_ID.fullmatch(name):
        near = f"; did you mean {TINY_MODEL!r}?" if name.lower().strip() == TINY_MODEL else ""
        raise ModelError(f"{name}: neither a folder here nor a hub id (owner/name){near}")
    return _find_in_cache(name, settings.revision)


def _find_in_cache(name: str, revision: str | None) -> Path | None:
    """Return the snapshot in the hub's cache, if all its files are there."""
    from huggingface_hub import snapshot_download  # not needed for a folder
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
        read_folder(name, folder).weight_files()
    except (LocalEntryNotFoundError, ModelError, OSError):
        return None
    return folder


def _download(name: str, revision: str | None) -> Path:
    """Download a checkpoint into the hub's cache.

    Raises:
        ModelError: the hub can't be reached, or has no such checkpoint.

    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    place = f"{name}{f' at revision {revision}' if revision else ''}"
    try:
        # One request with a time limit first: the library itself tries an unreachable hub for minutes.
        HfApi().model_info(name, revision=revision, timeout=_HUB_TIMEOUT)
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(_FILES)))
    except HFValidationError as error:
        raise ModelError(f"{name}: not a hub id: {first_line(error)}") from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403, 404):
            words = "the hub has no such checkpoint, or it asks for a login (hf auth login)"
            raise ModelError(f"{place}: {words}") from error
        raise ModelError(f"{place}: the hub failed: {first_line(error)}") from error
    except Exception as error:  # the kinds of connection errors differ between versions of the library
        raise ModelError(
            f"{place}: not on this machine, and the hub can't be reached ({type(error).__name__}); download it where "
            f"there is a network (hf download {name}) and name the folder: --model FOLDER"
        ) from error


def _chat_template(folder: Path, processor: Mapping[str, Any], name: str) -> str | None:
    """Return the template of chat turns, wherever a version of transformers saved it; base checkpoints have none."""
    plain = folder / "chat_template.jinja"
    if plain.is_file():
        return plain.read_text(encoding="utf-8")
    saved = _read_json(folder / "chat_template.json", name, required=False) or processor
    template = saved.get("chat_template")
    return template if isinstance(template, str) else None


def _read_json(path: Path, name: str, *, required: bool = True) -> dict[str, Any]:
    if not required and not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{name}: {path.name} can't be read: {first_line(error)}") from error
    if not isinstance(values, dict):
        raise ModelError(f"{name}: {path.name} is not a JSON object")
    return values


def _read_header(file: Path, name: str) -> dict[str, TensorHeader]:
    """Read the header of a safetensors file: its length in 8 bytes, then JSON, then the tensors."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            entries = json.loads(stream.read(length) if length < file.stat().st_size else b"")
            total = file.stat().st_size - 8 - length
        headers = {}
        for tensor, entry in entries.items():
            if tensor != "__metadata__":
                start, end = entry["data_offsets"]
                if end > total:
                    raise ValueError(f"{tensor} lies beyond the end of the file")
                headers[tensor] = TensorHeader(
                    file, entry["dtype"], tuple(entry["shape"]), 8 + length + start, end - start
                )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{name}: {file.name} is damaged: {first_line(error)}") from error
    return headers
