"""`doctor`: what is installed, what would run, and a canary that proves that the model sees the image."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from idefics_cli.cli import options
from idefics_cli.cli.ending import exit_codes
from idefics_cli.cli.streams import results_on_stdout
from idefics_cli.config import ModelSettings
from idefics_cli.errors import ModelError


def doctor(
    model: options.Model = options.MODEL_DEFAULTS.model,
    revision: options.Revision = None,
    device: options.DeviceOption = options.MODEL_DEFAULTS.device,
    dtype: options.DtypeOption = options.MODEL_DEFAULTS.dtype,
    batch_size: options.BatchSizeOption = options.MODEL_DEFAULTS.batch_size,
    quantize: options.QuantizeOption = options.MODEL_DEFAULTS.quantize,
    gpu_memory: options.GpuMemory = options.MODEL_DEFAULTS.gpu_memory,
    kernels: options.KernelsOption = options.MODEL_DEFAULTS.kernels,
    verbose: options.Verbose = False,
) -> None:
    """Say what is installed, what `run` would choose and why, and check that the model sees its images.

    Nothing is downloaded: a model that is not on this machine is not asked. Exit code 4 if something is wrong.

    Example: [bold]idefics-cli doctor --model tiny[/bold]
    """
    with exit_codes(verbose=verbose), results_on_stdout() as stdout:
        from idefics_cli.engine import survey  # brings torch along: not before it is needed

        console = Console(file=stdout, width=None if stdout.isatty() else 120, highlight=False)
        settings = ModelSettings(
            model, revision, device, dtype, batch_size, quantize=quantize, gpu_memory=gpu_memory, kernels=kernels
        )
        console.print(_table("installed", survey.installed()))
        console.print(_table("rasterizers", survey.rasterizers()))
        console.print(_table("GPUs", {str(number): words for number, words in enumerate(survey.gpus())}))
        weights = survey.weights_at_hand(settings)
        if weights is None:
            console.print(f"model {model}: not on this machine; the first run downloads it. It was not checked.")
            return
        _check(settings, weights, console)


def _check(settings: ModelSettings, weights: str, console: Console) -> None:
    """Say what a run would choose, and let the canary sing.

    Raises:
        ModelError: it can't be loaded, or does not see its images.

    """
    from idefics_cli.canary import sing
    from idefics_cli.engine import survey
    from idefics_cli.engine.checkpoint import open_checkpoint
    from idefics_cli.engine.idefics2 import Idefics2Engine

    checkpoint = open_checkpoint(settings)
    console.print(_table(f"model {settings.model}", {"weights": weights, **survey.choices(checkpoint)}))
    console.print("canary")
    findings = list(sing(Idefics2Engine(settings, checkpoint)))
    for finding in findings:
        console.print(f"  {'fine ' if finding.is_fine else 'WRONG'}  {finding.words}")
    if not all(finding.is_fine for finding in findings):
        raise ModelError(
            f"{settings.model}: the canary is not well: its answers can't be trusted with these versions and settings"
        )


def _table(title: str, facts: Mapping[str, str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, padding=(0, 2))
    for name, words in (facts or {"": "none"}).items():
        table.add_row(name, words)
    return table
