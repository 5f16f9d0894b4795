"""Lays generated pages out: invoices, receipts, forms, reports, letters, tables and mixed sheets, and scraps."""

from __future__ import annotations

from random import Random

from tools.tiny_idefics2.fields import FIELDS, KINDS
from tools.tiny_idefics2.letters import PageWriter
from tools.tiny_idefics2.page import Asked, Page, half_steps
from tools.tiny_idefics2.sheets import write_sheet
from tools.tiny_idefics2.values import Values

DENSE = (12.5, 17.0)  # em in pixels at a longest edge of 980: read when the page is split, lost when it is not
LARGE = (25.0, 42.0)  # read either way
FULLEST = 28  # labelled fields of the fullest training pages


_MIXTURE = (
    ("invoice", "receipt", "form", "report", "letter", "table", "sheet", "list", "note"),
    (9, 5, 10, 6, 12, 8, 28, 18, 4),
)
KINDS_OF_PAGES = _MIXTURE[0]
"""Pages of usual fields, then pages of any labels at all: mixed sheets, tables, sentences."""


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
        kind: one of `KINDS_OF_PAGES`; drawn at random when None.
        few: at most a handful of fields (the start of the curriculum).
        fullest: labelled fields at the most; tables get a third as many rows.

    """
    em = half_steps(em)
    kind = kind or rng.choices(*_MIXTURE)[0]
    page = Page(*size, em, kind)
    if kind in ("sheet", "list", "note"):
        write_sheet(page, rng, held_out, fullest)
        return page
    values = Values(rng, held_out)
    roomy = size[0] / em
    columns = 2 if roomy > 42 and rng.random() < (0.6 if kind == "letter" else 0.8) else 1
    writer = PageWriter(page, values, columns)
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
    page = Page(*size, half_steps(em), "form")
    writer = PageWriter(page, Values(rng, held_out=False), columns=1)
    writer.flow.y = rng.uniform(1, max(2.0, size[1] - fields * 2.8 * em))
    writer.flow.columns = [(rng.uniform(2, 12), size[0] - 1)]
    for key in rng.sample(SNIPPET_KEYS, fields):
        writer.fields([FIELDS[key]])
    if fields > 1 and rng.random() < 0.3:
        writer.absent(1)
    return page


def _write_fields(writer: PageWriter, kind: str, count: int, fullest: int = FULLEST) -> None:
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
