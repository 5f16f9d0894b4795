"""Writes a checkpoint anew: adapter merged, weights cast or quantized, in a folder that this and other programs load.

Weights go from file to file tensor by tensor: what is in memory at once is one of them.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from idefics_cli.config import Dtype, ModelSettings, Quantize
from idefics_cli.engine.checkpoint import GENERATION_CONFIG, Checkpoint, open_checkpoint
from idefics_cli.engine.device import choose_device
from idefics_cli.engine.digests import MARK, is_prepared, strangers, write_mark
from idefics_cli.engine.families import native_family_of
from idefics_cli.engine.native.compressed import to_parts
from idefics_cli.engine.native.ops import torch_ops
from idefics_cli.engine.native.ops.groupwise import quantize as quantize_groups
from idefics_cli.engine.native.torch_device import torch_device
from idefics_cli.engine.native.weights import CheckpointSource
from idefics_cli.engine.quantization import GROUP, CompressedFormat
from idefics_cli.engine.shards import Planned, write_shards
from idefics_cli.errors import ModelError, OutputError, UsageError

_COPIED = ("*.json", "*.jinja", "tokenizer.model")
_NOT_COPIED = ("config.json", GENERATION_CONFIG, MARK, "adapter_config.json", "model.safetensors.index.json")
_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
# Their products with the context are joined with a norm's weight when they are loaded, which packed weights can't be.
_JOINED_WITH_NORM = tuple(f"self_attn.{part}_proj" for part in "kv")


@dataclass(frozen=True, slots=True)
class Prepared:
    """What was written."""

    folder: Path
    weights: int
    """Bytes."""
    quantize: Quantize
    dtype: str


def prepare(
    settings: ModelSettings,
    folder: Path,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Prepared:
    """Read a checkpoint, downloading what is missing, and write it to a folder.

    The folder comes into being whole, by renaming; what was there stays until then.

    Args:
        settings: checkpoint, adapter, processor, dtype (auto: bfloat16), format of weights, and device, which computes.
        folder: that is made; one that is there has to be a prepared one.
        overwrite: whether such a one is replaced.
        progress: called with the bytes that are written, and all.

    Raises:
        ModelError: the checkpoint can't be read, or its adapter not merged.
        OutputError: the folder is there, or can't be written.
        UsageError: a format of bitsandbytes, which is none of files.

    """
    if not settings.quantize.is_native:
        raise UsageError(
            f"--quantize {settings.quantize} is applied as weights are loaded: prepare in bfloat16, then run with it"
        )
    _check_folder(folder, overwrite=overwrite)
    checkpoint = open_checkpoint(settings)
    shapes = _weight_shapes(checkpoint, settings)
    dtype = "bfloat16" if settings.dtype is Dtype.AUTO else str(settings.dtype)
    writer = _Writer(checkpoint, settings, shapes, dtype)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            written = writer.write(temporary, progress)
            _check_folder(folder, overwrite=overwrite)  # again: minutes have passed
            _rename(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror or error}") from error
    return Prepared(folder, written, settings.quantize, dtype)


class _Writer:
    """A checkpoint on its way to a folder."""

    def __init__(
        self, checkpoint: Checkpoint, settings: ModelSettings, shapes: Mapping[str, tuple[int, ...]], dtype: str
    ) -> None:
        self._checkpoint, self._settings, self._dtype = checkpoint, settings, dtype
        self._format = None if settings.quantize is Quantize.NONE else CompressedFormat(settings.quantize)
        self._source = CheckpointSource(checkpoint, torch.float32, torch_device(choose_device(settings), None))
        self._shapes = shapes
        self._quantized = frozenset(name for name in self._shapes if self._format and self._is_quantized(name))

    def write(self, folder: Path, progress: Callable[[int, int], None] | None) -> int:
        """Write everything to an empty folder; returns the bytes of the weights.

        Raises:
            OutputError: there is no room for it.

        """
        planned = [tensor for name in sorted(self._shapes) for tensor in self._planned(name)]
        total = sum(tensor.bytes for tensor in planned)
        free = shutil.disk_usage(folder).free
        if free < total:
            raise OutputError(f"{folder.parent}: {total / 1e9:.2g} GB are needed and {free / 1e9:.2g} GB are free")
        write_shards(folder, planned, self._tensors, progress)
        self._write_settings(folder)
        origin = {"model": self._settings.model, "revision": self._settings.revision}
        origin |= {"adapter": self._settings.adapter, "content": self._checkpoint.digest()}
        write_mark(folder, {**origin, "quantize": str(self._settings.quantize), "dtype": self._dtype})
        return total

    def _is_quantized(self, name: str) -> bool:
        """Whether a weight is a product that the format takes; of fp8, whose inputs are fp8 too, all do."""
        shape, module = self._shapes[name], name.removesuffix(".weight")
        is_product = len(shape) == 2 and module.endswith(("_proj", "mlp.fc1", "mlp.fc2"))
        is_joined = "perceiver_resampler" in module and module.endswith(_JOINED_WITH_NORM)
        is_taken = self._settings.quantize is Quantize.FP8 or (shape[-1] % GROUP == 0 and not is_joined)
        return is_product and is_taken

    def _planned(self, name: str) -> list[Planned]:
        """Return what is written of a weight."""
        shape = self._shapes[name]
        if self._format is None or name not in self._quantized:
            return [Planned(name, name, _DTYPES[self._dtype], shape)]
        module = name.removesuffix("weight")
        return [Planned(name, module + end, *part) for end, part in self._format.parts(shape).items()]

    def _tensors(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of a weight: read, adapted, and cast or quantized."""
        quantize = self._settings.quantize
        if name not in self._quantized:
            return {name: self._source(name).to(getattr(torch, self._dtype))}
        stored = self._source.quantized(name) if self._source.quantize is quantize else None
        if stored is None:
            weight = self._source(name)
            is_fp8 = quantize is Quantize.FP8
            stored = (
                torch_ops.quantize(weight) if is_fp8 else quantize_groups(weight, 4 if quantize is Quantize.INT4 else 8)
            )
        return {name.removesuffix("weight") + end: tensor for end, tensor in to_parts(stored).items()}

    def _write_settings(self, folder: Path) -> None:
        """Write config.json, and copy what lies beside the weights, or comes from the processor's folder."""
        checkpoint = self._checkpoint
        beside = checkpoint.tokenizer_file.parent
        for pattern in _COPIED:
            for file in beside.glob(pattern):
                if file.name not in _NOT_COPIED:
                    _copy(file, folder / file.name)
        config = {key: copy.deepcopy(value) for key, value in checkpoint.config.items() if key != "quantization_config"}
        for part in (config, *(value for value in config.values() if isinstance(value, dict))):
            if part is config or part.keys() & {"dtype", "torch_dtype"}:
                part["dtype"] = self._dtype
            part.pop("torch_dtype", None)
        if self._format is not None:
            modules = sorted(name.removesuffix(".weight") for name, shape in self._shapes.items() if len(shape) == 2)
            quantized = {name.removesuffix(".weight") for name in self._quantized}
            config["quantization_config"] = self._format.settings([one for one in modules if one not in quantized])
        _write_json(folder / "config.json", config)
        if checkpoint.generation_config:
            _write_json(folder / GENERATION_CONFIG, dict(checkpoint.generation_config))


