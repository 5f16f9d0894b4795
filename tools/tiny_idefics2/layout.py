"""Lays generated pages out: where each text stands, and which questions the page answers.

Nothing is drawn here: a `Page` is a list of texts and rules in pixels at the page's own size, which `draw` renders
to an image and the sample maker renders to a PDF.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from tools.tiny_idefics2 import fields as field_table
from tools.tiny_idefics2 import lexicon
from tools.tiny_idefics2.fields import FIELDS, KINDS, Field
from tools.tiny_idefics2.fonts import Family, advances, families
from tools.tiny_idefics2.lexicon import NOT_FOUND
from tools.tiny_idefics2.values import Values

Box = tuple[float, float, float, float]

DENSE = (12.5, 17.0)  # em in pixels at a longest edge of 980: read when the page is split, lost when it is not
LARGE = (25.0, 42.0)  # read either way
FULLEST = 28  # labelled fields of the fullest training pages
SEAM_TOLERANCE = 1.5  # pixels of a box that may lie beyond a seam before the text counts as cut


@dataclass(frozen=True, slots=True)
class Text:
    """One run of text; (x, y) is the top left corner of its line box, `size` the em in pixels."""

    x: float
    y: float
    text: str
    family: Family
    bold: bool
    size: float
    ink: int = 0

    @property
    def width(self) -> float:
        return sum(advances(self.family.bold if self.bold else self.family.regular, self.size, self.text))

    @property
    def box(self) -> Box:
        return (self.x, self.y, self.x + self.width, self.y + 1.2 * self.size)


@dataclass(frozen=True, slots=True)
class Rule:
    """A filled rectangle or, with `outline`, a frame one pixel wide."""

    box: Box
    ink: int
    outline: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, its answer, the kind of look-up it takes, and the boxes that must be legible to answer it."""

    question: str
    answer: str
    kind: str  # field | table | letter | absent | title
    evidence: tuple[Box, ...] = ()


@dataclass(slots=True)
class Page:
    """A laid-out page. `em` is the size of its body text in pixels."""

    width: int
    height: int
    em: float
    kind: str
    items: list[Text | Rule] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)

    def cut_by_split(self, asked: Asked, slack: float = 0.0) -> bool:
        """Whether splitting the page into quarters cuts through the evidence of a question."""
        middle_x, middle_y = self.width / 2, self.height / 2
        edge = SEAM_TOLERANCE - slack
        return any(
            (x0 < middle_x - edge and x1 > middle_x + edge) or (y0 < middle_y - edge and y1 > middle_y + edge)
            for x0, y0, x1, y1 in asked.evidence
        )


def _half(size: float) -> float:
    """A font size in steps of half a pixel, so that measured widths are found again."""
    return round(2 * size) / 2


class Flow:
    """Hands out lines of a page, column by column, keeping most of them clear of the middle seam."""

    def __init__(self, page: Page, rng: Random, columns: int, clear: float) -> None:
        self.page, self.rng, self.clear = page, rng, clear
        margin = page.width * rng.uniform(0.04, 0.09)
        self.top = page.height * rng.choice((0.03, 0.05, 0.07, rng.uniform(0.05, 0.3)))
        self.bottom = page.height * rng.uniform(0.94, 0.98)
        if columns == 2:
            gap = page.em * rng.uniform(0.5, 1.0)
            half = page.width / 2
            self.columns = [(margin, half - gap), (half + gap * 0.6, page.width - margin * 0.6)]
        else:
            self.columns = [(margin, page.width - margin)]
        self.column, self.y = 0, self.top

    @property
    def x0(self) -> float:
        return self.columns[self.column][0]

    @property
    def x1(self) -> float:
        return self.columns[self.column][1]

    def take(self, height: float) -> float | None:
        """Return the y of a line of this height, or None when the page is full."""
        y = self.y
        middle = self.page.height / 2
        if y < middle < y + height and self.rng.random() < self.clear:
            y = middle + 1
        if y + height > self.bottom:
            if self.column + 1 == len(self.columns):
                return None
            self.column += 1
            self.y = self.top
            return self.take(height)
        self.y = y + height
        return y

    def skip(self, height: float) -> None:
        self.y += height

    def next_column(self) -> None:
        """Go on at the top of the next column, where there is one."""
        if self.column + 1 < len(self.columns):
            self.column += 1
            self.y = self.top


