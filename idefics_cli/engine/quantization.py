"""Checkpoints whose weights are stored in fewer bits: which formats are read, and the shapes of what they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from idefics_cli.config import Quantize
from idefics_cli.engine.files import TensorHeader
from idefics_cli.errors import ModelError

_AWQ_VALUES: Mapping[str, tuple[Any, ...]] = {
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
_AWQ_WITHOUT_EFFECT = (
    *("quant_method", "group_size", "q_group_size", "modules_to_not_convert", "backend", "do_fuse", "modules_to_fuse"),
    *("fuse_max_seq_len", "exllama_config", "meta"),
)
_WORD_LEVELS = 8  # of 4 bits, in an int32
GROUP = 128
"""Inputs that share a scale in int8 and int4."""


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
            allowed = _AWQ_VALUES.get(key)
            if (value not in allowed) if allowed else (value and key not in _AWQ_WITHOUT_EFFECT):
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
            wanted["scales"] = ("F16", (groups, _WORD_LEVELS * words))
            for other, (dtype, shape) in wanted.items():
                found = headers.get(f"{module}.{other}")
                if found is None or (found.dtype, found.shape) != (dtype, shape) or not inputs * words * groups:
                    given = "missing" if found is None else f"{found.dtype} {found.shape}"
                    raise ModelError(
                        f"{name}: {module}.{other} is {given}, where its AWQ words ask for {dtype} {shape}"
                    )
            shapes[f"{module}.weight"] = (_WORD_LEVELS * words, inputs)
        return shapes


_NOTHING: tuple[Any, ...] = (None, False, {}, [], "none")
_GROUPS = {"strategy": "group", "group_size": GROUP}
_SCHEMES: Mapping[Quantize, tuple[str, Mapping[str, Any]]] = {
    # format of compressed-tensors, and what its weights are
    Quantize.INT4: ("pack-quantized", {"num_bits": 4, "type": "int", "symmetric": False, **_GROUPS}),
    Quantize.INT8: ("pack-quantized", {"num_bits": 8, "type": "int", "symmetric": True, **_GROUPS}),
    Quantize.FP8: ("float-quantized", {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}),
}
_FP8_INPUTS = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token", "dynamic": True}


@dataclass(frozen=True, slots=True)
class CompressedFormat:
    """The format of compressed-tensors, of the kinds that `prepare` writes.

    int4 and int8: int32 `weight_packed` (out, in / 8 or in / 4), float16 `weight_scale` (out, groups), of int4 int32
    `weight_zero_point` (out / 8, groups). fp8: float8_e4m3fn `weight`, float32 `weight_scale` (out, 1).
    """

    kind: Quantize

    @classmethod
    def of(cls, values: Mapping[str, Any], name: str) -> CompressedFormat:
        """Read a checkpoint's `quantization_config`.

        Raises:
            ModelError: its weights are quantized in another way.

        """
        groups = values.get("config_groups")
        group = next(iter(groups.values())) if isinstance(groups, dict) and len(groups) == 1 else {}
        weights = group.get("weights") if isinstance(group, dict) else None
        for kind, (form, scheme) in _SCHEMES.items():
            inputs = group.get("input_activations") if isinstance(group, dict) else None
            if (
                values.get("format") == form
                and isinstance(weights, dict)
                and all(weights.get(key) == value for key, value in scheme.items())
                and weights.get("actorder") in _NOTHING
                and (_has(inputs, _FP8_INPUTS) if kind is Quantize.FP8 else inputs in _NOTHING)
                and all(
                    values.get(key) in _NOTHING for key in ("kv_cache_scheme", "sparsity_config", "transform_config")
                )
            ):
                return cls(kind)
        raise ModelError(
            f"{name}: weights quantized by compressed-tensors as {values.get('format')} {weights} can't be loaded; "
            "those that idefics-cli prepare writes can"
        )

    def settings(self, ignored: Sequence[str]) -> dict[str, Any]:
        """Return the `quantization_config` of this format; `ignored` are modules that are not quantized."""
        form, scheme = _SCHEMES[self.kind]
        group = {
            "targets": ["Linear"],
            "weights": {**scheme, "dynamic": False, "observer": "minmax"},
            "input_activations": _FP8_INPUTS if self.kind is Quantize.FP8 else None,
            "output_activations": None,
        }
        return {
            "quant_method": "compressed-tensors",
            "format": form,
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": list(ignored),
            "kv_cache_scheme": None,
        }

    def parts(self, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return dtype and shape of the tensors that stand for a weight (out, in), in the order of their names."""
        outputs, inputs = shape
        if self.kind is Quantize.FP8:
            return {"weight": ("F8_E4M3", shape), "weight_scale": ("F32", (outputs, 1))}
        groups = inputs // GROUP
        of_word = 4 if self.kind is Quantize.INT8 else _WORD_LEVELS
        parts: dict[str, tuple[str, tuple[int, ...]]] = {}
        parts |= {"weight_packed": ("I32", (outputs, inputs // of_word)), "weight_scale": ("F16", (outputs, groups))}
        parts["weight_shape"] = ("I64", (2,))
        if self.kind is Quantize.INT4:
            parts["weight_zero_point"] = ("I32", (-(-outputs // _WORD_LEVELS), groups))
        return parts

    def weight_shapes(self, headers: Mapping[str, TensorHeader], name: str) -> dict[str, tuple[int, ...]]:
        """Return the shapes of weights as they are loaded; see `AwqFormat.weight_shapes`."""
        shapes: dict[str, tuple[int, ...]] = {}
        for key, header in headers.items():
            module, _, part = key.rpartition(".")
            if part == "weight_packed":
                of_word = 4 if self.kind is Quantize.INT8 else _WORD_LEVELS
                shape = (*header.shape[:1], header.shape[-1] * of_word)
            elif part == "weight" and f"{module}.weight_scale" in headers:
                shape = (*header.shape[:1], header.shape[-1])
            else:
                if part not in ("weight_scale", "weight_zero_point", "weight_shape"):
                    shapes[key] = header.shape
                continue
            for other, wanted in self.parts(shape).items():
                found = headers.get(f"{module}.{other}")
                if found is None or (found.dtype, found.shape) != wanted:
                    given = "missing" if found is None else f"{found.dtype} {found.shape}"
                    raise ModelError(f"{name}: {module}.{other} is {given}, where {self.kind} weights ask for {wanted}")
            shapes[f"{module}.weight"] = shape
        return shapes


StoredFormat = AwqFormat | CompressedFormat


def stored_format(config: Mapping[str, Any], name: str) -> StoredFormat | None:
    """Return the format in which a checkpoint's weights are quantized; None where they are not.

    Raises:
        ModelError: it is one that can't be loaded.

    """
    values = config.get("quantization_config")
    if values is None:
        return None
    method = values.get("quant_method") if isinstance(values, dict) else values
    if isinstance(values, dict) and method == "awq":
        return AwqFormat.of(values, name)
    if isinstance(values, dict) and method == "compressed-tensors":
        return CompressedFormat.of(values, name)
    raise ModelError(f"{name}: weights quantized by {method} can't be loaded; use the unquantized checkpoint")


def effective_quantize(quantize: Quantize, stored: StoredFormat | None, name: str) -> Quantize:
    """Return the format in which weights run: that of a prepared folder, or the one that is asked for.

    Raises:
        ModelError: another one is asked for than the folder is prepared in.

    """
    if not isinstance(stored, CompressedFormat):
        return quantize
    if quantize not in (Quantize.NONE, stored.kind):
        raise ModelError(f"{name}: weights prepared in {stored.kind} don't run in {quantize}: leave --quantize out")
    return stored.kind


def _has(values: object, wanted: Mapping[str, Any]) -> bool:
    return isinstance(values, dict) and all(values.get(key) == value for key, value in wanted.items())
