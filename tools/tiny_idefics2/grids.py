"""Writes tables of any columns in any order and look, and asks for their cells by row and by column."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from tools.tiny_idefics2 import labels
from tools.tiny_idefics2.fonts import Family, families
from tools.tiny_idefics2.labels import words_of
from tools.tiny_idefics2.page import Asked, Box, Rule, Text
from tools.tiny_idefics2.panels import PanelWriter, Print


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its head on the page, what questions call it, and its cells."""

    head: str
    noun: str
    cells: tuple[str, ...]
    counted: bool = False  # numbers, which stand at the right and may have a total


_USUAL = (
    ("Qty|Quantity|Pcs|Count|QTY|Units", "quantity", "count"),
    ("Price|Unit price|PRICE|Price each|Cost", "price", "number"),
    ("Amount|Sum|AMOUNT|Line total", "amount", "number"),
    ("Room|Room no.|ROOM", "room", "small"),
    ("Ext.|Extension|Line|EXT", "extension", "small"),
    ("Date|Day|DATE", "date", "date"),
    ("Time|Start", "time", "time"),
    ("Code|Art. no.|Item no.|SKU|CODE", "code", "code"),
    ("City|Place|Town", "city", "city"),
    ("Department|Dept.|Team", "department", "word"),
    ("Phone|Tel.|Telephone", "phone number", "phone"),
    ("Score|Points|Mark", "score", "count"),
    ("Weight|Wt.|Mass", "weight", "measure"),
    ("Share|Rate|%", "rate", "percent"),
    ("Email|E-mail", "email", "email"),
    ("Status|State", "status", "word"),
    ("Year", "year", "year"),
    ("Contact|Person|Agent", "contact", "person"),
    ("Stock|In stock", "stock", "count"),
)
"""Heads of usual columns, what questions call them, and the kind of cell."""

_KEYS = (
    ("Name|Person|Staff|Member|NAME|Employee", "person"),
    ("Item|Article|Product|Description|Goods|ITEM|Part", "item"),
    ("City|Place|Branch|Site", "city"),
    ("Company|Firm|Supplier|Client", "company"),
    ("Code|No.|Ref.|ID", "code"),
    ("Date|Day", "date"),
    ("Subject|Task|Topic|Course", "phrase"),
)
_ASK = (
    *("What is the {n} of {k}?",) * 6,
    *("What is the {n} for {k}?", "{N} of {k}?", "Which {n} does {k} have?") * 2,
    *("What {n} is given for {k}?", "{k}: {n}?", "Find the {n} of {k}.", "What's the {n} of {k}?", "{N} for {k}?"),
    *("What {n} does {k} have?", "What does the table give as {n} of {k}?", "{k}, {n}?", "Give the {n} of {k}."),
)
_BACK = ("Which {h} has the {n} {v}?", "What {h} has {n} {v}?", "{H} with {n} {v}?", "Whose {n} is {v}?")


@dataclass(frozen=True, slots=True)
class Ruling:
    """How a table is set."""

    frame: str  # plain | lines | grid | outer | head | zebra | bars
    bar: int | None  # grey of the bar behind the heads
    upper: bool
    head: Print
    key: Print
    cell: Print
    gap: float  # between columns, in em
    fill: bool  # the columns fill the width
    grey: int
    aligned: str  # of the cells: left | right | mixed | centre

    @classmethod
    def random(cls, rng: Random, family: Family) -> Ruling:
        heads = rng.choice(families()) if rng.random() < 0.2 else family
        scale = rng.choice((1, 1, 1, 0.9, 0.85))
        return cls(
            rng.choice(("plain", "plain", "lines", "lines", "grid", "grid", "outer", "head", "zebra", "bars")),
            rng.choice((None, None, None, 215, 225, 60, 0)),
            rng.random() < 0.12,
            Print(heads, rng.random() < 0.7, scale),
            Print(family, rng.random() < 0.15, 1),
            Print(rng.choice(families()) if rng.random() < 0.12 else family, rng.random() < 0.08, 1),
            rng.uniform(0.8, 4.0),
            rng.random() < 0.3,
            rng.choice((60, 90, 120, 160, 190)),
            rng.choice(("left", "left", "right", "mixed", "centre")),
        )


