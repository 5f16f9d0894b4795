"""Writes tables of items and of people, and asks for their cells."""

from __future__ import annotations

from tools.tiny_idefics2.furniture import FurnitureWriter
from tools.tiny_idefics2.lexicon import NOT_FOUND
from tools.tiny_idefics2.page import Asked, Box, Rule, Text


class TableWriter(FurnitureWriter):
    """Writes tables too."""

    def items_table(self, rows: int) -> None:
        """A table of items with quantity and price."""
        rng, flow = self.rng, self.flow
        names: list[str] = []
        while len(names) <= rows:
            name = self.values.item()
            if name.lower() not in {taken.lower() for taken in (*self.items, *names)}:
                names.append(name)
        absent = names.pop()
        heads = rng.choice(
            (
                ("Item", "Qty", "Price"),
                ("Description", "Qty", "Amount"),
                ("Product", "Pcs", "Price"),
                ("ARTICLE", "QUANTITY", "AMOUNT"),
                ("Article", "Quantity", "Price"),
            )
        )
        cells = [(name, str(rng.randint(1, 40)), self.values.number()) for name in names]
        boxes = self.table(heads, cells)
        for (name, count, price), row in zip(cells, boxes, strict=False):
            if rng.random() < 0.6:
                wording = rng.choice(
                    ("What is the price of {}?", "How much is the {}?", "Price of {}?", "What does the {} cost?")
                )
                self.page.asked.append(Asked(wording.format(name), price, "table", (row[0], row[2])))
            else:
                wording = rng.choice(("What is the quantity of {}?", "How many of {} are listed?", "Quantity of {}?"))
                self.page.asked.append(Asked(wording.format(name), count, "table", (row[0], row[1])))
        self.items.update((*names, absent))
        if rng.random() < 0.3:
            self.page.asked.append(Asked(f"What is the price of {absent}?", NOT_FOUND, "absent"))
        flow.skip(self.em * 0.5)

    def people_table(self, rows: int) -> None:
        """A table of people with one to three columns of other kinds, in any order."""
        rng = self.rng
        columns = rng.sample(
            (
                ("Extension", "extension", lambda: self.values.digits(2, 4)),
                ("Room", "room", lambda: self.values.digits(2, 4)),
                ("Department", "department", lambda: self.values.department()),
                ("City", "city", lambda: self.values.city()),
                ("Score", "score", lambda: str(rng.randint(10, 100))),
            ),
            rng.choice((1, 2, 2, 3)),
        )
        cells = [(self.values.person(), *(draw() for *_, draw in columns)) for _ in range(rows)]
        heads = ("Name", *(head for head, *_ in columns))
        for cell, row in zip(cells, self.table(heads, cells), strict=False):
            n = rng.randint(1, len(columns))
            wording = rng.choice(("What is the {} of {}?", "Which {} does {} have?", "{} of {}?"))
            question = wording.format(columns[n - 1][1], cell[0])
            self.page.asked.append(Asked(question[0].upper() + question[1:], cell[n], "table", (row[0], row[n])))
        self.used.update({"room": None, "department": None, "city": None, "phone": None})
        self.flow.skip(self.em * 0.5)

    def table(self, heads: tuple[str, ...], cells: list[tuple[str, ...]]) -> list[list[Box]]:
        """Write a table in the current column; return the boxes of its rows that found room."""
        rng = self.rng
        widths = [
            max(Text(0, 0, text, self.family, True, self.em).width for text in column)
            for column in zip(heads, *cells, strict=True)
        ]
        room = self.flow.x1 - self.flow.x0 - sum(widths)
        if room < self.em * 0.6 * (len(heads) - 1):
            return []
        gap = min(room / max(1, len(heads) - 1), self.em * rng.uniform(1.0, 5.0))
        grid = rng.random() < 0.2 and gap > self.em
        lines, shaded, right = rng.random() < 0.6, rng.random() < 0.3, rng.random() < 0.6
        boxes: list[list[Box]] = []
        for number, row in enumerate((heads, *cells)):
            y = self.flow.take(self.em * self.leading)
            if y is None:
                break
            x, row_boxes = self.flow.x0, []
            if shaded and number == 0:
                self.page.items.append(
                    Rule((x - 2, y - 1, x + sum(widths) + gap * (len(heads) - 1) + 2, y + self.em * 1.3), 215)
                )
            for column, text in enumerate(row):
                width = Text(0, 0, text, self.family, number == 0, self.em).width
                shift = widths[column] - width if right and column else 0.0
                row_boxes.append(self.put(x + shift, y, text, bold=number == 0).box)
                x += widths[column] + gap
                if grid and column + 1 < len(row):
                    self.page.items.append(
                        Rule((x - gap / 2, y - 1, x - gap / 2 + 1, y + self.em * self.leading - 1), 90)
                    )
            if lines or grid:
                bottom = y + self.em * min(self.leading, 1.5) - 1
                self.page.items.append(Rule((self.flow.x0, bottom, x - gap, bottom + 1), rng.choice((60, 120, 180))))
            if number:
                boxes.append(row_boxes)
        return boxes
