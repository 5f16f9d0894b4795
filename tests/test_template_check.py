"""What a chat template leaves out or moves is seen before the question is asked."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from idefics_cli.engine.families.chat_template import ChatTemplate
from idefics_cli.engine.families.template_check import TemplateCheck
from idefics_cli.errors import FailureKind, ModelError, RowFailedError
from idefics_cli.records import PAGE, Turn, plain_turns

EACH = "{% for m in messages %}{{ m.role }}:{% for c in m.content %}"
PART = "{{ '<image>' if c.type == 'image' else c.text }}"
END = "{% endfor %}\n{% endfor %}"
PLAIN = EACH + PART + END
CHAT = (Turn("user", (PAGE, "Who?")), Turn("assistant", ("Ann",)), Turn("user", ("Why?",)))
MIXED = (Turn("user", ("Look at ", PAGE, " and ", PAGE)), Turn("assistant", ("yes",)), Turn("user", (PAGE, "Who?")))
TOKENS = frozenset(("<s>", "<image>", "<fake>"))


def check_of(template: str, tokens: Collection[str] = TOKENS) -> TemplateCheck:
    return TemplateCheck(ChatTemplate(template, "m"), "m", tokens)


@pytest.mark.parametrize(
    "template",
    [
        PLAIN,
        EACH + "{{ '<fake><image><fake>' if c.type == 'image' else c.text | trim }}" + END,  # a token around it
        EACH + "{{ 'Picture: <image>\n' if c.type == 'image' else c.text }}" + END,
    ],
)
def test_a_template_that_says_all_in_its_order_moves_nothing(template: str) -> None:
    check = check_of(template)
    for turns in (CHAT, MIXED, plain_turns("Who?", 3)):
        assert check.moved(turns) == ""
    assert check.chat_refusal == check.examples_refusal == ""


@pytest.mark.parametrize(("order", "place"), [(("image", "text"), "before"), (("text", "image"), "behind")])
def test_pages_that_get_another_place_in_their_turn_are_told(order: tuple[str, str], place: str) -> None:
    parts = "".join(f"{{% for c in m.content if c.type == '{kind}' %}}{PART}{{% endfor %}}" for kind in order)
    check = check_of("{% for m in messages %}{{ m.role }}:" + parts + "\n{% endfor %}")
    assert check.moved(MIXED) == f"the chat template puts the pages of a turn {place} its texts"
    assert bool(check.moved(plain_turns("Who?", 2))) is (place == "behind")


FIRST_IMAGE = "{% set seen = namespace(one=0) %}" + PLAIN.replace("'<image>'", "('<image>' if loop.first)")


@pytest.mark.parametrize(
    ("template", "turns", "words"),
    [
        (PLAIN.replace("in messages", "in messages[:1]"), CHAT, "leaves out or moves what a turn says"),
        (PLAIN.replace("in messages", "in messages | reverse"), CHAT, "leaves out or moves what a turn says"),
        (PLAIN.replace("in messages", "in messages[-1:]"), CHAT, "writes 0 images where the conversation has 1"),
        (FIRST_IMAGE, plain_turns("Who?", 3), "writes 1 images where the conversation has 3"),
        ("{% if messages | length > 1 %}{{ raise_exception('one') }}{% endif %}" + PLAIN, CHAT, "failed: one"),
        ("{% if messages | length > 1 %}{{ messages }}{% endif %}" + PLAIN, CHAT, "only a text"),
    ],
)
def test_what_it_can_not_say_is_refused(template: str, turns: tuple[Turn, ...], words: str) -> None:
    with pytest.raises(RowFailedError, match=words) as caught:
        check_of(template).moved(turns)
    assert caught.value.failure.kind is FailureKind.BAD_QUESTION
    assert caught.value.failure.detail.startswith("m: the chat template")


def test_texts_are_looked_for_where_the_image_can_not_be_told() -> None:
    """The tokenizer knows no token for an image: an image left out is for the processor to see."""
    check = check_of(FIRST_IMAGE, ())
    assert check.moved(plain_turns("Who?", 3)) == ""
    with pytest.raises(RowFailedError, match="leaves out"):
        check_of(PLAIN.replace("in messages", "in messages[:1]"), ()).moved(CHAT)


def test_whole_chats_and_examples_are_refused_before_they_are_asked() -> None:
    one_turn = check_of("{% if messages | length > 1 %}{{ raise_exception('one') }}{% endif %}" + PLAIN)
    assert one_turn.chat_refusal == one_turn.examples_refusal == "m: the chat template failed: one"
    one_page = check_of(
        PLAIN.replace("'<image>'", "('<image>' if not m.content[1:] or loop.first and m == messages[0])")
    )
    assert one_page.chat_refusal == ""
    assert one_page.examples_refusal == "m: the chat template writes 1 images where the conversation has 2"


def test_a_question_about_a_page_must_be_taken() -> None:
    for template, words in (
        ("{{ raise_exception('never') }}", "failed: never"),
        (PLAIN.replace("c.text", "''"), "leaves out or moves what a turn says"),
        ("{% for m in messages %}{{ m.role }}: {{ m.content | trim }}{% endfor %}", "only a text"),
    ):
        with pytest.raises(ModelError, match=f"m: the chat template .*{words}"):
            check_of(template)


def test_a_blank_between_pages_is_no_text() -> None:
    images_first = PLAIN.replace("in m.content", "in m.content | sort(attribute='type')")
    check = check_of(images_first)
    assert check.moved((Turn("user", (PAGE, " ", PAGE, "Who?")),)) == ""
    assert check.moved((Turn("user", (PAGE, "and", PAGE, "Who?")),))
