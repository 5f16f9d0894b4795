from __future__ import annotations

from pathlib import Path

import pytest

from idefics_cli.config import DEFAULT_MODEL, Device, Dtype, ModelSettings
from idefics_cli.diagnostics import environment
from idefics_cli.engine.device import free_host_memory
from idefics_cli.engine.families.published import PUBLISHED
from tests.conftest import Run


def test_versions_of_what_is_there() -> None:
    found = environment.versions(("numpy", "no-such-package"))
    assert list(found) == ["python", "numpy"]


def test_a_model_that_is_here_has_a_verdict(tiny_settings: ModelSettings) -> None:
    found = environment.choices(tiny_settings)
    assert (found["engine"], found["device"], found["dtype"].partition(",")[0]) == ("native", "cpu", "float32")
    assert found["fits"].startswith("yes: ")
    assert environment.weights_location(tiny_settings) is not None


def test_a_model_that_is_not_here_has_a_size_a_command_and_a_verdict() -> None:
    found = environment.missing(ModelSettings(DEFAULT_MODEL, revision="v1", device=Device.CPU, dtype=Dtype.FLOAT32))
    assert found["fetched by"].startswith(f"hf download {DEFAULT_MODEL} --revision v1 ")
    assert found["size"] == ("8.4 billion weights: 17 GB where they are stored in bfloat16, 34 GB in float32")
    free = free_host_memory()
    assert found["fits"].partition(":")[0] == ("unknown" if free is None else "yes" if free > 34e9 else "no")
    small = environment.missing(ModelSettings("HuggingFaceTB/SmolVLM-256M-Instruct", device=Device.CPU))
    assert small["size"].startswith("0.26 billion weights")


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_shape_has_a_size(name: str) -> None:
    assert "GB in float32" in environment.missing(ModelSettings(name, device=Device.CPU))["size"]


def test_nothing_is_known_of_other_models() -> None:
    found = environment.missing(ModelSettings("nobody/nothing", device=Device.CPU))
    assert found["size"].startswith("not known here")
    assert "fits" not in found


def test_doctor_says_it_of_a_model_that_is_not_here(cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    done = cli("doctor", "--model", DEFAULT_MODEL, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert f"hf download {DEFAULT_MODEL} " in done.stdout
    assert "8.4 billion weights" in done.stdout
    warm = cli("doctor", "--model", DEFAULT_MODEL, "--warm")
    assert (warm.returncode, warm.stdout) == (4, "")
    assert f"hf download {DEFAULT_MODEL} fetches it" in warm.stderr
