"""What is installed here, and what a run would choose."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import platform
import shutil
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from idefics_cli.config import AdapterBase, Gpus, Kernels, ModelSettings, Quantize, RunSettings
from idefics_cli.diagnostics.random_model import full_shape_checkpoint
from idefics_cli.engine.attention import check_attention, implementation
from idefics_cli.engine.checkpoint import Checkpoint, find_locally, open_checkpoint
from idefics_cli.engine.device import DeviceChoice, choose_device, compute_capability, free_host_memory, has_bfloat16
from idefics_cli.engine.digests import MARK, verify
from idefics_cli.engine.families import family_of
from idefics_cli.engine.families.idefics2 import Idefics2Family
from idefics_cli.engine.families.idefics3 import Idefics3Family
from idefics_cli.engine.families.published import PUBLISHED
from idefics_cli.engine.hardware import free_gpu_memory
from idefics_cli.engine.native.memory_plan import weight_bytes
from idefics_cli.engine.quantization import effective_quantize
from idefics_cli.errors import ModelError
from idefics_cli.workers.placement import describe, placements
from idefics_cli.workers.ray_cluster import RayCluster

_FLASH_ATTENTION = "flash-attn-4"  # older packages share its module, not its kernels
_PACKAGES = (
    *("idefics-cli", "torch", "transformers", "tokenizers", "safetensors", "pillow", "pypdfium2", "pdf2image"),
    *("triton", _FLASH_ATTENTION),
)
_LARGE = 4_000_000_000  # bytes of weights
_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def versions(packages: Sequence[str] = _PACKAGES) -> dict[str, str]:
    """Return versions by package, Python's first; those that are not there are left out."""
    found = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def rasterizers() -> dict[str, str]:
    """Return where each rasterizer is."""
    poppler = shutil.which("pdftoppm")
    return {
        "pdfium": f"pypdfium2 {version('pypdfium2')}",
        "poppler": poppler or "not installed: PDFs that PDFium can't render fail",
    }


def workers_of_all_gpus() -> dict[str, str]:
    """Return the workers that `run --gpus all` would start here."""
    try:
        return {"workers": describe(placements(Gpus(), RunSettings()))}
    except ModelError:
        return {"workers": "none: no usable CUDA device"}


def ray_nodes(address: str) -> dict[str, str]:
    """Return what a Ray cluster has, by node; it is left again.

    Raises:
        ModelError: there is no such cluster, or Ray is not installed.

    """
    cluster = RayCluster(address)
    try:
        nodes = {f"node {number}": str(node) for number, node in enumerate(cluster.nodes(), 1)}
        return nodes | {"run --ray": f"{cluster.gpus} workers, {cluster.free_gpus:g} of the GPUs are free"}
    finally:
        cluster.close()


def weights_location(settings: ModelSettings) -> str | None:
    """Return where a model's weights are on this machine; None where they would have to be downloaded.

    Raises:
        ModelError: the name is neither a folder that is there nor a hub id.

    """
    folder = find_locally(settings)
    return None if folder is None else str(folder)


def verified_digests(settings: ModelSettings) -> dict[str, str]:
    """Compare the files of a folder that `prepare` has written with their digests; of any other say nothing.

    Raises:
        ModelError: a file is missing, or is not as it was written.

    """
    folder = find_locally(settings)
    if folder is None or not (folder / MARK).is_file():
        return {}
    return {"digests": f"{verify(folder)} files are as prepare has written them"}


