from __future__ import annotations

from pathlib import Path

import pytest

from idefics_cli.config import Device, ModelSettings
from idefics_cli.engine import survey
from idefics_cli.engine.checkpoint import open_checkpoint
from tests.conftest import Run


def test_what_is_installed() -> None:
    assert {"python", "idefics-cli", "torch", "transformers", "pypdfium2"} <= set(survey.installed())
    assert set(survey.rasterizers()) == {"pdfium", "poppler"}


def test_where_weights_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert survey.weights_at_hand(ModelSettings("tiny")) == "embedded"
    assert survey.weights_at_hand(ModelSettings(str(tmp_path))) == str(tmp_path)
    assert survey.weights_at_hand(ModelSettings("someone/nothing")) is None


def test_choices_come_with_their_reasons() -> None:
    found = survey.choices(open_checkpoint(ModelSettings("tiny", device=Device.CPU)))
    assert found["number format"].startswith("float32")
    assert found["batch size"] == "8, on a processor"
    asked = survey.choices(open_checkpoint(ModelSettings("tiny", device=Device.CPU, batch_size=3)))
    assert asked["batch size"] == "3, as asked for"


def test_doctor_says_what_would_run_and_asks_the_canary(cli: Run) -> None:
    done = cli("doctor", "--model", "tiny", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    for words in ("transformers", "pdfium", "weights", "batch size", "changes with the image", "in a mixed batch"):
        assert words in done.stdout
    assert "WRONG" not in done.stdout


def test_doctor_downloads_nothing_and_exits_4_for_what_is_broken(cli: Run, tmp_path: Path) -> None:
    done = cli("doctor", "--model", "someone/nothing")
    assert (done.returncode, "not on this machine" in done.stdout) == (0, True)
    assert cli("doctor", "--model", tmp_path).returncode == 4
