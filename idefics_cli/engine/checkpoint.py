"""Finds a checkpoint and reads what stands beside its weights: a hub id, a folder, or the embedded tiny model.

Only safetensors are taken, and never code. Torch is not imported here, so that a run that asks nothing needs none.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idefics_cli.config import TINY_MODEL, AdapterBase, ModelSettings
from idefics_cli.engine import hub
from idefics_cli.engine.adapter import Adapter, open_adapter
from idefics_cli.engine.base_check import check_base
from idefics_cli.engine.files import TensorHeader, digest_of, read_headers, read_json
from idefics_cli.errors import ModelError

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
    adapter: Adapter | None = None
    """Merged into the weights while they are loaded."""

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
            files_of = read_json(index, self.name).get("weight_map")
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
            found |= read_headers(file, self.name)
        return found

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
    name = settings.model
    folder = find_locally(settings) or hub.find_or_download(_wanted(settings))
    checkpoint = read_folder(name, folder)
    if settings.adapter is None:
        return checkpoint
    adapter = open_adapter(settings.adapter)
    if settings.adapter_base is AdapterBase.SAME:
        check_base(adapter, name, settings.revision, folder)
    return dataclasses.replace(checkpoint, adapter=adapter)


def read_folder(name: str, folder: Path) -> Checkpoint:
    """Read the settings of a checkpoint in a folder.

    Raises:
        ModelError: it is not complete, or damaged.

    """
    if (folder / "adapter_config.json").is_file():
        # Where transformers runs it, an adapter beside weights would be taken up without being asked for.
        if not (folder / "config.json").is_file():
            raise ModelError(f"{name}: an adapter, not a checkpoint: name its base, and --adapter {name}")
        raise ModelError(f"{name}: adapter_config.json beside weights: move the adapter to a folder for --adapter")
    for required in ("config.json", "tokenizer.json"):
        if not (folder / required).is_file():
            raise ModelError(f"{name}: {required} is missing in {folder}")
    config = read_json(folder / "config.json", name)
    quantization = config.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise ModelError(f"{name}: weights quantized by {method} can't be loaded; use the unquantized checkpoint")
    # Saved by version 5 as one file, before as two, the image processor's under its own name.
    processor = read_json(folder / "processor_config.json", name, required=False)
    images = read_json(folder / "preprocessor_config.json", name, required=False)
    own = processor.get("image_processor") or {}
    if not isinstance(own, dict):
        raise ModelError(f"{name}: processor_config.json: image_processor is not a JSON object")
    return Checkpoint(
        name,
        folder,
        config,
        read_json(folder / "generation_config.json", name, required=False),
        {**images, **processor, **own},
        read_json(folder / "tokenizer_config.json", name, required=False),
        _chat_template(folder, processor, name),
    )


def find_locally(settings: ModelSettings) -> Path | None:
    """Return the folder of a checkpoint on this machine; None where a hub id has to be downloaded.

    Raises:
        ModelError: the name is neither a folder that is there nor a hub id.

    """
    if settings.model == TINY_MODEL:
        return samples_folder() / _TINY_FOLDER
    return hub.find_locally(_wanted(settings))


def _wanted(settings: ModelSettings) -> hub.Wanted:
    name = settings.model
    near = f"; did you mean {TINY_MODEL!r}?" if name.lower().strip() == TINY_MODEL else ""
    return hub.Wanted(
        name,
        settings.revision,
        "checkpoint",
        "--model",
        _FILES,
        lambda folder: read_folder(name, folder).weight_files(),
        near,
    )


def _chat_template(folder: Path, processor: Mapping[str, Any], name: str) -> str | None:
    """Return the template of chat turns, wherever a version of transformers saved it; base checkpoints have none."""
    plain = folder / "chat_template.jinja"
    if plain.is_file():
        return plain.read_text(encoding="utf-8")
    saved = read_json(folder / "chat_template.json", name, required=False) or processor
    template = saved.get("chat_template")
    return template if isinstance(template, str) else None
