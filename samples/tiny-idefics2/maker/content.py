"""What the generated pages say: labelled fields, names, amounts, items, and the questions that ask for them.

Values of open classes (names, numbers, dates, amounts) are held out by a hash: a value either belongs to the
training pages or to the evaluation pages, never to both.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

NOT_FOUND = "not found"

FIRST = [
    "Maria",
    "James",
    "Anna",
    "Peter",
    "Sofia",
    "Daniel",
    "Laura",
    "Simon",
    "Elena",
    "Victor",
    "Nina",
    "Oscar",
    "Julia",
    "Martin",
    "Clara",
    "Felix",
    "Emma",
    "Lucas",
    "Alice",
    "Hugo",
    "Ingrid",
    "Paul",
    "Teresa",
    "Adam",
    "Irene",
    "Mark",
    "Olga",
    "Bruno",
    "Helen",
    "Karl",
    "Diana",
    "Frank",
    "Vera",
    "Jonas",
    "Lydia",
    "Theo",
    "Agnes",
    "Rafael",
    "Petra",
    "Samuel",
    "Greta",
    "Leon",
    "Marta",
    "Ivan",
    "Rosa",
    "Erik",
    "Nadia",
    "Tomas",
    "Celia",
    "Gavin",
    "Yusuf",
    "Amara",
    "Kenji",
    "Priya",
    "Chen",
    "Fatima",
    "Diego",
    "Leila",
    "Omar",
]
_ONSET = [
    "B",
    "C",
    "D",
    "F",
    "G",
    "H",
    "J",
    "K",
    "L",
    "M",
    "N",
    "P",
    "R",
    "S",
    "T",
    "V",
    "W",
    "Z",
    "Br",
    "Cr",
    "Dr",
    "Gr",
    "Pr",
    "St",
    "Tr",
    "Fl",
    "Gl",
    "Sh",
    "Th",
    "Ch",
]
_CORE = ["a", "e", "i", "o", "u", "ai", "ea", "ou", "an", "en", "in", "on", "ar", "er", "or", "al", "el", "il"]
_CODA = [
    "ton",
    "ley",
    "man",
    "berg",
    "son",
    "dal",
    "ford",
    "well",
    "ski",
    "mann",
    "ez",
    "ov",
    "ini",
    "ard",
    "ley",
    "quist",
    "wood",
    "by",
    "ham",
    "field",
    "row",
    "stein",
    "nes",
    "ck",
]
COMPANY_WORDS = [
    "Northwind",
    "Harbour",
    "Summit",
    "Granite",
    "Willow",
    "Cedar",
    "Falcon",
    "Copper",
    "Meadow",
    "Atlas",
    "Beacon",
    "Crystal",
    "Delta",
    "Ember",
    "Forest",
    "Golden",
    "Horizon",
    "Iron",
    "Juniper",
    "Lantern",
    "Maple",
    "Nova",
    "Orchard",
    "Pioneer",
    "Quartz",
    "River",
    "Silver",
    "Tundra",
    "Union",
    "Vector",
    "Amber",
    "Bridge",
]
COMPANY_TRADES = [
    "Paper",
    "Tools",
    "Foods",
    "Textiles",
    "Logistics",
    "Systems",
    "Media",
    "Books",
    "Glass",
    "Motors",
    "Farms",
    "Labs",
    "Energy",
    "Studio",
    "Marine",
    "Optics",
]
COMPANY_ENDS = ("Ltd", "Inc", "GmbH", "LLC", "Co", "Group", "SA", "AB")
CITIES = [
    "Bergen",
    "Lisbon",
    "Geneva",
    "Dublin",
    "Austin",
    "Porto",
    "Leeds",
    "Lyon",
    "Turin",
    "Malmo",
    "Ghent",
    "Graz",
    "Bilbao",
    "Tampa",
    "Denver",
    "Oslo",
    "Krakow",
    "Riga",
    "Toledo",
    "Verona",
    "Bristol",
    "Calgary",
    "Nantes",
    "Utrecht",
    "Dresden",
    "Salzburg",
    "Cardiff",
    "Boston",
    "Madison",
    "Kyoto",
    "Hobart",
    "Quito",
]
COUNTRIES = [
    "Norway",
    "Portugal",
    "Ireland",
    "France",
    "Italy",
    "Sweden",
    "Belgium",
    "Austria",
    "Spain",
    "Poland",
    "Canada",
    "Japan",
    "Chile",
    "Kenya",
    "Latvia",
    "Greece",
    "Brazil",
    "Denmark",
    "Finland",
    "Mexico",
]
STREETS = [
    "Harbour",
    "Mill",
    "Station",
    "Church",
    "Park",
    "Garden",
    "Bridge",
    "Castle",
    "Market",
    "School",
    "Lake",
    "Hill",
    "Forest",
    "Queen",
    "King",
    "Abbey",
]
STREET_ENDS = ("Road", "Street", "Lane", "Avenue", "Way", "Square")
ITEMS = [
    "Desk lamp",
    "Office chair",
    "Paper A4",
    "Ink cartridge",
    "Notebook",
    "Stapler",
    "Whiteboard",
    "USB cable",
    "Keyboard",
    "Monitor arm",
    "Coffee beans",
    "Green tea",
    "Orange juice",
    "Olive oil",
    "Brown bread",
    "Apple pie",
    "Cheddar",
    "Tomato soup",
    "Rice",
    "Honey",
    "Hammer",
    "Screwdriver",
    "Wood glue",
    "Paint brush",
    "Sandpaper",
    "Drill bit",
    "Garden hose",
    "Flower pot",
    "Work gloves",
    "Safety vest",
    "Blue pen",
    "Envelope",
    "Calculator",
    "Backpack",
    "Water bottle",
    "Hand soap",
    "Paper towel",
    "Light bulb",
    "Battery pack",
    "Extension cord",
    "Door handle",
    "Wall clock",
    "Picture frame",
    "Bookshelf",
    "Filing box",
    "Desk fan",
    "Headset",
    "Mouse pad",
    "Webcam",
    "Printer",
]
MONTHS = [
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
JOBS = [
    "Manager",
    "Engineer",
    "Accountant",
    "Nurse",
    "Teacher",
    "Director",
    "Clerk",
    "Designer",
    "Analyst",
    "Electrician",
    "Librarian",
    "Chemist",
    "Driver",
    "Editor",
    "Architect",
    "Surveyor",
]
DEPARTMENTS = [
    "Sales",
    "Finance",
    "Research",
    "Legal",
    "Support",
    "Logistics",
    "Marketing",
    "Security",
    "Design",
    "Planning",
]
PAYMENTS = ("Visa", "Cash", "Mastercard", "Bank transfer", "Cheque", "PayPal", "Direct debit")
TERMS = ("30 days net", "14 days net", "60 days net", "on receipt", "10 days net", "end of month")
SUBJECTS = [
    "your application",
    "the annual meeting",
    "your recent order",
    "the lease agreement",
    "your insurance claim",
    "the repair work",
    "your membership",
    "the new schedule",
    "the water supply",
    "your travel plans",
]
FILLER = [
    "Please keep this page for your records.",
    "Goods remain our property until paid in full.",
    "Thank you for your business.",
    "All amounts are stated in the currency shown.",
    "Contact our office if anything is unclear.",
    "This copy was made for the file.",
    "Returns are accepted within two weeks.",
    "Please write in capital letters.",
    "Do not fold or staple this sheet.",
    "The terms on the back apply.",
    "Late payment may incur a fee.",
    "We look forward to hearing from you.",
    "Our office is open on working days.",
    "Signed copies are kept for ten years.",
    "Use a separate sheet if you need more room.",
    "Prices include packing but not delivery.",
]


def is_held_out(value: str) -> bool:
    """Whether an open-class value belongs to the evaluation pages (one in ten does)."""
    return zlib.crc32(value.encode()) % 10 == 0


@dataclass(frozen=True, slots=True)
class Words:
    """Draws values; `held_out` says from which side of the hash."""

    rng: Random
    held_out: bool

    def _open(self, make: Callable[[], str]) -> str:
        while True:
            value = make()
            if is_held_out(value) == self.held_out:
                return value

    def surname(self) -> str:
        rng = self.rng
        return rng.choice(_ONSET) + rng.choice(_CORE) + rng.choice(("", "n", "r", "l", "s", "d")) + rng.choice(_CODA)

    def person(self) -> str:
        return self._open(lambda: f"{self.rng.choice(FIRST)} {self.surname()}")

    def company(self) -> str:
        rng = self.rng
        return self._open(
            lambda: " ".join(
                (
                    rng.choice((*COMPANY_WORDS, self.surname())),
                    rng.choice(COMPANY_TRADES),
                    rng.choice(COMPANY_ENDS),
                )
            )
        )

    def digits(self, low: int, high: int) -> str:
        return self._open(lambda: "".join(self.rng.choices("0123456789", k=self.rng.randint(low, high))))

    def code(self, *prefixes: str) -> str:
        rng = self.rng

        def make() -> str:
            prefix = rng.choice(prefixes) if prefixes else "".join(rng.choices("ABCDEFGHJKLMNPQRSTUVWXYZ", k=2))
            separator = rng.choice(("-", "-", "", " ")) if prefix else ""
            return prefix + separator + "".join(rng.choices("0123456789", k=rng.randint(3, 5)))

        return self._open(make)

    def date(self) -> str:
        rng = self.rng

        def make() -> str:
            day, month, year = rng.randint(1, 28), rng.randint(1, 12), rng.randint(2008, 2029)
            name = MONTHS[month - 1]
            return rng.choice(
                (
                    f"{day} {name} {year}",
                    f"{name} {day}, {year}",
                    f"{year}-{month:02}-{day:02}",
                    f"{day:02}.{month:02}.{year}",
                    f"{month:02}/{day:02}/{year}",
                    f"{day} {name[:3]} {year}",
                )
            )

        return self._open(make)

    def time(self) -> str:
        return f"{self.rng.randint(0, 23):02}:{self.rng.randint(0, 59):02}"

    def number(self) -> str:
        rng = self.rng
        whole = int(10 ** rng.uniform(0.3, 4.3))
        text = f"{whole:,}" if rng.random() < 0.7 else str(whole)
        return f"{text}.{rng.randint(0, 99):02}"

    def amount(self) -> str:
        sign = self.rng.choice(("$", "$", "€", "£", "", "", "EUR ", "USD "))
        return self._open(lambda: sign + self.number())

    def email(self) -> str:
        rng = self.rng
        return self._open(
            lambda: (
                f"{rng.choice(FIRST).lower()}@{rng.choice(COMPANY_WORDS).lower()}."
                f"{rng.choice(('com', 'org', 'net', 'eu'))}"
            )
        )

    def phone(self) -> str:
        rng = self.rng
        return self._open(
            lambda: (
                rng.choice(("+1 555 ", "+44 20 ", "555-", "(555) ", "0", "+49 30 ")) + f"{rng.randint(1000, 9999999)}"
            )
        )

    def address(self) -> str:
        rng = self.rng
        return self._open(lambda: f"{rng.randint(1, 299)} {rng.choice(STREETS)} {rng.choice(STREET_ENDS)}")

    def one(self, choices: tuple[str, ...] | list[str]) -> str:
        return self.rng.choice(choices)


@dataclass(frozen=True, slots=True)
class Field:
    """A labelled value: how pages label it, what questions call it, how its value is drawn."""

    key: str
    labels: tuple[str, ...]
    nouns: tuple[str, ...]
    draw: Callable[[Words], str]
    asked_as: str = "what"  # what | who | when


def _field(key: str, labels: str, nouns: str, draw: Callable[[Words], str], asked_as: str = "what") -> Field:
    return Field(key, tuple(labels.split("|")), tuple(nouns.split("|")), draw, asked_as)


FIELDS: dict[str, Field] = {
    field.key: field
    for field in (
        _field(
            "invoice_number",
            "Invoice number|Invoice no.|Invoice #|Invoice No",
            "invoice number",
            lambda w: w.code("INV", "A", "", "RE"),
        ),
        _field(
            "order_number",
            "Order number|Order no.|PO number|Purchase order",
            "order number|purchase order number",
            lambda w: w.code("PO", "ORD", "", "B"),
        ),
        _field(
            "customer_number", "Customer number|Customer no.|Customer ID", "customer number", lambda w: w.digits(4, 7)
        ),
        _field("account_number", "Account number|Account no.|Account", "account number", lambda w: w.digits(5, 7)),
        _field("reference", "Reference|Our reference|Ref.", "reference", lambda w: w.code()),
        _field("policy_number", "Policy number|Policy no.", "policy number", lambda w: w.code("POL", "P")),
        _field("claim_number", "Claim number|Claim no.", "claim number", lambda w: w.code("CL", "C")),
        _field("receipt_number", "Receipt number|Receipt no.|Receipt #", "receipt number", lambda w: w.digits(4, 7)),
        _field("passport_number", "Passport number|Passport no.", "passport number", lambda w: w.code("P", "X")),
        _field(
            "employee_id",
            "Employee ID|Staff number|Employee no.",
            "employee ID|staff number",
            lambda w: w.code("E", ""),
        ),
        _field(
            "membership", "Membership no.|Member ID|Membership number", "membership number", lambda w: w.code("M", "")
        ),
        _field("tax_id", "Tax ID|VAT number|VAT no.", "tax ID|VAT number", lambda w: w.code("GB", "DE", "FR")),
        _field("invoice_date", "Invoice date|Date of invoice|Issued", "invoice date", lambda w: w.date(), "when"),
        _field("due_date", "Due date|Payment due|Pay by", "due date", lambda w: w.date(), "when"),
        _field(
            "delivery_date", "Delivery date|Delivered on|Date of delivery", "delivery date", lambda w: w.date(), "when"
        ),
        _field("birth_date", "Date of birth|Born|Birth date", "date of birth", lambda w: w.date(), "when"),
        _field("expiry_date", "Expiry date|Valid until|Expires", "expiry date", lambda w: w.date(), "when"),
        _field("start_date", "Start date|Starts on|Date of start", "start date", lambda w: w.date(), "when"),
        _field("total", "Total|Grand total|TOTAL|Total amount", "total|total amount", lambda w: w.amount()),
        _field("subtotal", "Subtotal|Sub-total|Net amount", "subtotal", lambda w: w.amount()),
        _field("tax", "Tax|VAT|Sales tax|VAT 20%", "tax|tax amount", lambda w: w.amount()),
        _field("amount_due", "Amount due|Balance due|Please pay", "amount due", lambda w: w.amount()),
        _field("shipping", "Shipping|Freight|Postage", "shipping cost", lambda w: w.amount()),
        _field("discount", "Discount|Rebate", "discount", lambda w: w.amount()),
        _field("deposit", "Deposit|Deposit paid", "deposit", lambda w: w.amount()),
        _field("change", "Change|Change given", "change", lambda w: w.amount()),
        _field("salary", "Salary|Annual salary", "salary", lambda w: w.amount()),
        _field("rent", "Rent|Monthly rent", "rent", lambda w: w.amount()),
        _field(
            "customer", "Customer|Customer name|Bill to|Client", "customer|customer name", lambda w: w.person(), "who"
        ),
        _field("contact", "Contact|Contact person|Your contact", "contact person", lambda w: w.person(), "who"),
        _field("applicant", "Applicant|Name of applicant", "applicant", lambda w: w.person(), "who"),
        _field("patient", "Patient|Patient name", "patient", lambda w: w.person(), "who"),
        _field("doctor", "Doctor|Physician|Treating doctor", "doctor", lambda w: w.person(), "who"),
        _field("manager", "Manager|Supervisor|Line manager", "manager", lambda w: w.person(), "who"),
        _field("cashier", "Cashier|Served by", "cashier", lambda w: w.person(), "who"),
        _field("witness", "Witness|Witnessed by", "witness", lambda w: w.person(), "who"),
        _field("prepared_by", "Prepared by|Issued by|Author", "author", lambda w: w.person(), "who"),
        _field("supplier", "Supplier|Vendor|Sold by", "supplier", lambda w: w.company(), "who"),
        _field("employer", "Employer|Name of employer", "employer", lambda w: w.company(), "who"),
        _field("carrier", "Carrier|Shipped by|Ship via", "carrier", lambda w: w.company(), "who"),
        _field("bank", "Bank|Bank name", "bank", lambda w: w.company()),
        _field("city", "City|Town|City / Town", "city", lambda w: w.one(CITIES)),
        _field("country", "Country|Country of origin", "country", lambda w: w.one(COUNTRIES)),
        _field("nationality", "Nationality|Citizen of", "nationality", lambda w: w.one(COUNTRIES)),
        _field("address", "Address|Street|Street address", "address|street address", lambda w: w.address()),
        _field("postcode", "Postcode|ZIP code|Postal code", "postcode|ZIP code", lambda w: w.digits(5, 5)),
        _field("phone", "Phone|Telephone|Tel.|Phone number", "phone number", lambda w: w.phone()),
        _field("email", "Email|E-mail|Email address", "email address|email", lambda w: w.email()),
        _field("iban", "IBAN", "IBAN", lambda w: w.code("DE", "NO", "FR", "GB")),
        _field("payment_method", "Payment method|Paid by|Payment", "payment method", lambda w: w.one(PAYMENTS)),
        _field("terms", "Terms|Payment terms", "payment terms", lambda w: w.one(TERMS)),
        _field("occupation", "Occupation|Profession|Job title", "occupation|job title", lambda w: w.one(JOBS)),
        _field("department", "Department|Dept.", "department", lambda w: w.one(DEPARTMENTS)),
        _field("room", "Room|Room no.|Room number", "room|room number", lambda w: w.digits(3, 3)),
        _field("time", "Time|Time of day", "time", lambda w: w.time()),
        _field(
            "blood_type",
            "Blood type|Blood group",
            "blood type",
            lambda w: w.one(("A+", "A-", "B+", "B-", "0+", "0-", "AB+", "AB-")),
        ),
        _field("weight", "Weight|Weight (kg)|Gross weight", "weight", lambda w: f"{w.rng.randint(2, 980)} kg"),
        _field("height", "Height|Height (cm)", "height", lambda w: f"{w.rng.randint(120, 210)} cm"),
        _field("licence_plate", "Licence plate|Plate no.|Vehicle reg.", "licence plate", lambda w: w.code()),
        _field("serial_number", "Serial number|Serial no.|S/N", "serial number", lambda w: w.code("SN", "X", "K")),
        _field("meter_reading", "Meter reading|Reading", "meter reading", lambda w: w.digits(5, 6)),
        _field("card", "Card ending|Card no. ending", "card number ending", lambda w: w.digits(4, 4)),
        _field(
            "quantity", "Total items|Number of items|Item count", "number of items", lambda w: str(w.rng.randint(1, 99))
        ),
        _field("tracking", "Tracking number|Tracking no.", "tracking number", lambda w: w.digits(6, 8)),
    )
}

KINDS: dict[str, tuple[tuple[str, ...], str]] = {
    "invoice": (
        ("INVOICE", "Invoice", "Tax invoice", "Sales invoice"),
        "invoice_number order_number customer_number account_number invoice_date due_date delivery_date total subtotal tax "
        "amount_due shipping discount deposit customer contact supplier carrier bank city country address postcode phone "
        "email iban payment_method terms tax_id tracking reference",
    ),
    "receipt": (
        ("RECEIPT", "Receipt", "Sales receipt", "Cash receipt"),
        "receipt_number total subtotal tax change discount cashier payment_method card time quantity phone city address "
        "membership tax_id",
    ),
    "form": (
        ("Application form", "Registration form", "Claim form", "Patient form", "FORM 12"),
        "applicant patient doctor birth_date passport_number nationality occupation employer department employee_id manager "
        "address city postcode country phone email blood_type weight height policy_number claim_number account_number "
        "start_date expiry_date licence_plate salary rent witness membership room serial_number",
    ),
    "report": (
        ("Delivery note", "Inspection report", "Work order", "Service report", "Packing list"),
        "order_number delivery_date carrier tracking weight quantity serial_number meter_reading licence_plate prepared_by "
        "customer address city country department room time reference manager contact start_date supplier phone",
    ),
}


def ask(field: Field, label: str | None, rng: Random) -> str:
    """Word a question for a field; `label` is how the page calls it (None when the page does not have it)."""
    noun = rng.choice(field.nouns)
    if label is not None and rng.random() < 0.25:
        noun = label.rstrip(".").strip()
        return rng.choice((f"What is the {noun}?", f"What does the page give as {noun}?", f"{noun}?"))
    wordings = [
        f"What is the {noun}?",
        f"What is the {noun}?",
        f"What {noun} is given?",
        f"Which {noun} is stated?",
        f"Find the {noun}.",
        f"Give the {noun}.",
        f"What's the {noun}?",
        f"{noun[0].upper()}{noun[1:]}?",
        f"Can you tell me the {noun}?",
        f"what is the {noun}",
    ]
    if field.asked_as == "who":
        wordings += [f"Who is the {noun}?"] * 4
    if field.asked_as == "when":
        wordings += [f"When is the {noun}?"] * 2
    return rng.choice(wordings)
