"""From a checkpoint to a running engine: weights to the device, its memory planned."""

from __future__ import annotations

from collections.abc import Callable

import torch

from idefics_cli.config import ModelSettings
from idefics_cli.engine.base import EngineInfo
from idefics_cli.engine.checkpoint import Checkpoint
from idefics_cli.engine.device import DeviceChoice, free_host_memory
from idefics_cli.engine.families.base import NativeFamily
from idefics_cli.engine.native.core import EngineCore
from idefics_cli.engine.native.engine import NativeEngine
from idefics_cli.engine.native.memory_plan import KEPT_PAGES, WorkSizes, layers_at_once, plan_memory, weight_bytes
from idefics_cli.engine.native.model_runner import ModelRunner
from idefics_cli.engine.native.torch_device import free_memory, torch_device, wide_dtype
from idefics_cli.engine.native.weights import CheckpointSource, RandomSource, Source, Weights
from idefics_cli.errors import ModelError


def load_native(
    checkpoint: Checkpoint,
    family: NativeFamily,
    settings: ModelSettings,
    choice: DeviceChoice,
    info: EngineInfo,
    *,
    source: Source | None = None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> NativeEngine:
    """Load the weights to the device, plan its memory and start the engine.

    Args:
        checkpoint: whose weights are read.
        family: of the checkpoint.
        settings: of the model.
        choice: device and dtype.
        info: of the engine.
        source: gives the weights instead of the checkpoint.
        is_cancelled: asked before each weight is read.

    Raises:
        ModelError: weights missing, damaged, or too large for the device; or they are not wanted any more.

    """
    device = torch_device(choice, settings.gpu_memory)
    dtype: torch.dtype = getattr(torch, choice.dtype)
    spare = _check_room(family, settings, device, dtype)
    if source is None:
        family.check_weights(checkpoint.weight_shapes())
    prompts = family.prompt_builder(settings.prompt)
    try:
        source = source or CheckpointSource(checkpoint, dtype, device)
        with torch.inference_mode():
            readers = layers_at_once(family.config, settings.quantize, dtype.itemsize, spare)
            weights = Weights(source, settings.quantize, dtype, device, readers=readers, is_cancelled=is_cancelled)
            runner = ModelRunner(weights, family, settings)
    except torch.OutOfMemoryError as error:
        raise ModelError(f"{checkpoint.name}: the weights do not fit the GPU's memory; {_SMALLER}") from error
    config = family.config
    plan = plan_memory(
        free_memory(device, settings.gpu_memory),
        _work_sizes(family, settings, dtype, device),
        batch_size=settings.batch_size,
        page_tokens=config.page_tokens,
        max_new_tokens=runner.rules.max_new_tokens,
        free_host=free_host_memory(),
        kept_pages=KEPT_PAGES if settings.is_shared else 0,
    )
    with torch.inference_mode():
        core = EngineCore(runner, plan, is_shared=settings.is_shared)
    return NativeEngine(core, info, prompts, family.generation(settings), config.text.max_positions)


def _work_sizes(family: NativeFamily, settings: ModelSettings, dtype: torch.dtype, device: torch.device) -> WorkSizes:
    wide = wide_dtype(dtype, device)
    return WorkSizes.of(
        family.config, dtype.itemsize, settings.quantize, wide_item=wide.itemsize, edge=family.image_edge
    )


def random_source(family: NativeFamily, choice: DeviceChoice) -> Source:
    """Return random weights of a family's shapes: for measurements."""
    device = torch_device(choice, None)
    return RandomSource(family.config.weight_shapes(), getattr(torch, choice.dtype), device)


_SMALLER = "try --quantize int8 or int4, --dtype bfloat16, a GPU with more memory, or --device cpu"


def _check_room(family: NativeFamily, settings: ModelSettings, device: torch.device, dtype: torch.dtype) -> int | None:
    """Refuse weights that can't fit, before minutes are spent on loading them; return the bytes left beside them.

    Raises:
        ModelError: with what is needed and what is free.

    """
    free = free_memory(device, settings.gpu_memory) if device.type == "cuda" else free_host_memory()
    wide = wide_dtype(dtype, device)
    needed = weight_bytes(family.config, settings.quantize, dtype.itemsize, wide_item=wide.itemsize)
    if free is not None and needed > free:
        where = "of the GPU's memory are" if device.type == "cuda" else "of memory are"
        name = str(dtype).removeprefix("torch.")
        raise ModelError(
            f"{settings.model}: the weights take {needed / 1e9:.1f} GB in {name}, and {free / 1e9:.1f} GB {where} "
            f"free; {_SMALLER}"
        )
    return None if free is None else free - needed
