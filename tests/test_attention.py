"""`--attention`: for what transformers runs; what can't be is refused with the way out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from idefics_cli.config import Attention, ModelSettings
from idefics_cli.engine import open_engine
from idefics_cli.engine.attention import check_attention
from idefics_cli.engine.device import DeviceChoice
from idefics_cli.errors import ModelError, UsageError
from tests.small_checkpoints import expected, reference, save_checkpoint, settings_of, small_requests


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("m") / "m", generation={"num_beams": 2})


@pytest.mark.parametrize("attention", [Attention.AUTO, Attention.SDPA, Attention.EAGER])
def test_what_is_asked_for_is_what_computes(attention: Attention, folder: Path) -> None:
    settings = settings_of(folder, attention=attention)
    wanted = "sdpa" if attention is Attention.AUTO else str(attention)
    config = reference(settings).model.config
    assert {part._attn_implementation for part in (config, config.text_config, config.vision_config)} == {wanted}
    engine = open_engine(settings)
    found = [future.result() for future in [engine.submit(request) for request in small_requests()]]
    engine.close()
    assert [(answer.text, answer.new_tokens) for answer in found] == expected(folder)
    assert engine.info.settings.get("--attention") == (None if attention is Attention.AUTO else wanted)


def test_the_native_engine_has_its_own(folder: Path, tiny_settings: ModelSettings) -> None:
    with pytest.raises(UsageError, match=r"--attention eager is for what transformers runs.*leave --attention out"):
        open_engine(dataclasses.replace(tiny_settings, attention=Attention.EAGER))
    open_engine(dataclasses.replace(tiny_settings, attention=Attention.EAGER, num_beams=2)).close()


def test_what_is_not_installed_is_named_with_its_remedy(folder: Path) -> None:
    pytest.importorskip("torch")
    try:
        import flash_attn  # noqa: F401
    except ImportError:
        with pytest.raises(ModelError, match=r"flash-attn is not installed: pip install flash-attn"):
            open_engine(settings_of(folder, attention=Attention.FLASH_ATTENTION_2))
    else:
        settings = settings_of(folder, attention=Attention.FLASH_ATTENTION_2)
        with pytest.raises(UsageError, match="needs a CUDA GPU, not cpu"):
            check_attention(settings, DeviceChoice("cpu", "bfloat16"), is_native=False)
        with pytest.raises(UsageError, match="takes --dtype bfloat16 or float16"):
            check_attention(settings, DeviceChoice("cuda", "float32"), is_native=False)
