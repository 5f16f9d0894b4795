"""The labelled fields of generated pages, the kinds of pages they stand on, and how questions ask for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tools.tiny_idefics2 import lexicon
from tools.tiny_idefics2.values import Values


@dataclass(frozen=True, slots=True)
class Field:
    """A labelled value: how pages label it, what questions call it, how its value is drawn."""

    key: str
    labels: tuple[str, ...]
    nouns: tuple[str, ...]
    draw: Callable[[Values], str]
    asked_as: str = "what"  # what | who | when


def _field(key: str, labels: str, nouns: str, draw: Callable[[Values], str], asked_as: str = "what") -> Field:
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
        _field("city", "City|Town|City / Town", "city", lambda w: w.city()),
        _field("country", "Country|Country of origin", "country", lambda w: w.one(lexicon.COUNTRIES)),
        _field("nationality", "Nationality|Citizen of", "nationality", lambda w: w.one(lexicon.COUNTRIES)),
        _field("address", "Address|Street|Street address", "address|street address", lambda w: w.address()),
        _field("postcode", "Postcode|ZIP code|Postal code", "postcode|ZIP code", lambda w: w.digits(5, 5)),
        _field("phone", "Phone|Telephone|Tel.|Phone number", "phone number", lambda w: w.phone()),
        _field("email", "Email|E-mail|Email address", "email address|email", lambda w: w.email()),
        _field("iban", "IBAN", "IBAN", lambda w: w.code("DE", "NO", "FR", "GB")),
        _field("payment_method", "Payment method|Paid by|Payment", "payment method", lambda w: w.one(lexicon.PAYMENTS)),
        _field("terms", "Terms|Payment terms", "payment terms", lambda w: w.one(lexicon.TERMS)),
        _field("occupation", "Occupation|Profession|Job title", "occupation|job title", lambda w: w.job()),
        _field("department", "Department|Dept.", "department", lambda w: w.department()),
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
        "invoice_number order_number customer_number account_number invoice_date due_date delivery_date total "
        "subtotal tax "
        "amount_due shipping discount deposit customer contact supplier carrier bank city country address "
        "postcode phone "
        "email iban payment_method terms tax_id tracking reference",
    ),
    "receipt": (
        ("RECEIPT", "Receipt", "Sales receipt", "Cash receipt"),
        "receipt_number total subtotal tax change discount cashier payment_method card time quantity phone "
        "city address "
        "membership tax_id",
    ),
    "form": (
        ("Application form", "Registration form", "Claim form", "Patient form", "FORM 12"),
        "applicant patient doctor birth_date passport_number nationality occupation employer department "
        "employee_id manager "
        "address city postcode country phone email blood_type weight height policy_number claim_number account_number "
        "start_date expiry_date licence_plate salary rent witness membership room serial_number",
    ),
    "report": (
        ("Delivery note", "Inspection report", "Work order", "Service report", "Packing list"),
        "order_number delivery_date carrier tracking weight quantity serial_number meter_reading "
        "licence_plate prepared_by "
        "customer address city country department room time reference manager contact start_date supplier phone",
    ),
}


def ask(field: Field, label: str | None, rng: Random) -> str:
    """Word a question for a field; `label` is how the page calls it (None when the page does not have it)."""
    noun = rng.choice(field.nouns)
    if label is not None:
        label = label.capitalize() if label.isupper() and len(label) > 5 else label
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
