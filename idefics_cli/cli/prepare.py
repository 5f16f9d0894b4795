"""`prepare`: write a checkpoint anew, with fewer bytes, an adapter merged, and digests."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from idefics_cli.cli.console import set_up_messages
from idefics_cli.cli.options import from_settings
from idefics_cli.cli.progress import progress_line
from idefics_cli.cli.streams import results_on_stdout
from idefics_cli.config import MessageSettings, ModelSettings, Option, Panel
from idefics_cli.errors import UsageError


@from_settings(
    only=("revision", "adapter", "adapter_base", "processor", "device", "dtype", "quantize", "quiet", "verbose")
)
def prepare(
    checkpoint: Annotated[str, typer.Argument(metavar="MODEL", help="A hub id, a folder with safetensors, or 'tiny'.")],
    model: Callable[..., ModelSettings],
    messages: MessageSettings,
    output: Annotated[
        Path | None, Option("The folder that is made; needed.", Panel.COMMON, ("--output", "-o"), metavar="FOLDER")
    ] = None,
    overwrite: Annotated[bool, Option("Replace a folder that prepare has written.", Panel.COMMON)] = False,
) -> None:
    """Write a copy of a checkpoint that is ready to load: smaller, merged, and without a network.

    An adapter is merged, weights are cast (auto: bfloat16) or quantized. Other programs load the folder too: quantized
    weights are in the format of compressed-tensors. `doctor --model FOLDER` checks it.

    Example: [bold]idefics-cli prepare HuggingFaceM4/idefics2-8b -o idefics2-int4 --quantize int4[/bold]
    """
    set_up_messages(messages)
    settings = model(model=checkpoint)
    if output is None:
        raise UsageError("prepare needs a folder to write to: -o FOLDER")
    from idefics_cli.engine import prepare as engine

    words = "reading the checkpoint"

    def tell(written: int, total: int) -> None:
        nonlocal words
        words = f"{written / 1e9:.3g} of {total / 1e9:.3g} GB written"

    with results_on_stdout() as stdout:
        with progress_line(lambda: words, quiet=messages.quiet):
            done = engine.prepare(settings, output, overwrite=overwrite, progress=tell)
        form = done.dtype if done.quantize == "none" else f"{done.dtype}, linear layers in {done.quantize}"
        use = f"--model {shlex.quote(str(output))}"
        print(f"{output}: {done.weights / 1e9:.3g} GB of weights in {form}; use it with {use}", file=stdout)
