from __future__ import annotations

import sys

import pytest
import torch

from idefics_cli.config import Device, Dtype, ModelSettings
from idefics_cli.engine.device import DeviceChoice, auto_dtype, choose_device, compute_capability, free_host_memory
from idefics_cli.errors import ModelError, UsageError


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

    with pytest.raises(ModelError, match="--device cuda:3: no usable CUDA device here"):
        choose_device(ModelSettings("tiny", device=Device.parse("cuda:3")))


def test_memory_of_a_gpu_is_not_for_the_cpu() -> None:
    with pytest.raises(UsageError, match="--gpu-memory is for CUDA GPUs, and the model would run on cpu"):
        choose_device(ModelSettings("tiny", device=Device.CPU, gpu_memory=3.0))


@pytest.mark.parametrize("text", ["auto", "cpu", "mps", "cuda", "cuda:0", "cuda:12"])
def test_a_device_reads_as_it_is_written(text: str) -> None:
    assert str(Device.parse(text)) == text


def test_devices_that_are_named_are_those_that_are_made() -> None:
    assert Device.parse("cuda:1") == Device("cuda", 1)
    assert Device.parse("cpu") == Device.CPU
    assert ModelSettings().device == Device.AUTO
    assert ModelSettings(device="cuda:1").device == Device("cuda", 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "cpu:0", "mps:0", "CUDA", "cuda:1000", "cuda:²"]
)
def test_what_is_no_device_is_said_with_what_is(text: str) -> None:
    with pytest.raises(UsageError, match=r"--device takes auto, cpu, cuda, cuda:N"):
        Device.parse(text)


@pytest.mark.parametrize(
    ("device", "capability", "dtype"),
    [
        ("cpu", None, Dtype.FLOAT32),
        ("mps", None, Dtype.FLOAT16),
        ("cuda", (7, 0), Dtype.FLOAT16),
        ("cuda", (7, 5), Dtype.FLOAT16),
        ("cuda", (8, 0), Dtype.BFLOAT16),
        ("cuda", (8, 6), Dtype.BFLOAT16),
        ("cuda", (12, 0), Dtype.BFLOAT16),
    ],
)
def test_the_dtype_is_what_the_device_has_units_for(
    device: str, capability: tuple[int, int] | None, dtype: Dtype
) -> None:
    assert auto_dtype(device, capability) is dtype


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac may have it")
def test_mps_where_there_is_none() -> None:
    with pytest.raises(ModelError, match="--device mps: that is the GPU of a Mac"):
        choose_device(ModelSettings("tiny", device=Device.MPS))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(ModelError, match=r"--device cuda:99: there is no such GPU; here is cuda:0"):
        choose_device(ModelSettings("tiny", device=Device("cuda", 99)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_is_found_as_torch_sees_it() -> None:
    assert compute_capability() == torch.cuda.get_device_capability(0)
    assert choose_device(ModelSettings("tiny")) == DeviceChoice("cuda", "bfloat16")


def test_free_memory_of_the_host() -> None:
    free = free_host_memory()
    assert free is None or 10**7 < free < 10**14
