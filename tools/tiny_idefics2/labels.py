"""Labels of any words at all with a value of any kind, and how questions ask for them.

Reading cannot lean on a list of labels here: most are drawn from the word lists, made up, or put together, so that
"What is the X?" means to find X on the page and to read what belongs to it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from tools.tiny_idefics2 import lexicon
from tools.tiny_idefics2.fields import FIELDS, Field, ask
from tools.tiny_idefics2.lexicon import any_label_word
from tools.tiny_idefics2.values import Values


@dataclass(frozen=True, slots=True)
class Pair:
    """A label with its value: the label as the page shows it, and what questions may call it."""

    label: str
    value: str
    nouns: tuple[str, ...]
    asked_as: str = "what"  # what | who | when
    field: Field | None = None  # of the table of usual fields, where it comes from there

    @property
    def names(self) -> tuple[str, ...]:
        """All that the label may be called."""
        known = (*self.field.labels, *self.field.nouns) if self.field else ()
        return (self.label, *self.nouns, *known)


_ABOUT = (
    "order delivery contract policy project account customer member client supplier vehicle product batch case file "
    "claim payment service visit course event ticket booking permit license meter route site plant station machine "
    "sample test report survey budget grant loan lease rent tax fee shipment parcel container pallet warehouse shift "
    "team group branch office school class exam patient ward donor owner agent driver buyer seller tenant landlord "
    "sponsor guest host pilot author editor reviewer trainer student teacher item part model version series unit lot "
    "stock cost price credit debit transfer card voucher coupon return repair warranty inspection audit safety fire "
    "water gas power heating cooling storage cargo flight train bus gate seat platform birth issue expiry start end "
    "entry exit arrival departure review approval billing mailing home work next last first main total net gross"
).split()

_ENDINGS: tuple[tuple[str, str, str], ...] = (
    ("{} number|{} no.|{} No|{} No.|{} #|{} nr.|{} num.|No. of {}", "{} number", "code"),
    ("{} number|{} no.|{} No|{} No.|{} #|{} nr.", "{} number", "figures"),
    ("{} ID|{} id", "{} ID", "code"),
    ("{} code", "{} code", "code"),
    ("{} ref.|{} reference|{} ref", "{} reference", "code"),
    ("{} date|Date of {}", "{} date|date of {}", "date"),
    ("{} name|Name of {}", "{} name|name of {}", "person"),
    ("{} person|{} by", "{} person", "person"),
    ("{} contact|Contact for {}", "{} contact", "person"),
    ("{} firm|{} company|{} co.", "{} firm", "company"),
    ("{} amount|{} amt.|Amount of {}", "{} amount|amount of {}", "amount"),
    ("{} fee|{} charge", "{} fee", "amount"),
    ("{} total|Total {}", "{} total|total {}", "amount"),
    ("{} phone|{} tel.|{} telephone", "{} phone|{} phone number", "phone"),
    ("{} email|{} e-mail", "{} email|{} email address", "email"),
    ("{} address|Address of {}", "{} address", "address"),
    ("{} city|{} town|{} place", "{} city", "city"),
    ("{} time|Time of {}", "{} time", "time"),
    ("{} type|Type of {}|{} kind", "{} type", "phrase"),
    ("{} weight|{} wt.", "{} weight", "measure"),
    ("{} length|{} size", "{} length", "measure"),
    ("{} status|Status of {}", "{} status", "word"),
    ("{} rate|{} share", "{} rate", "percent"),
    ("{} title|{} subject", "{} title", "subject"),
)
"""Endings of labels put together, what questions call them, and the kind of value."""

_KINDS = (
    "person person company company code code code date date date amount amount figures figures figures city word word "
    "item subject phone email address job time measure measure percent phrase phrase phrase number choice"
).split()
_AS = {"person": "who", "company": "who", "date": "when"}


def draw_value(values: Values, kind: str) -> str:
    """A value of a kind, in capitals where the page is."""
    draw: Callable[[], str] = getattr(values, kind)
    return values.cased(draw())


def invent(values: Values) -> Pair:
    """A label that no list holds, with a value: drawn word by word, or put together."""
    rng = values.rng
    chance = rng.random()
    if chance < 0.7:
        about = rng.choice(_ABOUT) if rng.random() < 0.8 else any_label_word(rng)
        labels, nouns, kind = rng.choice(_ENDINGS)
        label = rng.choice(labels.split("|")).format(about)
        called = tuple(noun.format(about) for noun in nouns.split("|"))
        if rng.random() < 0.15:
            kind = rng.choice(_KINDS)
    else:
        words = [
            rng.choice(_ABOUT) if rng.random() < 0.5 else any_label_word(rng)
            for _ in range(rng.choices((1, 2, 3, 4), (35, 42, 16, 7))[0])
        ]
        if len(words) > 2 and rng.random() < 0.6:
            words[1:-1] = [rng.choice(("of", "and", "for", "in", "per", "at"))]
        label = " ".join(words)
        called, kind = (label,), rng.choice(_KINDS)
        if rng.random() < 0.22:
            label, called = _adorned(rng, label)
    label = values.cased(recased(rng, label))
    return Pair(label, draw_value(values, kind), called, _AS.get(kind, "what"))


def _adorned(rng: Random, label: str) -> tuple[str, tuple[str, ...]]:
    """Give a label a number, a unit or a mark; and what it may be called then."""
    number = rng.randint(1, 99)
    unit = rng.choice(("kg", "cm", "EUR", "%", "if any", "m2", "hours", "optional", "km/h"))
    form = rng.choice(("{l} ({u})", "{l} {n}", "{n}. {l}", "{l} {c}", "{l} (%)", "{c}{n} {l}", "{l}, {u}", "{l} / {c}"))
    full = form.format(l=label, u=unit, n=number, c=rng.choice("ABCDEKX"))
    return full, (full, label) if "{u}" in form or "%" in form else (full,)


def recased(rng: Random, label: str) -> str:
    """A label as pages print it: first word with a capital, all of them, none, or in capitals."""
    chance = rng.random()
    if chance < 0.5:
        return label[0].upper() + label[1:]
    if chance < 0.75:
        return " ".join(word if word in ("of", "and", "for") else word[0].upper() + word[1:] for word in label.split())
    return label.upper() if chance < 0.9 else label


def usual(values: Values, field: Field) -> Pair:
    """A field of the table of usual ones, as a pair."""
    label = values.rng.choice(field.labels)
    if values.rng.random() < 0.12:
        label = label.upper()
    return Pair(values.cased(label), values.cased(field.draw(values)), field.nouns, field.asked_as, field)


@lru_cache(maxsize=16_384)
def words_of(name: str) -> frozenset[str]:
    """The words of a label without regard to case and marks."""
    known = {"no": "number", "nr": "number", "num": "number", "ref": "reference", "tel": "phone", "telephone": "phone"}
    found = re.findall(r"[^\W_]+", name.lower().replace("#", " number ").replace("e-mail", "email"))
    return frozenset(known.get(word, word) for word in found)


class Names:
    """What the labels of a page are called, so that no question fits two of them."""

    def __init__(self) -> None:
        self.taken: dict[str, list[frozenset[str]]] = {}  # by each of their words

    def free(self, names: Sequence[str]) -> bool:
        """Whether no label of the page could be meant by any of these, as part or whole."""
        return not any(
            words <= other or other <= words
            for words in map(words_of, names)
            for word in words
            for other in self.taken.get(word, ())
        )

    def take(self, names: Sequence[str]) -> None:
        for words in map(words_of, names):
            for word in words:
                self.taken.setdefault(word, []).append(words)


WORDINGS = (
    *("What is the {}?",) * 14,
    *("{}?", "What's the {}?", "Find the {}.", "What {} is given?", "Give the {}.") * 2,
    *("Which {} is stated?", "what is the {}", "Can you tell me the {}?", "Tell me the {}.", "State the {}."),
    *("What is {}?", "What does the page give as {}?", "What is written for {}?", "Read the {}.", "{}", "{}:"),
    *("Which {} is shown?", "What is the value of {}?", "Value of {}?", "Please give the {}.", "the {}?"),
    *("What {} is named here?", "What does it say under {}?", "What stands next to {}?", "Extract the {}."),
    *("Which {} does the document state?", 'What is entered under "{}"?', "I need the {}.", "What was the {}?"),
    *("How is {} filled in?", "Show the {}.", "Look up the {}.", "What is the {} on this page?", "Get {}."),
)
_WHO = ("Who is the {}?", "Who is the {}?", "Who is named as {}?", "Who is given as {}?", "Name the {}.")
_WHEN = ("When is the {}?", "When is the {}?", "Which day is the {}?", "On what date is the {}?")


def question(rng: Random, pair: Pair) -> str:
    """Word a question for a pair: by what it is called, or by its label as the page has it or in another case."""
    if pair.field is not None and rng.random() < 0.5:
        return ask(pair.field, pair.label, rng)
    noun = rng.choice(pair.nouns)
    chance = rng.random()
    if chance < 0.3:
        noun = pair.label.rstrip(".:")
    elif chance < 0.4:
        noun = rng.choice((pair.label.lower(), pair.label.upper(), pair.label.title()))
    wordings: Sequence[str] = WORDINGS
    if rng.random() < 0.4:
        wordings = {"who": _WHO, "when": _WHEN}.get(pair.asked_as, WORDINGS)
    text = rng.choice(wordings).format(noun)
    return text if rng.random() < 0.12 else text[0].upper() + text[1:]


def near_miss(rng: Random, pair: Pair) -> Pair:
    """A pair like this one that is another: one word of its label changed or added."""
    words = pair.nouns[0].split()
    other = rng.choice(_ABOUT) if rng.random() < 0.5 else any_label_word(rng)
    if len(words) > 1:
        words[rng.randrange(len(words))] = other
    else:
        words = [other, *words] if rng.random() < 0.3 else [other]
    noun = " ".join(words)
    return Pair(recased(rng, noun), "", (noun,), pair.asked_as)


def any_usual(rng: Random) -> Field:
    return rng.choice(tuple(FIELDS.values()))


def heading(values: Values) -> str:
    """Some words to head a section with."""
    rng = values.rng
    words = [rng.choice(_ABOUT) if rng.random() < 0.4 else any_label_word(rng) for _ in range(rng.randint(1, 3))]
    if rng.random() < 0.3:
        words.append(rng.choice(("details", "data", "information", "summary", "overview", "record", "section")))
    text = recased(rng, " ".join(words))
    return values.cased(f"{rng.randint(1, 9)}. {text}" if rng.random() < 0.15 else text)


assert not set("".join(_ABOUT)) - set(lexicon.CHARACTERS)
