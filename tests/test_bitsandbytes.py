"""bitsandbytes' formats: the answers of transformers with the same, and what is refused."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import torch

from idefics_cli.config import Dtype, ModelSettings, Quantize
from idefics_cli.engine import open_engine
from idefics_cli.engine.bitsandbytes import check_bitsandbytes
from idefics_cli.engine.prepare import prepare
from idefics_cli.errors import ModelError, UsageError
from idefics_cli.records import Request
from tests.conftest import SAMPLES, Run
from tests.small_checkpoints import reference, save_checkpoint, settings_of

pytest.importorskip("bitsandbytes")
SKIPPED = ["model.vision_model", "model.connector", "lm_head"]
FORMATS = [quantize for quantize in Quantize if not quantize.is_native]


@pytest.mark.parametrize("quantize", FORMATS)
def test_answers_are_those_of_transformers_with_the_text_model_quantized(
    quantize: Quantize, tiny_settings: ModelSettings, sample_requests: list[Request]
) -> None:
    from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

    settings = dataclasses.replace(tiny_settings, quantize=quantize, dtype=Dtype.BFLOAT16, max_new_tokens=6)
    if quantize is Quantize.BNB_8BIT:
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=SKIPPED)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=SKIPPED,
        )
    folder = SAMPLES / "tiny-idefics2"
    theirs = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=config, device_map="cpu"
    ).eval()
    some = [sample_requests[0], sample_requests[-1]]
    engine = open_engine(settings)
    answers = [engine.submit(request).result() for request in some]
    engine.close()
    assert not any(answer.failure for answer in answers)
    wanted = reference(dataclasses.replace(settings, quantize=Quantize.NONE))
    wanted.model = theirs
    assert [answer.text for answer in answers] == [wanted.generate([request])[0].text for request in some]
    assert engine.info.settings["--quantize"] == str(quantize)
    assert engine.info.settings["engine"].startswith("transformers ")


def test_what_it_can_not_do_is_refused_by_name(tiny_settings: ModelSettings, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="llava: --quantize bnb-4bit is for checkpoints of type idefics2"):
        check_bitsandbytes(Quantize.BNB_4BIT, "llava", "llava", "cpu")
    with pytest.raises(UsageError, match="not for mps"):
        check_bitsandbytes(Quantize.BNB_8BIT, "tiny", "idefics2", "mps")
    settings = dataclasses.replace(tiny_settings, quantize=Quantize.BNB_4BIT)
    with pytest.raises(UsageError, match="prepare in bfloat16"):
        prepare(settings, tmp_path / "prepared")
    made = prepare(dataclasses.replace(tiny_settings, quantize=Quantize.INT4), tmp_path / "int4")
    with pytest.raises(ModelError, match="weights prepared in int4 don't run in bnb-4bit"):
        open_engine(dataclasses.replace(settings, model=str(made.folder)))


def test_a_small_checkpoint_in_float16_answers_with_it_too(tmp_path: Path) -> None:
    settings = settings_of(save_checkpoint(tmp_path / "small"))
    engine = open_engine(dataclasses.replace(settings, quantize=Quantize.BNB_4BIT, dtype=Dtype.FLOAT16))
    assert engine.info.settings["--dtype"] == "float16"
    engine.close()


def test_no_code_is_fetched_from_the_hub(cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CPUs with AVX-512 for bfloat16 bitsandbytes asks the package kernels for code of the hub, when it is imported."""
    package = tmp_path / "kernels"
    package.mkdir()
    asked = tmp_path / "asked"
    (package / "__init__.py").write_text(
        f"def get_kernel(*_, **__):\n    from pathlib import Path\n    Path({str(asked)!r}).touch()\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    question = (SAMPLES / "documents" / "notice.bmp", "What is the date?")
    done = cli("ask", *question, "--model", "tiny", "--quantize", "bnb-4bit", "--max-new-tokens", "1")
    assert (done.returncode, "kernels" in done.stderr, asked.exists()) == (0, False, False), done.stderr
