"""`doctor`: what is installed, what would run, and a check that the model sees its images."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import IO, Annotated

from idefics_cli.cli.console import print_table, set_up_messages
from idefics_cli.cli.options import from_settings, generation_fields
from idefics_cli.cli.streams import results_on_stdout
from idefics_cli.config import MessageSettings, ModelSettings, Option, Panel, WorkerSettings
from idefics_cli.errors import ModelError, UsageError

_OF_RUNS = tuple(field.name for field in dataclasses.fields(WorkerSettings) if field.name != "ray")


@from_settings(without=("prompt", *generation_fields(), *_OF_RUNS))
def doctor(
    model: ModelSettings,
    workers: WorkerSettings,
    messages: MessageSettings,
    warm: Annotated[
        bool,
        Option("Only load the model: kernels are compiled, caches filled, and the next start is fast.", Panel.COMMON),
    ] = False,
) -> None:
    """Say what is installed, what `run` would choose and why, and check that the model sees its images.

    Nothing is downloaded: of a model that is not on this machine it says what fetches it, and whether it would run
    here. A Ray cluster is looked at only where its
    address is given. Exit code 4 if something is wrong.

    Example: [bold]idefics-cli doctor --model tiny[/bold]
    """
    set_up_messages(messages)
    if warm and workers.ray is not None:
        raise UsageError("--warm and --ray exclude each other: one loads a model here, the other looks at a cluster")
    with results_on_stdout() as stdout:
        from idefics_cli.diagnostics import environment
        from idefics_cli.engine.hardware import gpus

        location = environment.weights_location(model)
        if not warm:
            _print("installed", environment.versions(), stdout)
            _print("rasterizers", environment.rasterizers(), stdout)
            _print("GPUs", {str(number): words for number, words in enumerate(gpus())}, stdout)
            _print("run --gpus all", environment.workers_of_all_gpus(), stdout)
            if workers.ray is not None:
                _print(f"Ray cluster {workers.ray}", environment.ray_nodes(workers.ray), stdout)
        if location is None:
            if warm:
                raise ModelError(f"{model.model}: not on this machine; hf download {model.model} fetches it")
            _print(f"model {model.model}", {**environment.missing(model), "image check": "not without weights"}, stdout)
            return
        if not warm:
            digests = environment.verified_digests(model)
            _print(f"model {model.model}", {"weights": location, **digests, **environment.choices(model)}, stdout)
        _check(model, stdout, is_checked=not warm)


def _check(settings: ModelSettings, stdout: IO[str], *, is_checked: bool) -> None:
    """Load a model, say how long that took, and check that it sees its images.

    Raises:
        ModelError: it can't be loaded, or does not see them.

    """
    from idefics_cli.diagnostics.canary import run_canary
    from idefics_cli.engine import open_engine

    started = time.monotonic()
    engine = open_engine(settings)
    engine.load()
    print(f"{settings.model}: loaded in {time.monotonic() - started:.1f} s", file=stdout, flush=True)
    if not is_checked:
        engine.close()
        return
    print("image check", file=stdout)
    all_passed = True
    for check in run_canary(engine):
        print(f"  {'passed' if check.passed else 'FAILED'}  {check.words}", file=stdout, flush=True)
        all_passed &= check.passed
    engine.close()
    if not all_passed:
        raise ModelError(
            f"{settings.model}: the image check failed: its answers can't be trusted with these versions and settings"
        )


def _print(title: str, facts: Mapping[str, str], stdout: IO[str]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, padding=(0, 2))
    for name, words in (facts or {"": "none"}).items():
        table.add_row(Text(name), Text(words))
    print_table(table, stdout)
