"""A second set of pages, for evidence alone: laid out and drawn by other code than training's, in other fonts.

It shares nothing with the generator that the model is trained on: names, layouts, fonts and wear are its own. A page is
drawn from its number: the kind, the print (odd numbers are large) and all that stands on it.
"""

from __future__ import annotations

from random import Random

from PIL import Image

from tools.tiny_idefics2.model import IMAGE_SIZE
from tools.tiny_idefics2.reading import AskedPage
from tools.tiny_idefics2.second_sheet import FACES, Sheet, worn

EDGE = 1684  # pixels of a page's longest edge: A4 at 144 dots an inch
SMALL_EM, LARGE_EM = (6.4, 8.4), (13.0, 20.0)  # pixels of one unsplit image
_PEOPLE = [
    "Hannah Whitcombe",
    "Declan O'Rourke",
    "Miriam Feldstein",
    "Tobias Lindqvist",
    "Grace Abernathy",
    "Pavel Dvorak",
    "Yolanda Reyes",
    "Stuart McAllister",
    "Noor Haddad",
    "Beatrix Vandermeer",
    "Colin Thackeray",
    "Ewa Zielinska",
    "Raymond Okafor",
    "Joyce Pemberton",
    "Giulio Castellani",
    "Wendy Blackthorn",
    "Arjun Malhotra",
    "Sigrid Haugen",
    "Leopold Brandt",
    "Celeste Duquesne",
    "Mick Trueman",
    "Hye-jin Park",
    "Aurelio Quintana",
    "Philippa Gray",
]
_FIRMS = [
    "Kestrel & Sons",
    "Bluewater Plumbing",
    "Hollis Freight Ltd",
    "Oakhurst Dental",
    "Zephyr Cycles",
    "Tamarind Catering",
    "Brightwell Glazing",
    "Ferrow Steel GmbH",
    "Pinecrest Nursery",
    "Quill Stationers",
    "Marlowe Print Co",
    "Dunmore Electrics",
]
_TOWNS = [
    "Aberdeen",
    "Ravenna",
    "Tromso",
    "Maastricht",
    "Galway",
    "Cordoba",
    "Lubeck",
    "Perugia",
    "Exeter",
    "Halifax",
    "Trieste",
    "Uppsala",
]
_GOODS = [
    "Copper pipe 15 mm",
    "Hex bolts M8",
    "Ceiling paint",
    "Oak plank",
    "Cable reel",
    "Door hinge",
    "Garden twine",
    "Masking tape",
    "Floor wax",
    "Brass valve",
    "Wool blanket",
    "Steel ruler",
    "Hand drill",
    "Shelf bracket",
    "Roof tile",
    "Paper bags",
    "Soap flakes",
    "Table lamp",
]
_MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]


def _money(rng: Random) -> str:
    return f"{rng.choice(('$', '', 'EUR '))}{rng.randint(3, 48000):,}.{rng.randint(0, 99):02}"


def _day(rng: Random) -> str:
    day, month, year = rng.randint(1, 28), rng.randint(1, 12), rng.randint(1998, 2027)
    return rng.choice(
        (f"{day} {_MONTHS[month - 1]} {year}", f"{year}-{month:02}-{day:02}", f"{day:02}.{month:02}.{year}")
    )


def _serial(rng: Random) -> str:
    return (
        "".join(rng.choices("ABCDEFGHKLMNPRTWXYZ", k=2)) + "-" + "".join(rng.choices("0123456789", k=rng.randint(4, 6)))
    )


def _fields(rng: Random) -> list[tuple[str, str, str]]:
    """Label, noun, value."""
    return [
        ("Invoice No", "invoice number", _serial(rng)),
        ("Invoice date", "invoice date", _day(rng)),
        ("Due date", "due date", _day(rng)),
        ("Customer", "customer", rng.choice(_PEOPLE)),
        ("Supplier", "supplier", rng.choice(_FIRMS)),
        ("Order number", "order number", _serial(rng)),
        ("Contact person", "contact person", rng.choice(_PEOPLE)),
        ("Phone", "phone number", f"0{rng.randint(20, 99)} {rng.randint(100000, 999999)}"),
        ("Amount due", "amount due", _money(rng)),
        ("City", "city", rng.choice(_TOWNS)),
        ("Policy number", "policy number", _serial(rng)),
        ("Date of birth", "date of birth", _day(rng)),
        ("Applicant", "applicant", rng.choice(_PEOPLE)),
        ("Account number", "account number", str(rng.randint(10**6, 10**8))),
        ("Total", "total", _money(rng)),
        ("Reference", "reference", _serial(rng)),
    ]


def _form(sheet: Sheet) -> None:
    """A form: labels on the left, or above boxes in two columns."""
    rng = sheet.rng
    sheet.say(
        sheet.left, sheet.y, rng.choice(("REGISTRATION", "Customer record", "Policy summary", "INVOICE")), scale=1.5
    )
    sheet.down(2)
    fields = rng.sample(_fields(rng), rng.randint(6, 12))
    boxed, tab = rng.random() < 0.5, sheet.left + 9.5 * sheet.em
    half = sheet.image.width / 2
    for number, (label, noun, value) in enumerate(fields):
        label, value = (label.upper(), value.upper()) if sheet.capitals else (label, value)
        if boxed:
            x = sheet.left if number % 2 == 0 else half + 0.03 * sheet.image.width
            if x + sheet.width(value) + sheet.em > (half if number % 2 == 0 else sheet.right):
                continue
            top = sheet.y
            shown = sheet.say(x, top, label, scale=0.8)
            given = sheet.say(x, top + 1.1 * sheet.em, value)
            sheet.pen.rectangle(
                (x - 6, top - 4, x + 0.4 * sheet.image.width, top + 2.6 * sheet.em), outline=90, width=2
            )
            enough = number % 2 == 0 or sheet.down(2.1)
        else:
            shown, given = sheet.say(sheet.left, sheet.y, label, bold=True), sheet.say(tab, sheet.y, value)
            enough = sheet.down(1.1)
        sheet.ask(f"What is the {noun}?", value, "form", shown, given)
        if not enough:
            return


