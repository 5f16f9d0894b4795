from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from idefics_cli.engine.files import TensorHeader
from idefics_cli.engine.native.tensor_reader import TensorReader
from idefics_cli.errors import ModelError
from tests.small_checkpoints import CPU, opened, save_checkpoint, settings_of

TENSORS = {
    "matrix": torch.randn(300, 70),
    "half": torch.randn(4, 5, 6).half(),
    "bfloat": torch.randn(9).bfloat16(),
    "fp8": torch.randn(8, 8).to(torch.float8_e4m3fn),
    "words": torch.randint(-(2**31), 2**31, (6, 2), dtype=torch.int32),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 4),
}


@pytest.fixture
def headers(tmp_path: Path) -> dict[str, TensorHeader]:
    folder = save_checkpoint(tmp_path / "m")
    save_file(TENSORS, folder / "model.safetensors")  # by the library that defines the format
    checkpoint, _, _ = opened(settings_of(folder))
    return checkpoint.tensors()


def test_tensors_of_every_kind_are_what_the_library_wrote(headers: dict[str, TensorHeader]) -> None:
    reader = TensorReader("m", CPU)
    with ThreadPoolExecutor(4) as threads:
        found = dict(zip(headers, threads.map(reader.read, headers.values()), strict=True))
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name].view(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), name


def test_a_file_that_was_cut_short_after_its_header_was_read(headers: dict[str, TensorHeader]) -> None:
    last = max(headers.values(), key=lambda header: header.start)
    data = last.file.read_bytes()
    last.file.write_bytes(data[:-1])
    with pytest.raises(ModelError, match=r"m: model\.safetensors is damaged: it ends too early"):
        TensorReader("m", CPU).read(last)
    last.file.unlink()
    with pytest.raises(ModelError, match=r"m: model\.safetensors can't be read: No such file"):
        TensorReader("m", CPU).read(last)


def test_headers_that_cannot_be_right(headers: dict[str, TensorHeader]) -> None:
    matrix = headers["matrix"]
    for header, words in (
        (TensorHeader(matrix.file, "F4", (2,), matrix.start, 1), "in F4, which is not supported"),
        (TensorHeader(matrix.file, "F32", (2,), matrix.start, 9), "a tensor's size is not that of its shape"),
    ):
        with pytest.raises(ModelError, match=words):
            TensorReader("m", CPU).read(header)
