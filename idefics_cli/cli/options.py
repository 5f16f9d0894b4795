"""Options that several commands share, declared once; their defaults stand in `config`."""

from __future__ import annotations

from typing import Annotated

import typer

from idefics_cli.config import (
    DEFAULT_MODEL,
    MODEL_VARIABLE,
    Across,
    Device,
    Dtype,
    Kernels,
    ModelSettings,
    PageSettings,
    Quantize,
    Rasterizer,
    RunSettings,
    Split,
)

MODEL, PAGES, OUTPUT, MESSAGES = "Model", "Pages", "Output", "Messages"


def parse_batch_size(value: str) -> int:
    """Return the number, 0 for `auto`."""
    if str(value) in ("auto", "0"):
        return 0
    if not str(value).isdecimal():
        raise typer.BadParameter(f"{value!r} is neither auto nor a number above 0")
    return int(value)


Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        envvar=MODEL_VARIABLE,
        help="Checkpoint: a hub id, a folder with safetensors, or 'tiny' (embedded).",
        rich_help_panel=MODEL,
    ),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub checkpoint.", rich_help_panel=MODEL)]
DeviceOption = Annotated[Device, typer.Option("--device", help="Where the model runs.", rich_help_panel=MODEL)]
DtypeOption = Annotated[
    Dtype,
    typer.Option("--dtype", help="Number format; auto: bfloat16 on a GPU, float32 on the CPU.", rich_help_panel=MODEL),
]
BatchSizeOption = Annotated[
    int,
    typer.Option(
        "--batch-size",
        parser=parse_batch_size,
        metavar="auto|N",
        show_default="auto",
        help="Questions decoded together.",
        rich_help_panel=MODEL,
    ),
]
MaxNewTokens = Annotated[
    int, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens.", rich_help_panel=MODEL)
]
Prompt = Annotated[
    str,
    typer.Option(
        "--prompt", help="How a question is put, for example '{question} Answer briefly.'", rich_help_panel=MODEL
    ),
]
QuantizeOption = Annotated[
    Quantize,
    typer.Option(
        "--quantize", help="fp8: half the memory for weights, faster on new GPUs, less exact.", rich_help_panel=MODEL
    ),
]
GpuMemory = Annotated[
    float,
    typer.Option(
        "--gpu-memory", help="GB of the GPU to use at most.", show_default="all that is free", rich_help_panel=MODEL
    ),
]
KernelsOption = Annotated[
    Kernels,
    typer.Option(
        "--kernels", help="Compiled GPU kernels; auto: once there is work that pays for it.", rich_help_panel=MODEL
    ),
]
Pages = Annotated[
    str | None,
    typer.Option(
        "--pages", help="Pages from 1, as in 1-3,7,-1 (-1 is the last).", show_default="all", rich_help_panel=PAGES
    ),
]
AcrossOption = Annotated[
    Across,
    typer.Option(
        "--across",
        help="Several pages: a row for each, the page whose answer is most probable (best), "
        "or all in one prompt (together).",
        rich_help_panel=PAGES,
    ),
]
SplitOption = Annotated[
    Split, typer.Option("--split", help="Cut pages with small text into sub-images.", rich_help_panel=PAGES)
]
RasterizerOption = Annotated[
    Rasterizer, typer.Option("--rasterizer", help="What renders PDF pages.", rich_help_panel=PAGES)
]
Password = Annotated[str | None, typer.Option("--password", help="For encrypted PDFs.", rich_help_panel=PAGES)]
PageTimeout = Annotated[
    float, typer.Option("--page-timeout", help="Seconds a page may take to render.", rich_help_panel=PAGES)
]
MaxPixels = Annotated[int, typer.Option("--max-pixels", help="Refuse images with more pixels.", rich_help_panel=PAGES)]
MaxPages = Annotated[
    int,
    typer.Option(
        "--max-pages", help="Refuse documents with more pages.", show_default="no limit", rich_help_panel=PAGES
    ),
]
Workers = Annotated[int, typer.Option("--workers", min=0, help="Page processes; 0: one a core.", rich_help_panel=PAGES)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.", rich_help_panel=MESSAGES)]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Say what is chosen, and show tracebacks.", rich_help_panel=MESSAGES)
]

PAGE_DEFAULTS = PageSettings()
MODEL_DEFAULTS = ModelSettings(DEFAULT_MODEL)
ACROSS_DEFAULT = RunSettings().across
