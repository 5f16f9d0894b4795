"""Writes labelled values in looks of every kind: beside, above or below, in columns, boxes, rows and sentences."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from tools.tiny_idefics2 import labels, lexicon
from tools.tiny_idefics2.fonts import Family, families
from tools.tiny_idefics2.labels import Pair
from tools.tiny_idefics2.lexicon import NOT_FOUND
from tools.tiny_idefics2.page import Asked, Box, Rule, Text, half_steps
from tools.tiny_idefics2.writer import Writer


@dataclass(frozen=True, slots=True)
class Print:
    """How a piece of text is set."""

    family: Family
    bold: bool
    scale: float


@dataclass(frozen=True, slots=True)
class Look:
    """How a panel of labels and values is set."""

    columns: int
    place: str  # the label stands left of its value, above or below it
    mark: str
    label: Print
    value: Print
    label_right: bool  # labels end where values begin
    at: float | None  # where the value stands in the room right of its label, 0 to 1; None right behind it
    frame: str  # none | cells | outer | lines | blank | zebra | shade
    leaders: str
    pitch: float  # line height in em
    gap: float  # between label and value, in em
    grey: int

    @classmethod
    def random(cls, rng: Random, family: Family, room: float) -> Look:
        """Draw a look for a column of `room` em."""
        place = rng.choice(("left", "left", "left", "left", "above", "above", "below"))
        least = 15 if place == "left" else 9
        columns = min(rng.choices((1, 2, 3, 4), (50, 28, 14, 8))[0], max(1, int(room / least)))
        other = rng.choice(families())
        label = Print(family, rng.random() < 0.45, rng.choice((1, 1, 1, 0.9, 0.85, 0.8)))
        value = Print(family, rng.random() < 0.25, rng.choice((1, 1, 1, 1, 1.15, 1.3, 0.9)))
        if rng.random() < 0.25:
            label, value = rng.choice(((replace(label, family=other), value), (label, replace(value, family=other))))
        tight = place == "left"
        return cls(
            columns,
            place,
            rng.choice((":", ":", "", "", "", " -", " :", ".")) if tight else rng.choice(("", "", ":")),
            label,
            value,
            rng.random() < 0.15,
            rng.choice((None, None, 0.0, 0.0, 0.0, 1.0, 0.5)) if tight else rng.choice((0.0, 0.0, 0.0, 0.5, 1.0)),
            rng.choice(("none", "none", "none", "cells", "outer", "lines", "blank", "zebra", "shade")),
            rng.choice((".", ". ", "_")) if tight and rng.random() < 0.15 else "",
            rng.uniform(1.2, 2.0) if tight else rng.uniform(2.3, 3.2),
            rng.choice((0.4, 0.8, 1.5, rng.uniform(0.4, 5.0))),
            rng.choice((60, 90, 120, 160, 190)),
        )


class PanelWriter(Writer):
    """Writes panels of labels and values too."""

    def pair(self) -> Pair | None:
        """A labelled value that no other label of the page could be meant by; None when none was found soon."""
        rng = self.rng
        for _ in range(8):
            pair = (
                labels.usual(self.values, labels.any_usual(rng)) if rng.random() < 0.5 else labels.invent(self.values)
            )
            if self.names.free(pair.names) and not lexicon.unknown(pair.label):
                self.names.take(pair.names)
                return pair
        return None

    def text(self, x: float, y: float, text: str, style: Print, ink: int | None = None) -> Text:
        """Lay out a piece on the line whose top is y, its foot where plain text has it."""
        size = half_steps(self.em * style.scale)
        drop = 0.93 * (self.em - size)
        return Text(
            x, y + drop, text, style.family, style.bold, size, self.ink if ink is None else ink, self.stretch * size
        )

    def ask_pair(self, pair: Pair, boxes: tuple[Box, ...]) -> None:
        self.shown.append(pair)
        self.page.asked.append(Asked(labels.question(self.rng, pair), pair.value, "field", boxes))
        if pair.field is not None:
            self.used[pair.field.key] = pair.label

    def heading(self) -> None:
        """Head a section: bold, ruled, or in reverse print on a bar."""
        rng, flow = self.rng, self.flow
        style = Print(self.heads, rng.random() < 0.8, rng.choice((1.0, 1.1, 1.2, 1.4)))
        shown = self.text(0, 0, labels.heading(self.values), style)
        if shown.width > flow.x1 - flow.x0 - self.em:
            return
        if (y := flow.take(self.em * style.scale * 1.8)) is None:
            return
        look = rng.choice(("plain", "rule", "bar", "bar", "box"))
        bottom = y + self.em * style.scale * 1.45
        x = flow.x0 + (0.3 * self.em if look in ("bar", "box") else 0)
        if rng.random() < 0.2:
            x += (flow.x1 - x - shown.width) * rng.choice((0.5, 0.97))
        dark = look == "bar" and rng.random() < 0.6
        if look in ("bar", "box"):
            grey = rng.choice((0, 40, 80)) if dark else rng.choice((200, 215, 230))
            self.page.items.append(Rule((flow.x0, y, flow.x1, bottom), grey, outline=look == "box"))
        if look == "rule":
            self.page.items.append(Rule((flow.x0, bottom, flow.x1, bottom + rng.choice((1, 2))), rng.choice((0, 90))))
        self.page.items.append(self.text(x, y + 0.1 * self.em, shown.text, style, 255 if dark else None))

    def panel(self, count: int) -> int:
        """Write about `count` labelled values in one look; return how many stand there."""
        rng, flow = self.rng, self.flow
        look = Look.random(rng, self.family, (flow.x1 - flow.x0) / self.em)
        pairs = [pair for _ in range(count) if (pair := self.pair())]
        width = (flow.x1 - flow.x0) / look.columns
        tabs = [
            max((self.text(0, 0, p.label + look.mark, look.label).width for p in pairs[n :: look.columns]), default=0)
            for n in range(look.columns)
        ]
        height = self.em * max(look.pitch, 1.25 * look.value.scale + (0 if look.place == "left" else 1.0))
        written, first, foot, column = 0, None, flow.y, flow.column
        for start in range(0, len(pairs), look.columns):
            if (y := flow.take(height)) is None or flow.column != column:
                break
            first = y if first is None else first
            row = self._row(pairs[start : start + look.columns], look, y, height, width, tabs, start)
            written += row
            if not row:
                flow.y = y
            foot = flow.y
        if look.frame == "outer" and written and first is not None:
            x0, x1 = flow.columns[column]
            frame = (x0 - 3, first - 2, x1 + 2, foot - 1)
            self.page.items.append(Rule(frame, look.grey, outline=True))
        return written

    def _row(
        self, pairs: list[Pair], look: Look, y: float, height: float, width: float, tabs: list[float], start: int
    ) -> int:
        """Write one row of a panel; return how many of its pairs found room."""
        written = 0
        behind: list[Rule] = []
        inset = 0.3 * self.em if look.frame in ("cells", "zebra", "shade", "outer") else 0.0
        for number, pair in enumerate(pairs):
            x0 = self.flow.x0 + number * width
            x1 = x0 + width - (0 if look.columns == 1 else 0.5 * self.em)
            texts = self._place(pair, look, x0 + inset, x1 - inset, y, tabs[number])
            if texts is None:
                continue
            behind += self._frame(look, (x0, y, x1, y + height), texts, start // look.columns)
            self.page.items += behind
            behind = []
            self.page.items += texts
            self._lead(look, *texts)
            self.ask_pair(pair, (texts[0].box, texts[1].box))
            written += 1
        return written

    def _place(self, pair: Pair, look: Look, x0: float, x1: float, y: float, tab: float) -> tuple[Text, Text] | None:
        """Lay out a label and its value between x0 and x1, or None where they are too wide."""
        label = self.text(x0, y, pair.label + look.mark, look.label)
        value = self.text(x0, y, pair.value, look.value)
        gap = look.gap * self.em
        if look.place == "left":
            start = x0 + (label.width if look.at is None else tab) + (0.4 * self.em if look.at is None else gap)
            room = x1 - start - value.width
            if room < 0 and look.at is not None:  # too far right: directly behind the label
                start, room = x0 + label.width + 0.5 * self.em, x1 - x0 - label.width - 0.5 * self.em - value.width
            if room < 0:
                return None
            if look.label_right and look.at is not None:
                label = replace(label, x=max(x0, start - min(gap, self.em) - label.width))
            return label, replace(value, x=start + room * (look.at or 0.0))
        room = x1 - x0 - max(label.width, value.width)
        if room < 0:
            return None
        line = 1.18 * self.em
        upper, lower = (0.06 * self.em, line * max(1.0, 0.95 * look.label.scale))
        if look.place == "below":
            upper, lower = lower * max(1.0, look.value.scale), upper
        slack = (x1 - x0 - value.width) * (look.at or 0.0)
        shift = (x1 - x0 - label.width) * (look.at or 0.0) if look.label_right else 0.0
        return (
            replace(label, x=x0 + shift, y=label.y + upper),
            replace(value, x=x0 + slack, y=value.y + lower),
        )

    def _frame(self, look: Look, box: Box, texts: tuple[Text, Text], row: int) -> list[Rule]:
        """The rules and shades of one cell."""
        x0, y0, x1, y1 = box
        label, value = texts
        foot = min(y1, value.box[3]) + 1
        match look.frame:
            case "cells":
                return [Rule((x0, y0 - 1, x1, y1 - 1), look.grey, outline=True)]
            case "lines":
                return [Rule((x0, y1 - 2, x1, y1 - 1), look.grey)]
            case "blank":
                return [Rule((value.x - 2, foot, max(value.box[2] + 2, x1 - 0.3 * self.em), foot + 1), look.grey)]
            case "zebra" if row % 2:
                return [Rule((x0, y0, x1, y1), 232)]
            case "shade" if look.place == "left":
                return [Rule((x0, y0, max(x0, min(label.box[2] + 4, value.x - 2)), y1 - 2), 222)]
            case "shade":
                return [Rule((x0, label.y - 1, x1, label.box[3]), 222)]
            case _:
                return []

    def _lead(self, look: Look, label: Text, value: Text) -> None:
        """Draw leaders from a label to its value."""
        if not look.leaders:
            return
        dot = replace(label, text=look.leaders)
        count = int((value.x - label.box[2] - 0.6 * self.em) / dot.width)
        if count > 1:
            self.page.items.append(replace(label, x=label.box[2] + 0.3 * self.em, text=look.leaders * count))

    def run_on(self, count: int) -> int:
        """Write labelled values one behind the other on the same lines."""
        rng, flow = self.rng, self.flow
        mark, between = rng.choice((":", ":", "", " =")), rng.choice(("  ", "   ", " | ", "; ", " / "))
        style = Print(self.family, rng.random() < 0.4, 1.0)
        plain = Print(self.family, False, 1.0)
        x, y, written = flow.x1, None, 0
        for _ in range(count):
            if (pair := self.pair()) is None:
                continue
            label = self.text(0, 0, pair.label + mark, style)
            needed = label.width + 0.35 * self.em + self.text(0, 0, pair.value, plain).width
            if needed > flow.x1 - flow.x0:
                continue
            if y is None or x + needed > flow.x1:
                x, y = flow.x0, flow.take(self.em * self.leading)
                if y is None:
                    break
            elif between.strip():
                self.page.items.append(self.text(x - 0.8 * self.em, y, between.strip(), plain))
            label = self.text(x, y, label.text, style)
            value = self.text(label.box[2] + 0.35 * self.em, y, pair.value, plain)
            self.page.items += [label, value]
            self.ask_pair(pair, (label.box, value.box))
            x, written = value.box[2] + 1.5 * self.em, written + 1
        return written

    def sentences(self, count: int) -> int:
        """State labelled values in a paragraph."""
        rng, body, pairs = self.rng, list[tuple[str, str | None]](), list[Pair]()
        for number in range(count):
            if (pair := self.pair()) is None:
                continue
            pairs.append(pair)
            if rng.random() < 0.4:
                body += [(word, None) for word in self.values.cased(rng.choice(lexicon.FILLER)).split()]
            noun = self.values.cased(rng.choice(pair.nouns) if rng.random() < 0.7 else pair.label)
            sentence = self.values.cased(rng.choice(lexicon.STATEMENTS))
            sentence = sentence.replace("{N}", noun[0].upper() + noun[1:]).replace("{n}", noun)
            before, after = sentence.split("{V}" if self.values.capitals else "{v}")
            pieces = pair.value.split(" ")
            pieces[-1] += after.split(" ")[0]
            body += [(word, None) for word in before.split()]
            body += [(piece, str(number)) for piece in pieces]
            body += [(word, None) for word in after.split(" ")[1:] if word]
            pairs[-1] = replace(pair, field=None, nouns=(noun,), label=noun)
        marked = self.paragraph(body)
        for number, pair in enumerate(pairs):
            texts = marked.get(str(number), [])
            if len(texts) == len(pair.value.split(" ")) and len({text.y for text in texts}) == 1:
                self.ask_pair(pair, tuple(text.box for text in texts))
        return len(pairs)

    def missing(self, count: int) -> None:
        """Ask for labels that the page does not have: near misses of those it has, invented and usual ones."""
        rng = self.rng
        for _ in range(count):
            chance = rng.random()
            if chance < 0.45 and self.shown:
                pair = labels.near_miss(rng, rng.choice(self.shown))
            elif chance < 0.75:
                pair = labels.usual(self.values, labels.any_usual(rng))
            else:
                pair = labels.invent(self.values)
            if self.names.free(pair.names) and not lexicon.unknown(pair.label):
                self.page.asked.append(Asked(labels.question(rng, pair), NOT_FOUND, "absent"))
