from __future__ import annotations

import pytest
import torch

from idefics_cli.config import Device, Dtype, ModelSettings
from idefics_cli.engine.device import DeviceChoice, choose_device, compute_capability, free_host_memory
from idefics_cli.errors import ModelError


def test_the_cpu_computes_in_float32_unless_asked_otherwise() -> None:
    assert choose_device(ModelSettings("tiny", device=Device.CPU)) == DeviceChoice("cpu", "float32")
    asked = ModelSettings("tiny", device=Device.CPU, dtype=Dtype.BFLOAT16)
    assert choose_device(asked) == DeviceChoice("cpu", "bfloat16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_where_there_is_none() -> None:
    assert compute_capability() is None
    assert choose_device(ModelSettings("tiny")).device == "cpu"
    with pytest.raises(ModelError, match="--device cpu"):
        choose_device(ModelSettings("tiny", device=Device.CUDA))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_is_found_as_torch_sees_it() -> None:
    assert compute_capability() == torch.cuda.get_device_capability(0)
    assert choose_device(ModelSettings("tiny")) == DeviceChoice("cuda", "bfloat16")


def test_free_memory_of_the_host() -> None:
    free = free_host_memory()
    assert free is None or 10**7 < free < 10**14
