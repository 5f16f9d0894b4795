"""Adapters of the PEFT format: what they change, read from their settings and headers; torch is not needed for that.

LoRA (Hu et al., 2021), rsLoRA (Kalajdzievski, 2023) and DoRA (Liu et al., 2024) are taken; QLoRA is LoRA that was
trained on a quantized base. Nothing that an adapter asks for is left out: what can't be merged is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from idefics_cli.engine.adapter_config import AdapterConfig
from idefics_cli.engine.files import digest_of, read_headers
from idefics_cli.engine.hub import Wanted, find_or_download
from idefics_cli.errors import ModelError

_FILES = ("adapter_config.json", "adapter_model.safetensors")
_PREFIX = "base_model.model."
_PART = re.compile(
    r"(?P<module>.+?)\.(?:(?P<a>lora_A\.weight|lora_embedding_A)|(?P<b>lora_B\.weight|lora_embedding_B)"
    r"|(?P<magnitude>lora_magnitude_vector(?:\.weight)?))"
)
_DTYPES = ("F64", "F32", "F16", "BF16")


@dataclass(slots=True)
class Update:
    """What an adapter does to one weight: the names of its tensors, None for those that it lacks.

    A replacement takes the place of the weight; B A times the scale is added; the magnitude, DoRA's, then becomes the
    norm of each output.
    """

    replacement: str | None = None
    a: str | None = None
    """(rank, in ...); of an embedding (rank, rows)."""
    b: str | None = None
    """(out, rank); of an embedding (width, rank)."""
    magnitude: str | None = None
    """One number for each output."""
    scale: float = 0.0
    is_embedding: bool = False
    """Whether its weight is used by rows: B A is its transpose."""


class Adapter:
    """An adapter in a folder."""

    def __init__(self, name: str, folder: Path) -> None:
        """Read its settings and the headers of its weights.

        Raises:
            ModelError: it is not complete, damaged, or of a kind that can't be merged.

        """
        self.name = name
        self.config = AdapterConfig.read(folder, name)
        self.file = folder / _FILES[1]
        if not self.file.is_file():
            pickle = folder / "adapter_model.bin"
            hint = f"; {pickle.name} is a pickle, which is never loaded: save it anew with safe_serialization"
            raise ModelError(f"{name}: {self.file.name} is missing in {folder}{hint if pickle.is_file() else ''}")
        self.headers = read_headers(self.file, name)
        """Of its tensors, by their names in the file."""
        self.updates: Mapping[str, Update] = self._updates()
        """By the name of the weight in the checkpoint."""

    def digest(self) -> str:
        """Return a digest of the content: what is honoured of the settings, and the weights."""
        return digest_of(self.config.honoured(), {self.file: self.headers})

    def check(self, shapes: Mapping[str, tuple[int, ...]], tied: Collection[str]) -> None:
        """Check that every part has its weight in the checkpoint, of the shape that it needs.

        Args:
            shapes: of the checkpoint's weights.
            tied: weights that are used twice, as embedding and as head, which an adapter changes in one place only.

        Raises:
            ModelError: a part hits no weight, or one of another shape.

        """
        for name, update in self.updates.items():
            if name in tied:
                raise ModelError(
                    f"{self.name}: the adapter changes {name}, which the checkpoint ties to another weight"
                )
            if name not in shapes:
                raise ModelError(f"{self.name}: the adapter changes {name}, which the checkpoint does not have")
            self._check_shapes(name, update, shapes[name])

    def _check_shapes(self, name: str, update: Update, shape: tuple[int, ...]) -> None:
        """Compare the shapes of an update with that of its weight; raises ModelError."""
        wanted: dict[str, tuple[int, ...]] = {}
        if update.replacement is not None:
            wanted[update.replacement] = shape
        if update.a is not None and update.b is not None:
            if len(shape) < 2:
                raise ModelError(f"{self.name}: the adapter changes {name} as a product, which it is not")
            rank = self.config.rank(_module(name))
            outputs, inputs = (shape[1], shape[:1]) if update.is_embedding else (shape[0], shape[1:])
            wanted[update.a], wanted[update.b] = (rank, *inputs), (outputs, rank)
            if update.magnitude is not None:
                wanted[update.magnitude] = (outputs,)
        for tensor, expected in wanted.items():
            given = self.headers[tensor].shape
            # Of a convolution, lora_B is (out, rank, 1, 1) and the magnitude (1, out, 1, 1).
            allowed = [expected, (*expected, 1, 1), (1, *expected, 1, 1)]
            if given not in (allowed[:1] if tensor == update.replacement else allowed):
                raise ModelError(
                    f"{self.name}: {tensor} has the shape {given}, where {name} of the checkpoint and the adapter's "
                    f"rank ask for {expected}: an adapter of another base?"
                )

    def _updates(self) -> dict[str, Update]:
        """Gather the tensors of each weight.

        Raises:
            ModelError: there are none, or a weight lacks a part.

        """
        updates: dict[str, Update] = {}
        for key, header in self.headers.items():
            if not key.startswith(_PREFIX):
                raise ModelError(f"{self.name}: a weight named {key}, where an adapter of PEFT has {_PREFIX}...")
            if header.dtype not in _DTYPES:
                raise ModelError(f"{self.name}: {key} is stored as {header.dtype}; an adapter's weights are {_DTYPES}")
            self._add(updates, key)
        for name, update in updates.items():
            self._check_whole(name, update)
        if not updates:
            raise ModelError(f"{self.name}: the adapter has no weights")
        for module in self.config.modules_to_save:
            if not any(f".{module}." in f".{name}" for name, update in updates.items() if update.replacement):
                raise ModelError(f"{self.name}: modules_to_save names {module}, for which the adapter has no weights")
        return updates

    def _add(self, updates: dict[str, Update], key: str) -> None:
        """Note a tensor of the adapter as a part of the update of its weight."""
        name = key.removeprefix(_PREFIX)
        match = _PART.fullmatch(name)
        if match is None:
            if ".lora_" in name:
                raise ModelError(f"{self.name}: {key} is a part of an adapter that can't be merged")
            name = name.replace(".base_layer.", ".")
            updates.setdefault(name, Update()).replacement = key
            return
        update = updates.setdefault(f"{match['module']}.weight", Update())
        update.is_embedding |= "lora_embedding" in name
        update.scale = self.config.scale(match["module"])
        for part in ("a", "b", "magnitude"):
            if match[part]:
                setattr(update, part, key)

    def _check_whole(self, name: str, update: Update) -> None:
        """Refuse an update that lacks a part, or has one that the settings do not speak of; raises ModelError."""
        if (update.a is None) != (update.b is None):
            raise ModelError(f"{self.name}: the adapter has one of lora_A and lora_B for {name}, and lacks the other")
        has_magnitude = update.magnitude is not None
        if has_magnitude != (update.a is not None and self.config.use_dora):
            words = "has a magnitude" if has_magnitude else "has no magnitude"
            raise ModelError(f"{self.name}: the adapter {words} for {name}, and use_dora is {self.config.use_dora}")


def open_adapter(name: str) -> Adapter:
    """Find an adapter, a folder or a hub id, downloading what is missing, and read it.

    Raises:
        ModelError: no such adapter, or one that can't be merged.

    """
    wanted = Wanted(name, None, "adapter", "--adapter", _FILES, lambda folder: Adapter(name, folder))
    return Adapter(name, find_or_download(wanted))


def _module(weight: str) -> str:
    return weight.removesuffix(".weight")