class Writer:
    """Writes one page of a kind: titles, blocks of fields, tables, letters and filler."""

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

    # --- pieces ---

    def put(self, x: float, y: float, text: str, *, bold: bool = False, scale: float = 1.0, head: bool = False) -> Text:
        item = Text(x, y, text, self.heads if head else self.family, bold, _half(self.em * scale), self.ink)
        self.page.items.append(item)
        return item

    def title(self, text: str, *, scale: float | None = None) -> Text | None:
        scale = scale or self.rng.uniform(1.2, 1.8)
        while (
            scale > 1 and Text(0, 0, text, self.heads, True, _half(self.em * scale)).width > self.flow.x1 - self.flow.x0
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

    # --- blocks that ask other kinds of questions ---

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
        """A table of people with a column of another kind."""
        rng = self.rng
        head, noun, draw = rng.choice(
            (
                ("Extension", "extension", lambda: self.values.digits(3, 4)),
                ("Room", "room", lambda: self.values.digits(3, 3)),
                ("Department", "department", lambda: self.values.department()),
                ("City", "city", lambda: self.values.city()),
                ("Score", "score", lambda: str(rng.randint(10, 100))),
            )
        )
        cells = [(self.values.person(), draw()) for _ in range(rows)]
        for (name, value), row in zip(cells, self.table(("Name", head), cells), strict=False):
            wording = rng.choice(("What is the {} of {}?", "Which {} does {} have?", "{} of {}?"))
            question = wording.format(noun, name)
            self.page.asked.append(Asked(question[0].upper() + question[1:], value, "table", (row[0], row[1])))
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

    def letter(self) -> None:
        """A letter: address, salutation, a body that states facts, and a signature."""
        rng, words, flow = self.rng, self.values, self.flow
        sender, recipient, signer = words.company(), words.person(), words.person()
        ask = self.page.asked.append
        self.title(sender, scale=1.3)
        line = self.em * self.leading
        date_first, at_right = rng.random() < 0.6, rng.random() < 0.35
        if date_first and not self.letter_date(at_right):
            return
        named: Box = (0, 0, 0, 0)
        address = [words.address(), rng.choice(("", words.digits(5, 5) + " ")) + words.city()]
        for text in (recipient, *([words.company()] if rng.random() < 0.2 else []), *address):
            if (y := flow.take(line)) is None:
                return
            item = self.put(flow.x0, y, text)
            named = item.box if text is recipient else named
        flow.skip(line * rng.uniform(0.2, 1.5))
        if not date_first and not self.letter_date(at_right):
            return
        subject = words.subject()
        if (y := flow.take(line * 1.4)) is None:
            return
        start = rng.choice(("Subject: ", "Subject: ", "Re: ", "RE: ", "Concerning: ", ""))
        box = self.put(flow.x0, y, start + subject, bold=rng.random() < 0.7 or not start).box
        ask(
            Asked(
                rng.choice(("What is the subject of the letter?", "What is the letter about?")),
                subject,
                "letter",
                (box,),
            )
        )
        if (y := flow.take(line * 1.3)) is None:
            return
        greetings = ("Dear {},", "Dear {},", "Dear {}", "Hello {},", "To {}:", "Dear Sir or Madam,", "Dear customer,")
        greeting = rng.choice(greetings)
        box = self.put(flow.x0, y, greeting.format(recipient)).box if "{" in greeting else named
        if "{" not in greeting:
            self.put(flow.x0, y, greeting)
        ask(
            Asked(
                rng.choice(
                    (
                        "To whom is the letter addressed?",
                        "Who is the recipient of the letter?",
                        "Who is the letter written to?",
                    )
                ),
                recipient,
                "letter",
                (box,),
            )
        )
        facts = [
            (rng.choice(sentences.split("|")), questions, getattr(words, draw)())
            for sentences, questions, draw in lexicon.FACTS
        ]
        chosen = rng.sample(facts, rng.randint(1, 4))
        body: list[tuple[str, str | None]] = []
        for number, (sentence, _, value) in enumerate(chosen):
            for _ in range(rng.randint(0, 3)):
                body += [(word, None) for word in rng.choice(lexicon.FILLER).split()]
            before, after = sentence.split("{}")
            pieces = value.split()
            body += [(word, None) for word in before.split()]
            body += [(piece, str(number)) for piece in pieces[:-1]]
            body.append((pieces[-1] + after.split(" ")[0], str(number)))
            body += [(word, None) for word in after.split(" ")[1:] if word]
        marked = self.paragraph(body)
        for number, (_, questions, value) in enumerate(chosen):
            texts = marked.get(str(number), [])
            if len(texts) == len(value.split()) and len({text.y for text in texts}) == 1:
                ask(Asked(rng.choice(questions.split("|")), value, "letter", tuple(text.box for text in texts)))
        self.used.update({"reference": None, "room": None, "phone": None, "contact": None, "amount_due": None})
        flow.skip(line * 0.5)
        closing = rng.choice(("Sincerely,", "Best regards,", "Yours faithfully,", "Kind regards,"))
        if (y := flow.take(line * 1.2)) is None:
            return
        self.put(flow.x0, y, closing)
        if (y := flow.take(line)) is None:
            return
        box = self.put(flow.x0, y, signer).box
        ask(
            Asked(
                rng.choice(("Who signed the letter?", "Who wrote the letter?", "Who is the sender of the letter?")),
                signer,
                "letter",
                (box,),
            )
        )
        if (y := flow.take(line)) is not None:
            job = words.job()
            box = self.put(flow.x0, y, job).box
            ask(
                Asked(
                    rng.choice(("What is the job title of the signer?", "What is the position of the signer?")),
                    job,
                    "letter",
                    (box,),
                )
            )

    def letter_date(self, at_right: bool) -> bool:
        """Write the date line of a letter, and ask for it; False when the page is full."""
        rng, flow, values = self.rng, self.flow, self.values
        date = values.date()
        if (y := flow.take(self.em * self.leading * 1.3)) is None:
            return False
        before = rng.choice(("", "", "", "Date: ", f"{values.city()}, "))
        width = Text(0, 0, before + date, self.family, False, self.em).width
        item = self.put(max(flow.x0, flow.x1 - width) if at_right else flow.x0, y, before + date)
        wordings = ("What is the date of the letter?", "When was the letter written?", "Date of the letter?")
        self.page.asked.append(Asked(rng.choice(wordings), date, "letter", (item.box,)))
        return True

    def absent(self, count: int) -> None:
        """Ask for fields that the page does not have."""
        keys = [key for key in FIELDS if key not in self.used]
        for key in self.rng.sample(keys, min(count, len(keys))):
            self.page.asked.append(Asked(field_table.ask(FIELDS[key], None, self.rng), NOT_FOUND, "absent"))


def make_page(
    rng: Random,
    *,
    size: tuple[int, int],
    em: float,
    held_out: bool,
    kind: str | None = None,
    few: bool = False,
    fullest: int = FULLEST,
) -> Page:
    """Lay out one page.

    Args:
        size: width and height in pixels.
        em: size of the body text in pixels.
        held_out: draw open-class values from the evaluation side of the hash.
        kind: invoice, receipt, form, report, letter or table; drawn at random when None.
        few: at most a handful of fields (the start of the curriculum).
        fullest: labelled fields at the most; tables get a third as many rows.

    """
    em = _half(em)
    kind = kind or rng.choice(("invoice", "invoice", "receipt", "form", "form", "report", "letter", "letter", "table"))
    page = Page(*size, em, kind)
    values = Values(rng, held_out)
    roomy = size[0] / em
    columns = 2 if roomy > 42 and rng.random() < (0.6 if kind == "letter" else 0.8) else 1
    writer = Writer(page, values, columns)
    if few:
        _write_fields(writer, kind if kind in KINDS else "form", rng.randint(1, 4))
        writer.absent(1 if rng.random() < 0.3 else 0)
        return page
    if kind == "letter":
        writer.letter()
    elif kind == "table":
        writer.title(
            rng.choice(
                ("Price list", "Staff list", "STOCK LIST", "Directory", "Order list", "PRICES", values.subject())
            )
        )
        for _ in range(rng.randint(1, 3 if fullest == FULLEST else 2)):
            (writer.items_table if rng.random() < 0.5 else writer.people_table)(
                rng.randint(3, max(4, min(8, fullest // 3)))
            )
    else:
        titles, _ = KINDS[kind]
        title = rng.choice(titles)
        shown = writer.title(title)
        if shown and rng.random() < 0.3:
            wording = rng.choice(("What is the title of the page?", "What kind of document is this?"))
            page.asked.append(Asked(wording, title, "title", (shown.box,)))
        if rng.random() < 0.5:
            writer.title(values.company(), scale=1.1)
        _write_fields(writer, kind, fullest if columns == 2 else rng.randint(4, min(14, fullest)), fullest)
    if rng.random() < 0.5:
        writer.filler(rng.randint(1, 4))
    writer.absent(rng.randint(1, 3))
    return page


SNIPPET_KEYS = [
    "room",
    "card",
    "customer_number",
    "total",
    "tax",
    "city",
    "country",
    "invoice_date",
    "customer",
    "cashier",
    "time",
    "membership",
    "department",
    "weight",
    "postcode",
    "invoice_number",
    "due_date",
    "amount_due",
    "reference",
    "phone",
]


def make_snippet(rng: Random, *, size: tuple[int, int], em: float, fields: int) -> Page:
    """Lay out a scrap of a page with a few short fields: where reading starts."""
    page = Page(*size, _half(em), "form")
    writer = Writer(page, Values(rng, held_out=False), columns=1)
    writer.flow.y = rng.uniform(1, max(2.0, size[1] - fields * 2.8 * em))
    writer.flow.columns = [(rng.uniform(2, 12), size[0] - 1)]
    for key in rng.sample(SNIPPET_KEYS, fields):
        writer.fields([FIELDS[key]])
    if fields > 1 and rng.random() < 0.3:
        writer.absent(1)
    return page


def _write_fields(writer: Writer, kind: str, count: int, fullest: int = FULLEST) -> None:
    """Write `count` fields of a kind in groups, with tables and filler between them."""
    rng = writer.rng
    keys = KINDS[kind][1].split()
    chosen = rng.sample(keys, min(count, len(keys)))
    while chosen:
        taken = rng.randint(2, 7)
        writer.fields([FIELDS[key] for key in chosen[:taken]])
        chosen = chosen[taken:]
        writer.flow.skip(writer.em * rng.uniform(0.2, 1.2))
        if rng.random() < 0.2:
            writer.flow.next_column()
        if chosen and count > 8:
            chance = rng.random()
            if chance < 0.25 and kind in ("invoice", "receipt", "report"):
                writer.items_table(rng.randint(2, min(6, fullest // 3)))
            elif chance < 0.45:
                writer.filler(rng.randint(1, 3))