def _copy(file: Path, to: Path) -> None:
    """Copy a file that lies beside weights; raises ModelError where it can't be read."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ModelError(f"{file}: {error.strerror or error}") from error
    to.write_bytes(content)


def _weight_shapes(checkpoint: Checkpoint, settings: ModelSettings) -> Mapping[str, tuple[int, ...]]:
    """Return the weights that are written: those that the model has a place for.

    Raises:
        ModelError: some are missing, or not what config.json says, or can't be quantized.

    """
    family, given = native_family_of(checkpoint, "prepare"), checkpoint.weight_shapes()
    if not family.native_gaps:
        family.check_weights(given)
        return family.config.weight_shapes()
    if settings.quantize is not Quantize.NONE:
        gaps = ", ".join(family.native_gaps)
        raise ModelError(f"{settings.model}: --quantize is for what the native engine runs, which does not do {gaps}")
    return given


def _check_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that may not be written; raises OutputError, or UsageError for one without a name."""
    if not folder.name:
        raise UsageError(f"-o takes the name of a new folder: not {folder}")
    if not os.path.lexists(folder):
        return
    if not folder.is_dir() or not is_prepared(folder):
        raise OutputError(f"{folder}: there already, and not a folder that prepare has written")
    if not overwrite:
        raise OutputError(f"{folder}: there already; --overwrite replaces it")
    if folder.is_symlink():
        raise OutputError(f"{folder}: a link; name the folder that it leads to")
    if others := strangers(folder):
        raise OutputError(f"{folder}: holds {others[0]}, which prepare has not written: move it elsewhere first")


def _rename(temporary: Path, folder: Path) -> None:
    """Put a folder that is whole in its place; an older one goes once it has left that place."""
    mask = os.umask(0)
    os.umask(mask)
    temporary.chmod(0o777 & ~mask)
    if not folder.exists():
        temporary.rename(folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    folder.rename(old)
    try:
        temporary.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write_json(path: Path, values: dict[str, object]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
