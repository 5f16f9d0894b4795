from __future__ import annotations

import math
from pathlib import Path

import pytest

from idefics_cli.config import Device, ModelSettings
from idefics_cli.diagnostics.bench import Benchmark, BenchSettings, Measurement, Report
from idefics_cli.diagnostics.flops import page_flops, token_flops
from idefics_cli.diagnostics.random_model import full_shape_checkpoint
from idefics_cli.diagnostics.start import measure_start
from idefics_cli.engine.families import idefics2_family_of, native_family_of
from idefics_cli.errors import UsageError


def test_every_way_is_measured_and_the_report_comes_last(tmp_path: Path) -> None:
    model = ModelSettings("tiny", device=Device.CPU, max_new_tokens=3, ignore_eos=True)
    results = list(Benchmark(BenchSettings(model, pages=1, questions=2, reference=False, workers=1), tmp_path).run())
    report = results[-1]
    assert isinstance(report, Report)
    assert report.measurements == results[:-1]
    ways = [(one.way, one.split, one.questions_per_page) for one in results[:-1] if isinstance(one, Measurement)]
    assert ways == [
        ("engine", True, 1),
        ("engine", False, 1),
        ("engine", True, 2),
        ("engine", False, 2),
        ("engine from disk", True, 1),
    ]
    split = report.measurements[0]
    assert math.isclose(split.pages_per_s * split.seconds, split.pages, rel_tol=1e-9)
    assert split.vision_ms is not None
    assert 0 < split.vision_ms / 1e3 < split.seconds * 2
    assert report.peak_tflops > 0
    assert report.new_tokens == 3


def test_the_8b_shape_needs_a_gpu(tmp_path: Path) -> None:
    settings = BenchSettings(ModelSettings("tiny", device=Device.CPU), random_weights=True)
    with pytest.raises(UsageError, match="GPU"):
        Benchmark(settings, tmp_path)


def test_the_full_shape_is_that_of_the_published_model() -> None:
    family = idefics2_family_of(full_shape_checkpoint(ModelSettings()))
    count = sum(math.prod(shape) for shape in family.config.weight_shapes().values())
    assert round(count / 1e9, 2) == 8.40
    assert (family.image_processor.longest_edge, family.image_processor.shortest_edge) == (980, 378)
    assert family.native_gaps == ()


@pytest.mark.parametrize(
    ("name", "count", "tokens"),
    [
        ("HuggingFaceTB/SmolVLM-256M-Instruct", 256_484_928, 64),
        ("HuggingFaceTB/SmolVLM2-500M-Video-Instruct", 507_482_304, 64),
        ("HuggingFaceTB/SmolVLM2-2.2B-Instruct", 2_246_000_000, 81),
        ("HuggingFaceM4/Idefics3-8B-Llama3", 8_462_000_000, 169),
    ],
)
def test_shapes_of_tiled_models_have_their_number_of_weights(name: str, count: int, tokens: int) -> None:
    family = native_family_of(full_shape_checkpoint(ModelSettings(name)))
    assert sum(map(math.prod, family.config.weight_shapes().values())) == pytest.approx(count, rel=1e-3)
    assert (family.config.image_seq_len, family.config.max_crops, family.native_gaps) == (tokens, 17, ())


def test_a_shape_that_is_not_known_is_refused_with_those_that_are() -> None:
    with pytest.raises(UsageError, match=r"SmolVLM-256M-Instruct.*not of someone/else"):
        full_shape_checkpoint(ModelSettings("someone/else"))


def test_operations_are_counted_from_the_shapes() -> None:
    config = native_family_of(full_shape_checkpoint(ModelSettings())).config
    # A letter page split into five crops of 54 x 70 patches: 15.5 tower products, 8.9 attention, 3.5 projection,
    # 0.4 perceiver, in TFLOP, counted by hand from the published sizes.
    assert page_flops(config, [54 * 70] * 5) == pytest.approx(28.3e12, rel=0.02)
    assert token_flops(config) == pytest.approx(2 * 6.98e9, rel=0.01)


def test_a_start_is_measured_stage_by_stage() -> None:
    start = next(measure_start(ModelSettings("tiny", device=Device.CPU)))
    stages = [start.interpreter_s, start.torch_s, start.weights_s, start.answer_s, start.second_answer_s, start.exit_s]
    assert stages == sorted(stages)
    assert (start.peak_host_gb is not None) == Path("/proc/self/status").exists()
    assert start.peak_host_gb is None or 0.1 < start.peak_host_gb < 8
