"""Weights of 4 bits in the words of AWQ: which layouts are read, and the shapes of what they hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from idefics_cli.engine.files import TensorHeader
from idefics_cli.errors import ModelError

_VALUES: Mapping[str, tuple[Any, ...]] = {
    # what of an AWQ configuration says how words are to be read, and the values that are
    "bits": (4,),
    "w_bit": (4,),
    "zero_point": (True,),
    "version": ("gemm", "GEMM"),
    "format": ("gemm",),
    "checkpoint_format": ("gemm",),
    "pack_dtype": ("int32",),
    "sym": (False, None),
    "desc_act": (False, None),
    "lm_head": (False, None),
}
# What is quantized is seen from the tensors; the others tell other programs how to run it.
_WITHOUT_EFFECT = (
    *("quant_method", "group_size", "q_group_size", "modules_to_not_convert", "backend", "do_fuse", "modules_to_fuse"),
    *("fuse_max_seq_len", "exllama_config", "meta"),
)
WORD_LEVELS = 8
"""Levels of 4 bits in an int32."""


@dataclass(frozen=True, slots=True)
class AwqFormat:
    """4-bit words in the GEMM layout.

    Of each product: int32 words (in, out / 8) and zeros (groups, out / 8), float16 scales (groups, out).
    """

    group_size: int
    """Inputs that share a scale; -1 for all."""

    @classmethod
    def of(cls, values: Mapping[str, Any], name: str) -> AwqFormat:
        """Read a checkpoint's `quantization_config`.

        Raises:
            ModelError: its words are laid out in another way.

        """
        for key, value in values.items():
            allowed = _VALUES.get(key)
            if (value not in allowed) if allowed else (value and key not in _WITHOUT_EFFECT):
                raise ModelError(
                    f"{name}: AWQ weights with {key} {value} can't be loaded; those of 4 bits, GEMM layout can"
                )
        size = values.get("group_size", values.get("q_group_size", 128))
        if not isinstance(size, int) or isinstance(size, bool) or not (size == -1 or size > 0):
            raise ModelError(f"{name}: AWQ weights with group_size {size}")
        return cls(size)

    def weight_shapes(self, headers: Mapping[str, TensorHeader], name: str) -> dict[str, tuple[int, ...]]:
        """Return the shapes of weights, unpacked, by the names that they have in checkpoints that are not quantized.

        Raises:
            ModelError: words without zeros or scales, or of shapes that don't go together.

        """
        shapes: dict[str, tuple[int, ...]] = {}
        for key, header in headers.items():
            module, _, part = key.rpartition(".")
            if part in ("qzeros", "scales") and f"{module}.qweight" in headers:
                continue
            if part != "qweight":
                shapes[key] = header.shape
                continue
            inputs, words = header.shape if len(header.shape) == 2 else (0, 0)
            groups = 1 if self.group_size == -1 else inputs // self.group_size
            wanted = {"qweight": ("I32", (inputs, words)), "qzeros": ("I32", (groups, words))}
            wanted["scales"] = ("F16", (groups, WORD_LEVELS * words))
            for other, (dtype, shape) in wanted.items():
                found = headers.get(f"{module}.{other}")
                if found is None or (found.dtype, found.shape) != (dtype, shape) or not inputs * words * groups:
                    given = "missing" if found is None else f"{found.dtype} {found.shape}"
                    raise ModelError(
                        f"{name}: {module}.{other} is {given}, where its AWQ words ask for {dtype} {shape}"
                    )
            shapes[f"{module}.weight"] = (WORD_LEVELS * words, inputs)
        return shapes
