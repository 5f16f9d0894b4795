"""Chat templates: kept in a sandbox, and given what transformers gives to them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from idefics_cli.engine.checkpoint import read_folder
from idefics_cli.engine.families.chat_template import ChatTemplate, chat_template_of, messages_of
from idefics_cli.errors import ModelError
from idefics_cli.records import PAGE, Turn
from tests.conftest import SAMPLES

TURNS = [Turn("user", (PAGE, "Who?")), Turn("assistant", ("Ann",)), Turn("user", ("Why?",))]


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''.__class__.__base__ }}",
        "{{ raise_exception('no') }}",
        "{% for x in messages %}{{ x.content.append(1) }}{% endfor %}",
        "{{ messages[7].role.x }}",
    ],
)
def test_a_template_is_kept_in_its_sandbox(source: str) -> None:
    with pytest.raises(ModelError, match="the chat template failed"):
        ChatTemplate(source, "m").render([{"role": "user", "content": [{"type": "text", "text": "q"}]}])


def test_a_template_has_what_transformers_gives_to_it() -> None:
    source = "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}"
    turns = [{"role": "user", "content": "é"}] * 2
    assert (
        ChatTemplate(source + "{{ strftime_now('%Y')[:2] }}", "m").render(turns) == '{"role": "user", "content": "é"}20'
    )


def test_tokens_and_marks_of_generation_are_those_of_transformers(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(SAMPLES / "tiny-idefics2", folder, ignore=shutil.ignore_patterns("maker", "*.safetensors"))
    source = (
        "{{ bos_token }}{% for m in messages %}{% set said = 0 %}{% for c in m.content if c.type == 'text' %}"
        "{% generation %}{% set said = said + 1 %}{{ c.text }} {{ said }}{% endgeneration %}{{ said }}{% endfor %}"
        "{{ eos_token }}{{ unk_token }}{{ no_such_token }}\n{% endfor %}{% if add_generation_prompt %}go{% endif %}"
    )
    (folder / "chat_template.jinja").write_text(source)
    chat = chat_template_of(read_folder("m", folder))
    assert chat is not None
    messages = messages_of(TURNS)
    wanted = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )
    assert chat.render(messages) == wanted
    assert wanted.startswith("<s>Who? 10</s>")


def test_a_checkpoint_without_a_template_has_none(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(
        SAMPLES / "tiny-idefics2", folder, ignore=shutil.ignore_patterns("maker", "*.safetensors", "chat_template*")
    )
    assert chat_template_of(read_folder("m", folder)) is None


def test_what_is_no_template_is_named() -> None:
    with pytest.raises(ModelError, match="m: the chat template can't be read"):
        ChatTemplate("{% for %}", "m")


@pytest.mark.parametrize(
    ("source", "has"),
    [
        ("{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}", True),
        ("{% for m in messages if m.role != 'system' %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}", False),
        ("{{ raise_exception('no') if messages[0].role == 'system' }}", False),
    ],
)  # fmt: skip
def test_whether_it_takes_a_system_turn(source: str, has: bool) -> None:
    assert ChatTemplate(source, "m").has_system_turn is has