def missing(settings: ModelSettings) -> dict[str, str]:
    """Say of a model that is not here how large it is, what fetches it, and whether this machine could run it.

    Nothing is asked of the hub: sizes are known of published shapes only.

    Raises:
        ModelError: this machine can't run any model as the settings want.

    """
    revision = f" --revision {settings.revision}" if settings.revision else ""
    facts = {
        "weights": "not on this machine, or not all of its files",
        "fetched by": f"hf download {settings.model}{revision} (otherwise by the first run)",
    }
    if settings.model not in PUBLISHED:
        return {**facts, "size": "not known here: its page on the hub says"}
    plain = dataclasses.replace(settings, revision=None, adapter=None, adapter_base=AdapterBase.SAME, processor=None)
    checkpoint = full_shape_checkpoint(plain)
    family = family_of(checkpoint)
    assert isinstance(family, Idefics2Family | Idefics3Family)
    count = sum(map(math.prod, family.config.weight_shapes().values())) / 1e9
    download = f"{2 * count:.2g} GB where they are stored in bfloat16, {4 * count:.2g} GB in float32"
    return {**facts, "size": f"{count:.2g} billion weights: {download}", **choices(plain, checkpoint)}


def choices(settings: ModelSettings, checkpoint: Checkpoint | None = None) -> dict[str, str]:
    """Return what a run would choose for a checkpoint, and whether it fits; by default that of the settings.

    Raises:
        ModelError: it can't be run.

    """
    checkpoint, choice = checkpoint or open_checkpoint(settings), choose_device(settings)
    family = family_of(checkpoint)
    quantize = effective_quantize(settings.quantize, checkpoint.stored, settings.model)
    capability = compute_capability(choice.index) if choice.device == "cuda" else None
    wide = 4 if choice.dtype == "float16" and not has_bfloat16(capability) else None
    item = _ITEM_BYTES[choice.dtype]
    if isinstance(family, Idefics2Family | Idefics3Family):
        weights = weight_bytes(family.config, quantize, item, wide_item=wide)
    else:
        weights = sum(map(math.prod, checkpoint.weight_shapes().values())) * item
    free = free_host_memory()
    has_kernels = capability is not None and settings.kernels is Kernels.AUTO and capability >= (8, 0)
    flash = "FlashAttention 4" if _FLASH_ATTENTION in versions() else "cuDNN (FlashAttention 4: extra fa4)"
    form = choice.dtype if quantize is Quantize.NONE else f"{choice.dtype}, {quantize}"
    gaps = family.native_gaps + family.generation(settings).gaps
    check_attention(settings, choice, is_native=not gaps)
    flash = flash if not gaps else implementation(settings) or "transformers' choice"
    engine = f"transformers, for {', '.join(gaps)}" if gaps else "native"
    batch = "1 where transformers answers" if gaps else "from the memory that is free beside the weights"
    return {
        "engine": engine,
        "device": f"{choice.name} (unmeasured)" if choice.device == "mps" else choice.name,
        "dtype": f"{form}, weights {weights / 1e9:.2g} GB",
        "host memory": "unknown" if free is None else f"{free / 1e9:.1f} GB free",
        "attention": flash if has_kernels or gaps else "torch",
        "kernels": "Triton" if has_kernels else "none on this device",
        "fits": _verdict(choice, weights, free),
        "batch size": str(settings.batch_size or f"auto: {batch}"),
    }


def _verdict(choice: DeviceChoice, weights: int, free_host: int | None) -> str:
    """Say whether there is room for weights of so many bytes, and what takes less."""
    free = free_gpu_memory(choice) if choice.device == "cuda" else free_host
    of = "the GPU" if choice.device == "cuda" else "the host"
    if free is None:
        return f"unknown: it needs {weights / 1e9:.2g} GB for its weights alone"
    if weights > free:
        less = "--quantize fp8, int8 or int4" if choice.device == "cuda" else "--dtype bfloat16, a GPU"
        return (
            f"no: its weights take {weights / 1e9:.2g} GB, and {free / 1e9:.2g} GB of {of} are free; less is needed "
            f"with {less} or a smaller --model"
        )
    slow = "; without a GPU an 8B model takes minutes a page" if choice.device == "cpu" and weights > _LARGE else ""
    return f"yes: {(free - weights) / 1e9:.2g} GB of {of} stay free beside its weights{slow}"
