"""Word lists: closed ones written here, open ones read from `words/`, and strings drawn letter by letter."""

from __future__ import annotations

import string
from functools import cache
from pathlib import Path
from random import Random

CHARACTERS = "\n" + string.digits + string.ascii_letters + string.punctuation + " " + "€£°éèêáàâäåæçíñóôöøúüßÄÅÆÉÖØÜ"
"""What the tokenizer has a token for."""

NOT_FOUND = "not found"

_KNOWN = frozenset(CHARACTERS)


COMPANY_TRADES = (
    "Paper Tools Foods Textiles Logistics Systems Media Books Glass Motors Farms Labs Energy Studio Marine Optics"
).split()

COMPANY_ENDS = ("Ltd Inc GmbH LLC Co Group SA AB").split()

COUNTRIES = (
    "Norway Portugal Ireland France Italy Sweden Belgium Austria Spain Poland Canada Japan Chile Kenya Latvia "
    "Greece Brazil Denmark Finland Mexico"
).split()

STREETS = (
    "Harbour Mill Station Church Park Garden Bridge Castle Market School Lake Hill Forest Queen King Abbey"
).split()

STREET_ENDS = ("Road Street Lane Avenue Way Square").split()

ITEMS = (
    "Desk lamp|Office chair|Paper A4|Ink cartridge|Notebook|Stapler|Whiteboard|USB cable|Keyboard|Monitor arm|"
    "Coffee beans|Green tea|Orange juice|Olive oil|Brown bread|Apple pie|Cheddar|Tomato soup|Rice|Honey|Hammer|"
    "Screwdriver|Wood glue|Paint brush|Sandpaper|Drill bit|Garden hose|Flower pot|Work gloves|Safety vest|"
    "Blue pen|Envelope|Calculator|Backpack|Water bottle|Hand soap|Paper towel|Light bulb|Battery pack|"
    "Extension cord|Door handle|Wall clock|Picture frame|Bookshelf|Filing box|Desk fan|Headset|Mouse pad|Webcam|"
    "Printer"
).split("|")

MONTHS = ("January February March April May June July August September October November December").split()

DEPARTMENTS = ("Sales Finance Research Legal Support Logistics Marketing Security Design Planning").split()

PAYMENTS = ("Visa|Cash|Mastercard|Bank transfer|Cheque|PayPal|Direct debit").split("|")

TERMS = ("30 days net|14 days net|60 days net|on receipt|10 days net|end of month").split("|")

SUBJECTS = (
    "your application|the annual meeting|your recent order|the lease agreement|your insurance claim|"
    "the repair work|your membership|the new schedule|the water supply|your travel plans"
).split("|")

FILLER = (
    "Please keep this page for your records.|Goods remain our property until paid in full.|"
    "Thank you for your business.|All amounts are stated in the currency shown.|"
    "Contact our office if anything is unclear.|This copy was made for the file.|"
    "Returns are accepted within two weeks.|Please write in capital letters.|Do not fold or staple this sheet.|"
    "The terms on the back apply.|Late payment may incur a fee.|We look forward to hearing from you.|"
    "Our office is open on working days.|Signed copies are kept for ten years.|"
    "Use a separate sheet if you need more room.|Prices include packing but not delivery."
).split("|")