def _table(sheet: Sheet) -> None:
    """A price list or a staff list, with rules, a grid or nothing between its cells."""
    rng = sheet.rng
    priced = rng.random() < 0.6
    heads = ("Article", "Qty", "Price") if priced else ("Name", "Room", "Extension")
    keys = rng.sample(_GOODS if priced else _PEOPLE, 9)
    rows = [
        (key, str(rng.randint(1, 60)), f"{rng.randint(1, 900)}.{rng.randint(0, 99):02}")
        if priced
        else (key, str(rng.randint(100, 499)), str(rng.randint(2000, 9999)))
        for key in keys
    ]
    if sheet.capitals:
        heads, rows = tuple(x.upper() for x in heads), [tuple(x.upper() for x in row) for row in rows]  # type: ignore[assignment,misc]
    sheet.say(sheet.left, sheet.y, "Price list" if priced else "Staff", bold=True, scale=1.4)
    sheet.down(2)
    first = max(sheet.width(row[0]) for row in rows) + 1.5 * sheet.em
    starts = (sheet.left, sheet.left + first, sheet.left + first + 4.5 * sheet.em)
    style = rng.choice(("rules", "grid", "plain"))
    questions = (
        ("What is the quantity of {}?", "What is the price of {}?")
        if priced
        else ("What is the room of {}?", "What is the extension of {}?")
    )
    for number, row in enumerate((heads, *rows)):
        boxes = [sheet.say(x, sheet.y, cell, bold=number == 0) for x, cell in zip(starts, row, strict=True)]
        if style != "plain":
            end = starts[2] + 5 * sheet.em
            sheet.rule(sheet.left - 8, sheet.y + 1.32 * sheet.em, end, sheet.y + 1.32 * sheet.em + 1)
            if style == "grid":
                for x in (*starts, end + 8):
                    sheet.rule(x - 8, sheet.y - 0.1 * sheet.em, x - 7, sheet.y + 1.32 * sheet.em)
        for column in (1, 2) if number else ():
            sheet.ask(questions[column - 1].format(row[0]), row[column], "table", boxes[0], boxes[column])
        if not sheet.down(1.05):
            return


def _letter(sheet: Sheet) -> None:
    """A letter with a date on the right and an address block on the left."""
    rng = sheet.rng
    sender, reader, signer = rng.choice(_FIRMS), rng.choice(_PEOPLE), rng.choice(_PEOPLE)
    day, code, money = _day(rng), _serial(rng), _money(rng)
    sheet.say(sheet.right - sheet.width(sender), sheet.y, sender)
    sheet.down(1)
    box = sheet.say(sheet.right - sheet.width(day), sheet.y, day)
    sheet.ask("What is the date of the letter?", day, "letter", box)
    sheet.down(2)
    box = sheet.say(sheet.left, sheet.y, reader)
    sheet.ask("To whom is the letter addressed?", reader, "letter", box)
    for line in (f"{rng.randint(2, 190)} {rng.choice(_TOWNS)} Road", rng.choice(_TOWNS)):
        sheet.down(1)
        sheet.say(sheet.left, sheet.y, line)
    sheet.down(2)
    sheet.say(sheet.left, sheet.y, f"Dear {reader},")
    body = (
        "Thank you for writing to us last week.|We have looked at your file with care.",
        f"Please quote the reference {code}",
        "when you write to us again.",
        f"The amount of {money} is still open.",
        "We ask you to pay it within a month.",
    )
    sheet.down(1.6)
    for part in body:
        for line in part.split("|"):
            box = sheet.say(sheet.left, sheet.y, line)
            if code in line:
                sheet.ask("What is the reference?", code, "letter", box)
            if money in line:
                sheet.ask("What amount is still open?", money, "letter", box)
            if not sheet.down(1):
                return
    sheet.down(1)
    sheet.say(sheet.left, sheet.y, "With kind regards,")
    if sheet.down(1.2):
        box = sheet.say(sheet.left, sheet.y, signer)
        sheet.ask("Who signed the letter?", signer, "letter", box)


def asked_page(number: int) -> AskedPage:
    """Draw page `number` of the set, with up to three questions."""
    seed = number
    while True:
        rng = Random(f"second-{seed}")
        large = number % 2 == 1
        em = rng.uniform(*(LARGE_EM if large else SMALL_EM))
        width, height = rng.choice(((1190, EDGE), (1301, EDGE), (1190, EDGE), (EDGE, 1190)))
        sheet = Sheet(
            rng, em * EDGE / IMAGE_SIZE, Image.new("L", (width, height), 255), rng.choice(FACES), rng.random() < 0.25
        )
        sheet.y = height * rng.uniform(0.04, 0.1 if large else 0.4)
        (_form, _table, _letter)[number // 2 % 3](sheet)
        if len(sheet.asked) >= 3:
            break
        seed += 1000
    questions = tuple(rng.sample(sheet.asked, 3))
    return AskedPage(worn(sheet.image, rng), f"second-{'large' if large else 'small'}", em, questions)
