"""Batches on a CPU, in the widths of SmolVLM-256M: an answer's bits depend neither on its batch nor on its place there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from idefics_cli.config import Dtype, ModelSettings
from idefics_cli.engine.native.ops import torch_ops
from idefics_cli.engine.native.ops.base import InputFormat
from idefics_cli.engine.native.ops.linear import Linear
from idefics_cli.records import PreparedPage, Request
from tests.other_checkpoints import save_smolvlm1
from tests.small_checkpoints import noise_page, settings_of
from tests.test_native_engine import comparable, shuffled

WIDE = {
    "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
}  # fmt: skip


@pytest.fixture(params=[1, 2], ids="{0} threads".format)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def smolvlm(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelSettings, list[Request]]:
    folder: Path = save_smolvlm1(tmp_path_factory.mktemp("wide"), text=WIDE, tie_word_embeddings=False)
    tiles = [noise_page(seed, (4, 4)) for seed in range(2)]
    split = PreparedPage((*tiles[0].crops, *tiles[1].crops) * 2 + tiles[0].crops, "pillow", 0.0, 0.0, columns=2)
    pages = {"whole": tiles[0], "other": tiles[1], "split": split}
    asked = [(question * length, name) for question in ("Who?", "When?") for length in (1, 40) for name in pages]
    return settings_of(folder, max_new_tokens=5), [Request(text, (pages[name],), (name,)) for text, name in asked]


@pytest.fixture
def tiny(tiny_settings: ModelSettings, sample_requests: list[Request]) -> tuple[ModelSettings, list[Request]]:
    return dataclasses.replace(tiny_settings, max_new_tokens=5), sample_requests[::33]


@pytest.mark.parametrize(
    ("model", "dtype"),
    [
        ("smolvlm", Dtype.FLOAT32),
        ("smolvlm", Dtype.BFLOAT16),
        ("smolvlm", Dtype.FLOAT16),
        ("tiny", Dtype.FLOAT32),
        ("tiny", Dtype.BFLOAT16),
        pytest.param("tiny", Dtype.FLOAT16, marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("threads")
def test_answers_are_the_same_bits_in_batches_of_any_size(
    model: str, dtype: Dtype, request: pytest.FixtureRequest
) -> None:
    settings, asked = request.getfixturevalue(model)
    settings = dataclasses.replace(settings, dtype=dtype)
    alone = comparable(shuffled(dataclasses.replace(settings, batch_size=1), asked, 0))
    assert len(set(alone)) > len(alone) // 2  # they say something
    for batch_size in (2, 7, 8, 32):
        found = shuffled(dataclasses.replace(settings, batch_size=batch_size), asked, batch_size)
        assert max(answer.batch_size for answer in found) > 1
        assert comparable(found) == alone


@pytest.mark.parametrize("threads", [1, 2, 3], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("threads")
def test_a_row_of_a_step_does_not_depend_on_its_place(dtype: torch.dtype) -> None:
    """Products, and activations of the 8B model, which are wide enough for three threads to divide one within a row.

    Inputs are multiples of four, as those of every model: else MKL, taken without AVX2, sums some rows in another order.
    """
    torch.manual_seed(0)
    layers = [Linear(torch.randn(*shape).to(dtype) / 24) for shape in ((960, 576), (576, 1536), (33, 52))]
    for layer, width in zip(layers, (576, 1536, 52), strict=True):
        rows = torch.randn(8, width).to(dtype)
        expected = layer(rows, torch_ops)
        for place in range(1, 8):
            assert torch.equal(layer(rows.roll(place, 0), torch_ops).roll(-place, 0), expected)
    gate_up = torch.randn(1, 2 * 14336).to(dtype).repeat(8, 1)
    active = torch_ops.silu_and_mul(gate_up, InputFormat.PLAIN)
    assert isinstance(active, torch.Tensor)
    assert torch.equal(active, active[:1].expand_as(active))
