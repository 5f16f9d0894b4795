"""Checkpoints whose weights are stored in fewer bits: which formats are read, and the shapes of what they hold."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from idefics_cli.config import Quantize
from idefics_cli.engine.awq_format import WORD_LEVELS, AwqFormat
from idefics_cli.engine.files import TensorHeader, read_integers
from idefics_cli.errors import ModelError

GROUP = 128
"""Inputs that share a scale in int8 and int4."""
_LINEAR = "Linear"
_PATTERN = "re:"
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
    targets: tuple[str, ...] = (_LINEAR,)
    """What is quantized: classes of modules, their names, or `re:` and a pattern that these begin with."""
    ignore: tuple[str, ...] = ()
    """What of it is not, likewise."""

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
                targets = _patterns(group.get("targets"), "targets", name)
                return cls(kind, targets, _patterns(values.get("ignore") or [], "ignore", name))
        raise ModelError(
            f"{name}: weights quantized by compressed-tensors as {values.get('format')} {weights} can't be loaded; "
            "those that idefics-cli prepare writes can"
        )

    def settings(self, ignored: Sequence[str]) -> dict[str, Any]:
        """Return the `quantization_config` of this format; `ignored` are modules that are not quantized."""
        form, scheme = _SCHEMES[self.kind]
        group = {
            "targets": [_LINEAR],
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
        of_word = 4 if self.kind is Quantize.INT8 else WORD_LEVELS
        parts: dict[str, tuple[str, tuple[int, ...]]] = {}
        parts |= {"weight_packed": ("I32", (outputs, inputs // of_word)), "weight_scale": ("F16", (outputs, groups))}
        parts["weight_shape"] = ("I64", (2,))
        if self.kind is Quantize.INT4:
            parts["weight_zero_point"] = ("I32", (-(-outputs // WORD_LEVELS), groups))
        return parts

    def weight_shapes(self, headers: Mapping[str, TensorHeader], name: str) -> dict[str, tuple[int, ...]]:
        """Return the shapes of weights as they are loaded; see `AwqFormat.weight_shapes`."""
        shapes: dict[str, tuple[int, ...]] = {}
        for key, header in headers.items():
            module, _, part = key.rpartition(".")
            if part == "weight_packed":
                of_word = 4 if self.kind is Quantize.INT8 else WORD_LEVELS
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
            self._check(module, shape, headers, name)
            shapes[f"{module}.weight"] = shape
        return shapes

    def _check(self, module: str, shape: tuple[int, ...], headers: Mapping[str, TensorHeader], name: str) -> None:
        """Raise ModelError where the settings, or the shape beside the words, contradict a weight's tensors."""
        for key, patterns, is_wanted in (("targets", self.targets, True), ("ignore", self.ignore, False)):
            if any(map(_names(module), patterns)) != is_wanted:
                what = "leaves it out" if is_wanted else "names it"
                raise ModelError(
                    f"{name}: the weights of {module} are quantized, but {key} in quantization_config {what}"
                )
        if self.kind is not Quantize.FP8:
            said = tuple(read_integers(headers[f"{module}.weight_shape"], name))
            if said != shape:
                raise ModelError(f"{name}: {module}.weight_shape is {said}, where its words are {shape}")


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


def _patterns(values: object, key: str, name: str) -> tuple[str, ...]:
    """Return what names modules; raises ModelError where it is no list of names and patterns."""
    try:
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise ValueError(f"{values!r} is no list of names")
        for value in values:
            re.compile(value.removeprefix(_PATTERN))
    except (ValueError, re.error, RecursionError, OverflowError) as error:
        raise ModelError(f"{name}: quantization_config: {key}: {error}") from error
    return tuple(values)


def _names(module: str) -> Callable[[str], bool]:
    """Return what says whether a class, name or pattern stands for a module of class Linear."""

    def names(value: str) -> bool:
        if value.startswith(_PATTERN):
            return re.match(value.removeprefix(_PATTERN), module) is not None
        return value in (_LINEAR, module)

    return names