FACTS = (
    (
        "Your appointment is on {}.|We expect you on {} at our office.|The meeting will take place on {}.",
        "When is the appointment?|On which date is the appointment?|When is the meeting?",
        "date",
    ),
    (
        "Please quote the reference {} in your reply.|Our file number is {}.|Your case has the reference {}.",
        "What is the reference?|Which reference is given?|What is the reference number?",
        "code",
    ),
    (
        "The amount of {} is still open.|We still await your payment of {}.|You owe us {} for the work.",
        "What amount is still open?|How much is still open?|What amount is owed?",
        "amount",
    ),
    (
        "You can reach us at {} during the day.|Please call {} for questions.|Our telephone number is {}.",
        "What phone number is given?|At which phone number can they be reached?|Which number should be called?",
        "phone",
    ),
    (
        "Please come to room {} on arrival.|You will find us in room {} upstairs.",
        "To which room should one come?|What is the room?|Which room is named?",
        "room",
    ),
    (
        "Your new contact is {} from our office.|From now on {} will look after you.|Please ask for {} when you call.",
        "Who is the new contact?|Who is the contact person?",
        "person",
    ),
    (
        "The contract ends on {} at the latest.|The agreement runs until {} and then ends.",
        "When does the contract end?|On which date does the contract end?",
        "date",
    ),
    (
        "We will send the {} next week.|Thank you for ordering the {} from us.",
        "What was ordered?|Which item does the letter name?",
        "item",
    ),
    (
        "The next visit will be in {} this time.|The event takes place in {} this year.",
        "In which city is the visit?|Which city is named?|Where does it take place?",
        "city",
    ),
)
"""What letters say, what is asked, and how the value is drawn."""

STATEMENTS = (
    "The {n} is {v}.|{N}: {v}.|Your {n} is {v} as agreed.|We have noted {v} as the {n}.|The {n} was set to {v} today.|"
    "Please note that the {n} is now {v}.|Our records show {v} for the {n}.|With {v} as {n} we can go on.|"
    "For {n} we have {v} on file.|The {n} stays {v} for now.|As {n} you gave {v}.|{v} is the {n}.|{N} {v}.|"
    "It was agreed that {v} is the {n}.|The {n} {v} applies."
).split("|")
"""Sentences that give a value {v} for what is called {n}."""

ONSETS = (
    "b c d f g h j k l m n p r s t v w z br cr dr gr pr st tr fl gl sh th ch c k qu v j sl sp kn wr y bl pl sc sk"
).split()

CORES = ("a e i o u ai ea ou an en in on ar er or al el il y ie oo au ee ei ue").split()

ENDINGS = (
    "ton ley man berg son dal ford well ski mann ez ov ini ard quist wood by ham field row stein nes ck ic us a "
    "o ia ette ine ow ax ix is um ane oth ing er y k sh t p g b m x z v rt nd st lm"
).split()


def unknown(text: str) -> bool:
    """Whether a text holds a character that the tokenizer has no token for."""
    return not _KNOWN.issuperset(text)


@cache
def words(name: str) -> tuple[str, ...]:
    """Return an open list: first_names, surnames, cities, jobs or words."""
    return tuple((Path(__file__).parent / "words" / f"{name}.txt").read_text(encoding="utf-8").split("\n")[:-1])


def pronounceable(rng: Random, most: int = 3) -> str:
    """A made-up word of one to `most` syllables, in lower case."""
    syllables = (rng.choice(ONSETS) + rng.choice(CORES) for _ in range(rng.randint(1, most)))
    word = "".join(syllables) + (rng.choice(ENDINGS) if rng.random() < 0.75 else "")
    return word[:13] if len(word) > 3 else word + rng.choice(ENDINGS)


def letters(rng: Random, low: int = 3, high: int = 9) -> str:
    """Letters in no order at all, in lower case; now and then an accented one."""
    alphabet = string.ascii_lowercase if rng.random() < 0.8 else string.ascii_lowercase + "éèêáàâäåæçíñóôöøúü"
    return "".join(rng.choices(alphabet, k=rng.randint(low, high)))


def any_label_word(rng: Random) -> str:
    """A word of a label, in lower case: from the list of words (75 %), made up, or of letters in no order (5 %)."""
    chance = rng.random()
    if chance < 0.75:
        return rng.choice(words("words")).lower()
    return pronounceable(rng) if chance < 0.95 else letters(rng)


def any_word(rng: Random, name: str) -> str:
    """A word with a capital: from an open list (60 %), made up (30 %) or of letters in no order (10 %)."""
    chance = rng.random()
    made_up = pronounceable(rng) if chance < 0.9 else letters(rng)
    word = rng.choice(words(name)) if chance < 0.6 else made_up
    return word[0].upper() + word[1:]
