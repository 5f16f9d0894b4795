"""The 8B shape with random weights: memory within bounds, and batches that do not fit are halved."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

RUN = """
import sys
import numpy as np, torch
from idefics_cli.config import Dtype, ModelSettings, Quantize
from idefics_cli.engine.base import EngineInfo
from idefics_cli.diagnostics.random_model import full_shape_checkpoint
from idefics_cli.engine.device import DeviceChoice
from idefics_cli.engine.families import family_of
from idefics_cli.engine.native.loading import load_native
from idefics_cli.engine.native.weights import RandomSource
from idefics_cli.records import PreparedPage, Request

limit, quantize, batch, other = float(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
settings = ModelSettings(dtype=Dtype.BFLOAT16, max_new_tokens=16, ignore_eos=True, quantize=Quantize(quantize),
                         gpu_memory=limit, batch_size=batch or None)
checkpoint = full_shape_checkpoint(settings)
family = family_of(checkpoint)
source = RandomSource(family.config.weight_shapes(), torch.bfloat16, torch.device("cuda"))
engine = load_native(checkpoint, family, settings, DeviceChoice("cuda", "bfloat16"),
                     EngineInfo("random", {}, 128, family.image_processor), source=source)
torch.cuda.empty_cache()
if other:  # what another program takes meanwhile
    left = int(limit * 1e9) - torch.cuda.memory_reserved()
    taken = torch.empty(max(0, left - int(other * 1e9)), dtype=torch.uint8, device="cuda")
rng = np.random.default_rng(0)
page = PreparedPage(tuple(rng.integers(0, 255, (5, 980, 756, 3), dtype=np.uint8)), "pillow", 0.0, 0.0)
futures = [engine.submit(Request("What is the total?", (page,), (str(n),))) for n in range(40)]
answers = [future.result() for future in futures]
print("failed", sum(a.failure is not None for a in answers),
      "reduced", sum("memory was short" in a.warning for a in answers), "reserved", torch.cuda.max_memory_reserved() / 1e9)
"""


def measure(limit: float, quantize: str = "none", batch: int = 0, other: float = 0.0) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(limit), quantize, str(batch), str(other)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    words = done.stdout.split()
    print(limit, quantize, batch, other, done.stdout.strip())
    return {name: float(value) for name, value in zip(words[::2], words[1::2], strict=True)}


@pytest.mark.parametrize(
    ("limit", "quantize"),
    [(139.0, "none"), (40.0, "none"), (24.0, "none"), (16.0, "fp8"), (12.0, "int8"), (8.0, "int4")],
)
def test_auto_batch_size_stays_within_the_memory(limit: float, quantize: str) -> None:
    limit = min(limit, torch.cuda.mem_get_info()[1] / 1e9)
    found = measure(limit, quantize)
    assert (found["failed"], found["reduced"]) == (0, 0)
    assert found["reserved"] <= limit


@pytest.mark.parametrize(("limit", "batch", "other"), [(19.5, 64, 0.0), (30.0, 0, 0.7)])
def test_a_batch_that_does_not_fit_is_halved_and_its_rows_say_so(limit: float, batch: int, other: float) -> None:
    """More sequences than there is memory for, and memory that another program takes after the plan was made."""
    found = measure(limit, batch=batch, other=other)
    assert found["failed"] == 0
    assert found["reduced"] > 0
