"""What adapter_config.json of PEFT asks for: honoured, known to change nothing at inference, or refused by name."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idefics_cli.engine.files import read_json
from idefics_cli.errors import ModelError, shortened

_FILE = "adapter_config.json"
_SHOWN = 80
_HONOURED = (
    *("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "bias"),
    *("modules_to_save", "init_lora_weights", "auto_mapping", "base_model_name_or_path", "revision"),
)
# How the adapter was trained, or where its tensors go, which their names say too.
_WITHOUT_EFFECT = (
    *("task_type", "inference_mode", "lora_dropout", "peft_version", "runtime_config", "ensure_weight_tying"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "qalora_group_size"),
    *("eva_config", "lora_ga_config", "corda_config", "loftq_config", "velora_config"),
    *("megatron_config", "megatron_core"),
)
# Ways to begin that leave the base as it is; the others train on a changed base, to which the adapter is added.
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
_MODEL_CLASSES = tuple(f"{kind}ForConditionalGeneration" for kind in ("Idefics2", "Idefics3", "SmolVLM"))
_KINDS: Mapping[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("use_dora", "use_rslora"), bool),
    **dict.fromkeys(("rank_pattern", "alpha_pattern"), dict),
    **dict.fromkeys(("base_model_name_or_path", "revision", "bias"), str),
    "modules_to_save": list,
    "lora_alpha": (int, float),
}


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What of an adapter's settings says how its tensors are merged."""

    base: str | None
    """The checkpoint that it was trained on, as it was named there."""
    revision: str | None
    """Of the base."""
    use_dora: bool
    use_rslora: bool
    bias: str
    modules_to_save: tuple[str, ...]
    """Modules whose weights are replaced."""
    r: int
    lora_alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]

    @classmethod
    def read(cls, folder: Path, name: str) -> AdapterConfig:
        """Read the settings of an adapter.

        Raises:
            ModelError: there are none, they can't be understood, or they ask for what can't be merged.

        """
        if not (folder / _FILE).is_file():
            raise ModelError(f"{name}: {_FILE} is missing in {folder}: not an adapter of PEFT")
        values = read_json(folder / _FILE, name)
        _check(values, name)
        try:
            config = cls(
                values.get("base_model_name_or_path") or None,
                values.get("revision") or None,
                bool(values.get("use_dora")),
                bool(values.get("use_rslora")),
                str(values.get("bias") or "none"),
                tuple(map(str, values.get("modules_to_save") or ())),
                int(values.get("r", 8)),
                float(values.get("lora_alpha", 8)),
                {str(key): int(rank) for key, rank in (values.get("rank_pattern") or {}).items()},
                {str(key): float(alpha) for key, alpha in (values.get("alpha_pattern") or {}).items()},
            )
            config.check_numbers()
        except (TypeError, ValueError, AttributeError, OverflowError, re.error) as error:
            raise ModelError(f"{name}: {_FILE}: {error}") from error
        return config

    def check_numbers(self) -> None:
        """Check what B A is multiplied with; raises ValueError or re.error."""
        if not all(map(math.isfinite, (self.lora_alpha, *self.alpha_pattern.values()))):
            raise ValueError("lora_alpha and alpha_pattern hold numbers: not NaN or infinity")
        if min((self.r, *self.rank_pattern.values())) < 1:
            raise ValueError("r and rank_pattern hold ranks, from 1 on")
        self.scale("any.module")  # the patterns compile, joined as they are used

    def rank(self, module: str) -> int:
        """Return the rank of the update of a module."""
        return int(_matching(self.rank_pattern, module, self.r))

    def scale(self, module: str) -> float:
        """Return what B A is multiplied with for a module: alpha / r, of rsLoRA alpha / sqrt(r)."""
        rank, alpha = self.rank(module), _matching(self.alpha_pattern, module, self.lora_alpha)
        return alpha / (rank**0.5 if self.use_rslora else rank)

    def honoured(self) -> list[object]:
        """Return what can change an answer, as JSON."""
        patterns = [dict(self.rank_pattern), dict(self.alpha_pattern)]
        return [self.use_dora, self.use_rslora, self.r, self.lora_alpha, *patterns]


def _check(values: Mapping[str, Any], name: str) -> None:
    """Refuse what can't be merged; raises ModelError."""
    kind = values.get("peft_type")
    if kind != "LORA":
        raise ModelError(f"{name}: an adapter of type {kind}; LORA adapters (LoRA, rsLoRA, QLoRA, DoRA) can be merged")
    for key, value in values.items():
        if value and key not in _HONOURED and key not in _WITHOUT_EFFECT:
            raise ModelError(f"{name}: the adapter asks for {key} {_short(value)}, which can't be merged")
    start = values.get("init_lora_weights")
    if start not in _PLAIN_STARTS:
        raise ModelError(
            f"{name}: init_lora_weights {_short(start)}: an adapter of a changed base; convert it to plain LoRA with "
            "PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    # PEFT writes the class that was trained here when it was given no task type.
    mapping = values.get("auto_mapping")
    if mapping and (not isinstance(mapping, dict) or mapping.get("base_model_class") not in _MODEL_CLASSES):
        classes = ", ".join(_MODEL_CLASSES)
        raise ModelError(f"{name}: auto_mapping {_short(mapping)}: an adapter of another class than {classes}")
    if values.get("bias", "none") not in (None, "none", "all", "lora_only"):
        raise ModelError(f"{name}: bias {_short(values['bias'])} is none, all or lora_only")
    for key, kind_of_value in _KINDS.items():
        if values.get(key) is not None and not isinstance(values[key], kind_of_value):
            raise ModelError(f"{name}: {_FILE}: {key} {_short(values[key])} is of the wrong kind")
    if not isinstance(values.get("r", 8), int) or values.get("r", 8) < 1:
        raise ModelError(f"{name}: {_FILE}: r {_short(values['r'])} is not a rank")
    for key in (*(values.get("rank_pattern") or ()), *(values.get("alpha_pattern") or ())):
        try:
            re.compile(key)
        except (re.error, TypeError) as error:
            raise ModelError(f"{name}: {_FILE}: the pattern {_short(key)}: {error}") from error


def _matching(patterns: Mapping[str, float], module: str, default: float) -> float:
    """Return the value of the first pattern that matches the end of a module's name, as PEFT does."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _short(value: object) -> str:
    return shortened(str(value), _SHOWN)
