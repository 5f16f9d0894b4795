from __future__ import annotations

import dataclasses

import pytest

from idefics_cli.config import Attention, Device, Dtype, ModelSettings, Quantize
from idefics_cli.diagnostics.table import Form, measure_table, table_forms
from tests.conftest import Run

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


@pytest.mark.parametrize("flag", ["--start", "--no-reference", "--pages=3"])
def test_what_a_table_would_not_heed_is_refused(flag: str, cli: Run) -> None:
    done = cli("bench", "--table", flag)
    assert done.returncode == 2
    assert "--table and" in done.stderr
