from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from idefics_cli.config import Attention, Device, Dtype, ModelSettings, Quantize
from idefics_cli.diagnostics.table import Form, measure_table, table_forms
from idefics_cli.engine.prepare import prepare
from idefics_cli.errors import ModelError, UsageError
from tests.conftest import Run
from tests.small_checkpoints import save_checkpoint

CPU = ModelSettings("tiny", device=Device.CPU, max_new_tokens=2)


def test_a_table_holds_each_dtype_and_quantization_by_both_and_only_those_asked_for() -> None:
    forms = table_forms(CPU)
    assert {form.quantize for form in forms} == set(Quantize)
    assert {(form.is_native, form.dtype) for form in forms if form.quantize is Quantize.NONE} == {
        (is_native, dtype) for is_native in (False, True) for dtype in (Dtype.FLOAT32, Dtype.BFLOAT16)
    }
    assert all(form.is_native == form.quantize.is_native for form in forms if form.quantize is not Quantize.NONE)
    some = table_forms(dataclasses.replace(CPU, quantize=Quantize.INT4))
    assert [(form.quantize, form.is_native) for form in some] == [(Quantize.INT4, True)]
    assert {form.dtype for form in table_forms(dataclasses.replace(CPU, dtype=Dtype.FLOAT32))} == {Dtype.FLOAT32}


def test_forms_are_measured_in_processes_and_one_that_fails_is_a_row() -> None:
    forms = [
        Form(True, Dtype.FLOAT32, Quantize.INT8),
        Form(False, Dtype.FLOAT32, attention=Attention.FLASH_ATTENTION_2),
    ]
    small = dataclasses.replace(CPU, longest_edge=210, shortest_edge=84)
    rows = list(measure_table(small, forms, random_weights=False))
    assert [(row.form, row.split) for row in rows] == [(form, split) for form in forms for split in (True, False)]
    split, whole, *failed = rows
    assert split.seconds is not None
    assert whole.seconds is not None
    assert split.seconds > whole.seconds > 0
    assert (split.peak_gb, split.fits_gb, split.failure) == (None, None, "")
    assert all(row.seconds is None and "flash" in row.failure.lower() for row in failed)


@pytest.mark.parametrize(
    ("flag", "other"),
    [
        ("--table", "--start"),
        *((flag, other) for flag in ("--table", "--start") for other in ("--no-reference", "--pages=3", "--workers=2")),
    ],
)
def test_what_would_not_be_heeded_is_refused(flag: str, other: str, cli: Run) -> None:
    done = cli("bench", flag, other)
    assert done.returncode == 2
    assert f"{flag} and {other.partition('=')[0]} exclude each other" in done.stderr


def test_a_checkpoint_that_has_no_row_is_one_error(tmp_path: Path) -> None:
    forms = [Form(True, Dtype.BFLOAT16, Quantize.INT8)]
    with pytest.raises(ModelError, match="neither a folder here nor a hub id"):
        list(measure_table(dataclasses.replace(CPU, model="nothing"), forms, random_weights=False))
    with pytest.raises(UsageError, match="knows the shapes of"):
        list(measure_table(dataclasses.replace(CPU, model="nothing"), forms, random_weights=True))
    prepare(dataclasses.replace(CPU, quantize=Quantize.INT4), tmp_path / "made")
    with pytest.raises(ModelError, match="prepared in int4 have no other format"):
        list(measure_table(dataclasses.replace(CPU, model=str(tmp_path / "made")), forms, random_weights=False))


def test_a_table_whose_rows_have_all_failed_is_an_error(tmp_path: Path, cli: Run) -> None:
    folder = save_checkpoint(tmp_path / "damaged", generation={})
    with (folder / "model.safetensors").open("r+b") as stream:
        stream.truncate(stream.seek(0, os.SEEK_END) - 1)
    done = cli("bench", "--table", "--quantize", "int8", "--device", "cpu", "--model", folder)
    assert done.returncode == 4
    assert "nothing could be measured" in done.stderr
    assert "model.safetensors is damaged" in done.stdout
