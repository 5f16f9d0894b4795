"""Settings of a run: frozen records, checked when they are made, and the only place where an option is described.

The command line makes its options from these fields: a field annotated with an `Option` is one.
"""

from idefics_cli.config.endpoint import EndpointSettings
from idefics_cli.config.generation import MOST_CHOICES, GenerationSettings, parse_choices
from idefics_cli.config.model import (
    DEFAULT_MODEL,
    TINY_MODEL,
    AdapterBase,
    Attention,
    Device,
    Dtype,
    Kernels,
    ModelSettings,
    Quantize,
)
from idefics_cli.config.option import Option, Panel, check_above_zero, check_text, flag_of, option_of, positive_or_auto
from idefics_cli.config.pages import Across, PageSettings, Rasterizer, Split, available_cores
from idefics_cli.config.run import (
    Format,
    MaxFailures,
    MessageSettings,
    OutputSettings,
    QuestionSettings,
    RetryFailed,
    RunSettings,
)
from idefics_cli.config.server import ClientSettings, Duration, ServeSettings
from idefics_cli.config.shard import Shard
from idefics_cli.config.workers import Gpus, WorkerSettings

__all__ = [
    "DEFAULT_MODEL",
    "MOST_CHOICES",
    "TINY_MODEL",
    "Across",
    "AdapterBase",
    "Attention",
    "ClientSettings",
    "Device",
    "Dtype",
    "Duration",
    "EndpointSettings",
    "Format",
    "GenerationSettings",
    "Gpus",
    "Kernels",
    "MaxFailures",
    "MessageSettings",
    "ModelSettings",
    "Option",
    "OutputSettings",
    "PageSettings",
    "Panel",
    "Quantize",
    "QuestionSettings",
    "Rasterizer",
    "RetryFailed",
    "RunSettings",
    "ServeSettings",
    "Shard",
    "Split",
    "WorkerSettings",
    "available_cores",
    "check_above_zero",
    "check_text",
    "flag_of",
    "option_of",
    "parse_choices",
    "positive_or_auto",
]