class GridWriter(PanelWriter):
    """Writes tables of any columns too."""

    def grid(self, rows: int, most: int = 14) -> int:
        """Write a table and ask for up to `most` of its cells; return how many rows stand there."""
        rng, flow = self.rng, self.flow
        ruling = Ruling.random(rng, self.family)
        heads, kind = rng.choice(_KEYS)
        keys = self._keys(kind, rows)
        key_head = self.values.cased(rng.choice(heads.split("|")))
        columns = [Column(key_head, key_head.lower().rstrip("."), tuple(keys))]
        columns += self._columns(rng.choices((1, 2, 3, 4, 5), (15, 35, 30, 15, 5))[0], rows, key_head)
        if rng.random() < 0.12:  # the key is not always the first
            columns.insert(rng.randint(1, len(columns)), columns.pop(0))
        if ruling.upper:
            columns = [Column(c.head.upper(), c.noun, c.cells, c.counted) for c in columns]
        place = next(n for n, column in enumerate(columns) if column.cells == tuple(keys))
        room = flow.x1 - flow.x0
        widths = [self._width(column, ruling) for column in columns]
        while len(columns) > 2 and sum(widths) + 0.8 * self.em * len(widths) > room:
            last = len(columns) - 1 if place != len(columns) - 1 else len(columns) - 2
            del columns[last], widths[last]
            place -= place > last
        spare = room - sum(widths) - 0.4 * self.em
        if len(columns) < 2 or spare < 0.6 * self.em * len(columns):
            return 0
        gap = spare / len(columns) if ruling.fill else min(spare / len(columns), ruling.gap * self.em)
        boxes = self._lay_out(columns, widths, gap, ruling)
        self._ask_cells(columns, place, boxes, most)
        self.names.take([name for column in columns for name in (column.head, column.noun)])
        self.items.update(key.lower() for key in keys)
        return len(boxes)

    def _keys(self, kind: str, rows: int) -> list[str]:
        """Row names of one kind, none of which another row or table of the page could be meant by."""
        keys: list[str] = []
        taken = [words_of(item) for item in self.items]
        for _ in range(4 * rows):
            key = labels.draw_value(self.values, kind)
            words = words_of(key)
            if len(keys) < rows and words and not any(words <= other or other <= words for other in taken):
                keys.append(key)
                taken.append(words)
        return keys

    def _columns(self, count: int, rows: int, key_head: str) -> list[Column]:
        """Columns with heads that are told apart."""
        rng, values = self.rng, self.values
        found: list[Column] = []
        taken = [words_of(key_head)]
        alike = rng.choice(("count", "small", "number", "figures", "date")) if rng.random() < 0.3 else None
        while len(found) < count:
            if rng.random() < 0.7:
                heads, noun, kind = rng.choice(_USUAL)
                head = values.cased(rng.choice(heads.split("|")))
            else:
                pair = labels.invent(values)
                head, noun = pair.label, rng.choice(pair.nouns)
                kind = rng.choice(
                    ("count", "small", "number", "number", "date", "code", "word", "measure", "phrase", "figures")
                )
            names = (words_of(head), words_of(noun))
            if any(a <= b or b <= a for a in names for b in taken) or len(head) > 18:
                continue
            taken += names
            kind = alike or kind  # columns that only their heads tell apart
            cells = tuple(self._cell(kind) for _ in range(rows))
            found.append(Column(head, noun, cells, kind in ("count", "number", "small")))
        return found

    def _cell(self, kind: str) -> str:
        rng = self.rng
        match kind:
            case "count":
                return str(rng.randint(0, 99))
            case "small":
                return self.values.digits(2, 4)
            case "year":
                return str(rng.randint(1950, 2040))
            case _:
                return labels.draw_value(self.values, kind)

    def _width(self, column: Column, ruling: Ruling) -> float:
        style = ruling.key if ruling.key.bold else ruling.cell
        cells = max((self.text(0, 0, cell, style).width for cell in column.cells), default=0.0)
        other = max((self.text(0, 0, cell, ruling.key).width for cell in column.cells), default=0.0)
        return max(cells, other, self.text(0, 0, column.head, ruling.head).width)

    def _lay_out(self, columns: list[Column], widths: list[float], gap: float, ruling: Ruling) -> list[list[Box]]:
        """Write heads and rows; return the boxes of the rows that found room."""
        rng, flow = self.rng, self.flow
        pitch = self.em * rng.uniform(1.25, 1.9)
        inset = 0.25 * self.em
        starts = [flow.x0 + inset + sum(widths[:n]) + gap * n for n in range(len(columns))]
        end = starts[-1] + widths[-1] + inset
        boxes: list[list[Box]] = []
        column, foot = flow.column, flow.y
        rows = [tuple(c.head for c in columns), *zip(*(c.cells for c in columns), strict=True)]
        right = [ruling.aligned == "right" or (ruling.aligned == "mixed" and c.counted) for c in columns]
        top = None
        for number, row in enumerate(rows):
            if (y := flow.take(pitch)) is None or flow.column != column:
                break
            top = y if top is None else top
            ink = None
            if number == 0 and ruling.bar is not None:
                self.page.items.append(Rule((flow.x0, y - 1, end, y + pitch - 2), ruling.bar))
                ink = 255 if ruling.bar < 100 else None
            elif ruling.frame == "zebra" and number % 2:
                self.page.items.append(Rule((flow.x0, y - 1, end, y + pitch - 1), 230))
            line: list[Box] = []
            for n, cell in enumerate(row):
                style = ruling.head if number == 0 else ruling.key if n == 0 else ruling.cell
                text = self.text(starts[n], y + 0.02 * pitch, cell, style, ink)
                slack = widths[n] - text.width
                shift = slack if right[n] else slack / 2 if ruling.aligned == "centre" and n else 0.0
                text = Text(text.x + shift, text.y, cell, text.family, text.bold, text.size, text.ink, text.stretch)
                self.page.items.append(text)
                line.append(text.box)
            self._rule(ruling, number, y, pitch, starts, end, gap)
            if number:
                boxes.append(line)
            foot = flow.y
        if ruling.frame == "outer" and top is not None:
            self.page.items.append(Rule((starts[0] - inset, top - 2, end, foot), ruling.grey, outline=True))
        return boxes

    def _rule(
        self, ruling: Ruling, row: int, y: float, pitch: float, starts: list[float], end: float, gap: float
    ) -> None:
        """The rules of one row."""
        x0, foot = self.flow.x0, y + pitch - 2
        if ruling.frame in ("lines", "grid") or (ruling.frame in ("head", "outer", "bars") and row == 0):
            self.page.items.append(Rule((x0, foot, end, foot + 1), ruling.grey))
        if ruling.frame == "grid" and row == 0:
            self.page.items.append(Rule((x0, y - 2, end, y - 1), ruling.grey))
        if ruling.frame in ("grid", "bars"):
            edges = [start - min(gap / 2, 0.3 * self.em) for start in starts[1:]]
            for x in (x0, *edges, end) if ruling.frame == "grid" else edges:
                self.page.items.append(Rule((x, y - 2, x + 1, foot), ruling.grey))

    def _ask_cells(self, columns: list[Column], place: int, boxes: list[list[Box]], most: int) -> None:
        rng = self.rng
        cells = [(row, n) for row in range(len(boxes)) for n in range(len(columns)) if n != place]
        rng.shuffle(cells)
        keys = columns[place].cells
        for row, n in cells[:most]:
            column, key = columns[n], keys[row]
            value, evidence = column.cells[row], (boxes[row][place], boxes[row][n])
            noun = column.head.rstrip(".") if rng.random() < 0.25 else column.noun
            if rng.random() < 0.1 and column.cells.count(value) == 1 and not self._elsewhere(value, columns, n):
                head = columns[place].noun
                text = rng.choice(_BACK[: 4 if head in ("name", "person") else 3])
                text = text.format(h=head, H=head.capitalize(), n=noun, v=value)
                self.page.asked.append(Asked(text, key, "table", evidence))
                continue
            shown = key if rng.random() < 0.9 else rng.choice((key.lower(), key.upper()))
            text = rng.choice(_ASK).format(n=noun, N=noun[0].upper() + noun[1:], k=shown)
            self.page.asked.append(Asked(text, value, "table", evidence))

    @staticmethod
    def _elsewhere(value: str, columns: list[Column], column: int) -> bool:
        return any(value in other.cells for n, other in enumerate(columns) if n != column)
