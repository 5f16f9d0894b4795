"""Draws the values of generated pages: names, companies, codes, dates, amounts.

More than half of the open-class values are made-up words or strings of no sense, so that reading cannot lean on a
vocabulary. They are held out by a hash: a value belongs to the training pages or to the evaluation pages, never both.
"""

from __future__ import annotations

import string
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from tools.tiny_idefics2 import lexicon
from tools.tiny_idefics2.lexicon import any_word

_KNOWN = frozenset(lexicon.CHARACTERS)


def is_held_out(value: str) -> bool:
    """Whether an open-class value belongs to the evaluation pages (one in ten does)."""
    return zlib.crc32(value.encode()) % 10 == 0


@dataclass(frozen=True, slots=True)
class Values:
    """Draws values; `held_out` says from which side of the hash."""

    rng: Random
    held_out: bool
    capitals: bool = False  # the page is printed in capitals

    def cased(self, text: str) -> str:
        return text.upper() if self.capitals else text

    def _open(self, make: Callable[[], str]) -> str:
        while True:
            value = self.cased(make())
            if is_held_out(value) == self.held_out and _KNOWN.issuperset(value):
                return value

    def person(self) -> str:
        rng = self.rng

        def make() -> str:
            first, last = any_word(rng, "first_names"), any_word(rng, "surnames")
            chance = rng.random()
            if chance < 0.06:
                first = f"{first} {rng.choice(string.ascii_uppercase)}."
            elif chance < 0.10:
                first = f"{first[0]}."
            elif chance < 0.14:
                first = f"{rng.choice(('Dr', 'Mr', 'Ms', 'Mrs', 'Prof.'))} {first}"
            elif chance < 0.18:
                last = f"{last}-{any_word(rng, 'surnames')}"
            elif chance < 0.21:
                last = f"{rng.choice(('van', 'de', 'von', 'Mc', 'O'))} {last}"
            name = f"{first} {last}"
            return name.upper() if rng.random() < 0.06 else name

        return self._open(make)

    def company(self) -> str:
        rng = self.rng

        def make() -> str:
            first = any_word(rng, rng.choice(("words", "surnames")))
            chance = rng.random()
            if chance < 0.15:
                first = f"{first} & {any_word(rng, 'surnames')}"
            trade = rng.choice(lexicon.COMPANY_TRADES) if chance < 0.7 else any_word(rng, "words")
            end = rng.choice(lexicon.COMPANY_ENDS)
            name = f"{first} {trade} {end}" if rng.random() < 0.75 else f"{first} {rng.choice((trade, end))}"
            return name.upper() if rng.random() < 0.1 else name

        return self._open(make)

    def city(self) -> str:
        return self._open(lambda: any_word(self.rng, "cities"))

    def job(self) -> str:
        rng = self.rng
        return self._open(
            lambda: (
                rng.choice(lexicon.words("jobs"))
                if rng.random() < 0.7
                else f"{any_word(rng, 'words')} {rng.choice(('manager', 'clerk', 'officer', 'engineer', 'assistant'))}"
            )
        )

    def department(self) -> str:
        return self.one(lexicon.DEPARTMENTS) if self.rng.random() < 0.4 else self.word()

    def word(self) -> str:
        return self._open(lambda: any_word(self.rng, "words"))

    def item(self) -> str:
        """The name of a thing that is sold, of one to three words."""
        rng = self.rng
        if rng.random() < 0.25:
            return rng.choice(lexicon.ITEMS)

        def make() -> str:
            rest = [any_word(rng, "words") for _ in range(rng.choice((0, 1, 1, 1, 2)))]
            name = " ".join((any_word(rng, "words"), *(word if rng.random() < 0.3 else word.lower() for word in rest)))
            chance = rng.random()
            if chance < 0.12:
                name += f" {rng.choice(('A', 'X', 'M', 'No. ', 'XL', ''))}{rng.randint(1, 900)}"
            return name.upper() if 0.12 <= chance < 0.2 else name

        return self._open(make)

    def subject(self) -> str:
        rng = self.rng
        if rng.random() < 0.3:
            return rng.choice(lexicon.SUBJECTS)
        forms = ("your {0}", "the {0} {1}", "{0} of the {1}", "our {0} and {1}", "New {0} for {1}", "{0} {1}")
        return self._open(
            lambda: rng.choice(forms).format(any_word(rng, "words").lower(), any_word(rng, "words").lower())
        )

    def digits(self, low: int, high: int) -> str:
        return self._open(lambda: "".join(self.rng.choices(string.digits, k=self.rng.randint(low, high))))

    def room(self) -> str:
        return self.digits(2, 3)

    def code(self, *prefixes: str) -> str:
        rng = self.rng

        def make() -> str:
            if rng.random() < 0.3:  # letters and digits in no order
                groups = rng.choice(((4, 4), (3, 3), (2, 5), (6,), (8,), (5, 2), (2, 2, 4)))
                mark = rng.choice("-/. -")
                return mark.join(
                    "".join(rng.choices(string.ascii_uppercase + 2 * string.digits, k=size)) for size in groups
                )
            prefix = rng.choice(prefixes) if prefixes else "".join(rng.choices(string.ascii_uppercase, k=2))
            separator = rng.choice(("-", "-", "", " ", "/")) if prefix else ""
            return prefix + separator + "".join(rng.choices(string.digits, k=rng.randint(3, 7)))

        return self._open(make)

    def date(self) -> str:
        rng = self.rng

        def make() -> str:
            day, month, year = rng.randint(1, 31), rng.randint(1, 12), rng.randint(1985, 2035)
            name = lexicon.MONTHS[month - 1]
            forms = (
                f"{day} {name} {year}",
                f"{name} {day}, {year}",
                f"{year}-{month:02}-{day:02}",
                f"{day:02}.{month:02}.{year}",
                f"{month:02}/{day:02}/{year}",
                f"{day} {name[:3]} {year}",
                f"{name[:3]} {day}, {year}",
                f"{day:02}-{month:02}-{year}",
                f"{day}/{month}/{year % 100:02}",
                f"{day} {name[:3].upper()} {year}",
            )
            return rng.choice(forms)

        return self._open(make)

    def time(self) -> str:
        text = f"{self.rng.randint(0, 23):02}:{self.rng.randint(0, 59):02}"
        return text + self.rng.choice(("", "", "", " pm", " am"))

    def number(self) -> str:
        rng = self.rng
        whole = int(10 ** rng.uniform(0.0, 5.3))
        cents = f"{rng.randint(0, 99):02}"
        style = rng.random()
        if style < 0.6:
            return f"{whole:,}.{cents}"
        if style < 0.85:
            return f"{whole}.{cents}"
        return f"{whole:,}".replace(",", ".") + f",{cents}" if style < 0.95 else f"{whole:,}"

    def amount(self) -> str:
        signs = ("$", "$", "€", "£", "", "", "EUR ", "USD ", "CHF ", "GBP ")
        return self._open(lambda: self.rng.choice(signs) + self.number())

    def email(self) -> str:
        rng = self.rng
        return self._open(
            lambda: (
                f"{any_word(rng, 'first_names').lower()}@{any_word(rng, 'words').lower()}."
                f"{rng.choice(('com', 'org', 'net', 'eu', 'de', 'info'))}"
            )
        )

    def phone(self) -> str:
        rng = self.rng

        def make() -> str:
            start = rng.choice(("+1 555 ", "+44 20 ", "555-", "(555) ", "0", "+49 30 ", f"+{rng.randint(30, 99)} "))
            rest = (f"{rng.randint(1000, 9999999)}", f"{rng.randint(100, 999)} {rng.randint(1000, 9999)}")
            return start + rng.choice(rest)

        return self._open(make)

    def address(self) -> str:
        rng = self.rng

        def make() -> str:
            known = rng.random() < 0.2
            street = rng.choice(lexicon.STREETS) if known else any_word(rng, rng.choice(("words", "cities")))
            return f"{rng.randint(1, 999)} {street} {rng.choice(lexicon.STREET_ENDS)}"

        return self._open(make)

    def figures(self) -> str:
        """Digits in groups, or a few with a mark."""
        rng = self.rng

        def make() -> str:
            groups = (
                [rng.randint(2, 8)] if rng.random() < 0.5 else [rng.randint(2, 6) for _ in range(rng.randint(2, 3))]
            )
            mark = rng.choice("  -./")
            return mark.join("".join(rng.choices(string.digits, k=size)) for size in groups)

        return self._open(make)

    def measure(self) -> str:
        rng = self.rng
        units = ("kg", "g", "cm", "mm", "m", "km", "l", "ml", "hours", "days", "pcs", "kWh", "m2", "V", "t", "min")
        return self._open(
            lambda: (
                f"{rng.randint(1, 9999) if rng.random() < 0.6 else round(rng.uniform(0.1, 999), rng.randint(1, 2))}"
                f"{rng.choice((' ', ' ', ''))}{rng.choice(units)}"
            )
        )

    def percent(self) -> str:
        rng = self.rng
        figure = str(rng.randint(1, 100)) if rng.random() < 0.5 else f"{rng.uniform(0, 100):.{rng.randint(1, 2)}f}"
        return figure + rng.choice(("%", " %"))

    def phrase(self) -> str:
        """One to four words of no sense."""
        rng = self.rng

        def make() -> str:
            words = [lexicon.any_label_word(rng) for _ in range(rng.randint(1, 4))]
            text = " ".join(words)
            chance = rng.random()
            return text if chance < 0.3 else text.title() if chance < 0.5 else text[0].upper() + text[1:]

        return self._open(make)

    def choice(self) -> str:
        return self.one(("Yes", "No", "None", "n/a", "open", "closed", "paid", "A", "B", "C", "1", "2", "high", "low"))

    def one(self, choices: Sequence[str]) -> str:
        return self.rng.choice(choices)
