"""Which checkpoint runs, where, and how it is asked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, ClassVar

from idefics_cli.config.generation import GenerationSettings
from idefics_cli.config.option import Option, Panel, check_above_zero, check_text, positive_or_auto
from idefics_cli.errors import UsageError

DEFAULT_MODEL = "HuggingFaceM4/idefics2-8b"
TINY_MODEL = "tiny"


@dataclass(frozen=True, slots=True)
class Device:
    """Where the model runs: `auto`, `cpu`, `cuda` (the first GPU), `cuda:N`, or `mps`, the GPU of a Mac."""

    AUTO: ClassVar[Device]
    CPU: ClassVar[Device]
    CUDA: ClassVar[Device]
    MPS: ClassVar[Device]

    kind: str
    """auto, cpu, cuda or mps."""
    index: int | None = None
    """Of the GPU, where one is named."""

    @classmethod
    def parse(cls, value: object) -> Device:
        """Read `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.

        Raises:
            UsageError: it is none of them.

        """
        match = re.fullmatch(r"(auto|cpu|mps|cuda)|cuda:([0-9]{1,3})", str(value))
        if match is None:
            raise UsageError(f"--device takes auto, cpu, cuda, cuda:N (N from 0) or mps: not {str(value)!r}")
        return cls(match[1]) if match[1] else cls("cuda", int(match[2]))

    def __str__(self) -> str:
        return self.kind if self.index is None else f"{self.kind}:{self.index}"


Device.AUTO, Device.CPU, Device.CUDA, Device.MPS = map(Device, ("auto", "cpu", "cuda", "mps"))


class Dtype(StrEnum):
    """Number format of the weights and activations."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Quantize(StrEnum):
    """How the weights of linear layers are stored."""

    NONE = "none"
    FP8 = "fp8"
    INT8 = "int8"
    INT4 = "int4"
    BNB_8BIT = "bnb-8bit"
    BNB_4BIT = "bnb-4bit"

    @property
    def is_native(self) -> bool:
        """Whether the native engine has it; bitsandbytes' formats are for where transformers runs the model."""
        return not self.name.startswith("BNB")


class Attention(StrEnum):
    """What computes attention where transformers runs the model."""

    AUTO = "auto"
    SDPA = "sdpa"
    FLASH_ATTENTION_2 = "flash_attention_2"
    EAGER = "eager"


class AdapterBase(StrEnum):
    """Which checkpoints an adapter is merged into."""

    SAME = "same"
    ANY = "any"


class Kernels(StrEnum):
    """Whether kernels compiled for the GPU take the place of torch's own operations."""

    AUTO = "auto"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class ModelSettings(GenerationSettings):
    """Which checkpoint runs, where, and how it is asked."""

    model: Annotated[
        str,
        Option(
            "Checkpoint: a hub id, a folder with safetensors, or 'tiny' (embedded).",
            Panel.COMMON,
            ("--model", "-m"),
            variable="IDEFICS_CLI_MODEL",
        ),
    ] = DEFAULT_MODEL
    revision: Annotated[str | None, Option("Branch, tag or commit of a hub checkpoint.", Panel.MODEL)] = None
    adapter: Annotated[
        str | None,
        Option(
            "Adapter (LoRA, rsLoRA, QLoRA, DoRA): a hub id or a folder; merged into the weights as they are loaded.",
            Panel.MODEL,
            metavar="ADAPTER",
            default="none",
        ),
    ] = None
    adapter_base: Annotated[
        AdapterBase,
        Option("The checkpoint must be the one that the adapter was trained on (same), or any.", Panel.MODEL),
    ] = AdapterBase.SAME
    processor: Annotated[
        str | None,
        Option(
            "Take processor, tokenizer and chat template from another hub id or folder.",
            Panel.MODEL,
            metavar="MODEL",
            default="those of the checkpoint",
        ),
    ] = None
    device: Annotated[
        Device,
        Option(
            "Where the model runs; mps, the GPU of a Mac, is unmeasured.",
            Panel.MODEL,
            metavar="auto|cpu|cuda[:N]|mps",
            default="auto: a CUDA GPU, else the CPU",
            parse=Device.parse,
        ),
    ] = Device.AUTO
    dtype: Annotated[
        Dtype,
        Option(
            "Number format; auto: bfloat16 on a GPU, float16 on one without bfloat16 (before Ampere), float32 on the "
            "CPU.",
            Panel.MODEL,
        ),
    ] = Dtype.AUTO
    quantize: Annotated[
        Quantize,
        Option(
            "Weights in fewer bits, less exact: fp8 is faster on new GPUs; int8 and int4 run on any; bnb is "
            "bitsandbytes, through transformers.",
            Panel.MODEL,
        ),
    ] = Quantize.NONE
    longest_edge: Annotated[
        int | None,
        Option(
            "Pixels of an image's longest edge: fewer take less memory and time, and show less.",
            Panel.PAGES,
            metavar="N",
            default="the checkpoint's, 980 of idefics2-8b",
        ),
    ] = None
    shortest_edge: Annotated[
        int | None,
        Option(
            "Pixels to which the shortest edge of an image is enlarged.",
            Panel.PAGES,
            metavar="N",
            default="the checkpoint's, 378 of idefics2-8b",
        ),
    ] = None
    prompt: Annotated[str, Option("Prompt template, for example '{question} Answer briefly.'", Panel.MODEL)] = (
        "{question}"
    )
    batch_size: Annotated[
        int | None,
        Option("Questions decoded together.", Panel.MODEL, metavar="auto|N", default="auto", parse=positive_or_auto),
    ] = None
    gpu_memory: Annotated[
        float | None,
        Option("GB of the GPU's memory to use at most.", Panel.MODEL, metavar="GB", default="all that is free"),
    ] = None
    attention: Annotated[
        Attention,
        Option(
            "What computes attention where transformers runs the model; the native engine has its own.", Panel.MODEL
        ),
    ] = Attention.AUTO
    kernels: Annotated[Kernels, Option("Compiled GPU kernels.", Panel.MODEL)] = Kernels.AUTO
    most_new_tokens: int = 0
    """The longest answer that a request of its own settings may want, where that is more than `max_new_tokens`."""
    is_shared: bool = False
    """Whether many clients ask at once, who ask again once they are answered: for servers."""
    ignore_eos: bool = False
    """Whether every answer takes `max_new_tokens`, end or not: for measurements."""

    def __post_init__(self) -> None:
        if not isinstance(self.device, Device):  # from Python, its name will do
            object.__setattr__(self, "device", Device.parse(self.device))
        if "{question}" not in self.prompt:
            raise UsageError("--prompt must contain {question}, for example --prompt '{question} Answer briefly.'")
        check_text("--prompt", self.prompt)
        if not self.model.strip():
            raise UsageError("--model takes a hub id, a folder with safetensors, or 'tiny'")
        if self.revision is not None and not self.revision.strip():
            raise UsageError("--revision takes a branch, tag or commit")
        if self.adapter is not None and not self.adapter.strip():
            raise UsageError("--adapter takes a hub id or a folder with adapter_config.json")
        if self.processor is not None and not self.processor.strip():
            raise UsageError("--processor takes a hub id or a folder with tokenizer.json and processor_config.json")
        if self.adapter is None and self.adapter_base is not AdapterBase.SAME:
            raise UsageError("--adapter-base goes with --adapter")
        check_above_zero("--longest-edge", self.longest_edge, "a number of pixels")
        check_above_zero("--shortest-edge", self.shortest_edge, "a number of pixels")
        check_above_zero("--batch-size", self.batch_size)
        check_above_zero("--gpu-memory", self.gpu_memory, "a number of GB")
        GenerationSettings.__post_init__(self)  # no super(): a class with slots is made anew, and super() finds the old
