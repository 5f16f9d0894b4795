"""Writes the plain pieces of a page: titles, labelled fields, paragraphs, and questions for what is absent."""

from __future__ import annotations

from tools.tiny_idefics2 import fields as field_table
from tools.tiny_idefics2 import lexicon
from tools.tiny_idefics2.fields import FIELDS, Field
from tools.tiny_idefics2.fonts import families
from tools.tiny_idefics2.labels import Names, Pair
from tools.tiny_idefics2.lexicon import NOT_FOUND
from tools.tiny_idefics2.page import Asked, Flow, Page, Rule, Text, half_steps
from tools.tiny_idefics2.values import Values


class Writer:
    """Writes titles, blocks of fields and filler."""

    def __init__(self, page: Page, values: Values, columns: int) -> None:
        self.page, self.values, self.rng = page, values, values.rng
        rng = self.rng
        self.family = rng.choice(families())
        self.heads = self.family if rng.random() < 0.6 else rng.choice(families())
        self.ink = rng.choice((0, 0, 0, 20, 40, 60))
        self.leading = rng.uniform(1.28, 1.7)
        self.flow = Flow(page, rng, columns, clear=0.9)
        self.used: dict[str, str | None] = {}
        self.items: set[str] = set()  # in a table or asked for as absent: no item has two answers
        self.em = page.em
        self.stretch = 0.0  # of spaces between words, in em
        self.names = Names()  # what the labels are called
        self.shown: list[Pair] = []  # the labels that are asked for

    # --- pieces ---

    def put(self, x: float, y: float, text: str, *, bold: bool = False, scale: float = 1.0, head: bool = False) -> Text:
        size = half_steps(self.em * scale)
        item = Text(x, y, text, self.heads if head else self.family, bold, size, self.ink, self.stretch * size)
        self.page.items.append(item)
        return item

    def title(self, text: str, *, scale: float | None = None) -> Text | None:
        scale = scale or self.rng.uniform(1.2, 1.8)
        while (
            scale > 1
            and Text(0, 0, text, self.heads, True, half_steps(self.em * scale)).width > self.flow.x1 - self.flow.x0
        ):
            scale -= 0.1
        y = self.flow.take(self.em * scale * 1.5)
        if y is None:
            return None
        item = self.put(self.flow.x0, y, text, bold=True, scale=scale, head=True)
        slack = self.flow.x1 - self.flow.x0 - item.width
        if slack > 0 and self.rng.random() < 0.3:
            self.page.items[-1] = item = Text(
                item.x + slack * self.rng.choice((0.5, 1.0)), y, text, self.heads, True, item.size, self.ink
            )
        return item

    def fields(self, fields: list[Field]) -> None:
        """Write labels with their values in one style, and ask for each."""
        rng, flow = self.rng, self.flow
        if len(fields) > 1 and flow.x1 - flow.x0 > 18 * self.em and rng.random() < 0.15:
            self.fields_across(fields)
            return
        style = rng.choice(("colon", "colon", "tabs", "tabs", "right", "stack", "box"))
        ruled = style in ("tabs", "right") and rng.random() < 0.3
        dotted = style == "right" and rng.random() < 0.3
        bold_label, bold_value = rng.random() < 0.4, rng.random() < 0.15
        mark = ":" if style == "colon" or rng.random() < 0.5 else ""
        labels = {f.key: rng.choice(f.labels) for f in fields}
        if rng.random() < 0.15:
            labels = {key: label.upper() for key, label in labels.items()}
        tab = max(Text(0, 0, labels[f.key] + mark, self.family, bold_label, self.em).width for f in fields)
        tab += self.em * rng.uniform(0.7, 1.6)
        for f in fields:
            value, label = f.draw(self.values), labels[f.key]
            label_width = Text(0, 0, label + mark, self.family, bold_label, self.em).width
            value_width = Text(0, 0, value, self.family, bold_value, self.em).width
            stacked = style in ("stack", "box")
            if stacked:
                needed = max(label_width * 0.85, value_width) + self.em * 0.5
            elif style == "tabs":
                needed = tab + value_width
            else:
                needed = label_width + value_width + self.em * 0.8
            height = self.em * ({"box": 2.75, "stack": 2.5}.get(style, self.leading))
            y = flow.take(height)
            if y is None:
                return
            if needed > flow.x1 - flow.x0:
                flow.y = y  # does not fit the column: give the line back
                continue
            if stacked:
                inset = self.em * 0.3 if style == "box" else 0.0
                shown = self.put(flow.x0 + inset, y + inset * 0.4, label, bold=bold_label, scale=0.85)
                given = self.put(flow.x0 + inset, y + self.em * 1.08 + inset * 0.3, value, bold=bold_value)
                if style == "box":
                    frame = (flow.x0, y, flow.x0 + max(needed, (flow.x1 - flow.x0) * 0.9), y + height - 2)
                    self.page.items.append(Rule(frame, rng.choice((0, 90, 140)), outline=True))
            else:
                shown = self.put(flow.x0, y, label + mark, bold=bold_label)
                x = {
                    "colon": flow.x0 + label_width + self.em * 0.35,
                    "tabs": flow.x0 + tab,
                    "right": flow.x1 - value_width,
                }[style]
                given = self.put(x, y, value, bold=bold_value)
                if dotted:
                    dots = int((x - shown.box[2]) / Text(0, 0, ".", self.family, False, self.em).width) - 2
                    self.put(shown.box[2] + self.em * 0.3, y, "." * max(0, dots))
                if ruled:
                    bottom = y + self.em * 1.25
                    self.page.items.append(Rule((flow.x0, bottom, flow.x1, bottom + 1), rng.choice((60, 120, 180))))
            self.used[f.key] = label
            self.page.asked.append(Asked(field_table.ask(f, label, rng), value, "field", (shown.box, given.box)))

    def fields_across(self, fields: list[Field]) -> None:
        """Write fields two or three to a row, each label above its value."""
        rng, flow = self.rng, self.flow
        across, framed, bold = rng.choice((2, 2, 3)), rng.random() < 0.5, rng.random() < 0.3
        upper, scale = rng.random() < 0.25, rng.choice((0.85, 1.0))
        while fields:
            width = (flow.x1 - flow.x0) / across
            y = flow.take(self.em * 2.7)
            if y is None:
                return
            for cell in range(across):
                f = fields.pop(0) if fields else None
                while f is not None:
                    value, label = f.draw(self.values), rng.choice(f.labels)
                    label = label.upper() if upper else label
                    longest = max(Text(0, 0, text, self.family, True, self.em).width for text in (label, value))
                    if longest <= width - 0.5 * self.em:
                        break
                    f = fields.pop(0) if fields else None
                if f is None:
                    return
                x = flow.x0 + cell * width + 0.2 * self.em
                shown = self.put(x, y + 1, label, bold=bold, scale=scale)
                given = self.put(x, y + self.em * 1.2, value)
                if framed:
                    frame = (flow.x0 + cell * width, y, flow.x0 + (cell + 1) * width, y + 2.6 * self.em)
                    self.page.items.append(Rule(frame, 120, outline=True))
                self.used[f.key] = label
                self.page.asked.append(Asked(field_table.ask(f, label, rng), value, "field", (shown.box, given.box)))

    def filler(self, sentences: int) -> None:
        self.paragraph([(word, None) for _ in range(sentences) for word in self.rng.choice(lexicon.FILLER).split()])

    def paragraph(self, words: list[tuple[str, str | None]]) -> dict[str, list[Text]]:
        """Write words wrapped to the column; return the texts of the marked ones, by mark."""
        space = Text(0, 0, " ", self.family, False, self.em).width
        marked: dict[str, list[Text]] = {}
        x, y = self.flow.x1, None
        for word, mark in words:
            width = Text(0, 0, word, self.family, False, self.em).width
            if x + width > self.flow.x1 or y is None:
                y = self.flow.take(self.em * self.leading)
                if y is None:
                    return marked
                x = self.flow.x0
            text = self.put(x, y, word)
            if mark:
                marked.setdefault(mark, []).append(text)
            x += width + space
        return marked

    def absent(self, count: int) -> None:
        """Ask for fields that the page does not have."""
        keys = [key for key in FIELDS if key not in self.used]
        for key in self.rng.sample(keys, min(count, len(keys))):
            self.page.asked.append(Asked(field_table.ask(FIELDS[key], None, self.rng), NOT_FOUND, "absent"))
