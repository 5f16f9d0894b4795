"""Writes letters: address, salutation, a body that states facts, and a signature."""

from __future__ import annotations

from dataclasses import replace

from tools.tiny_idefics2 import lexicon
from tools.tiny_idefics2.page import Asked, Box, Text
from tools.tiny_idefics2.tables import TableWriter


class PageWriter(TableWriter):
    """Writes letters too: all that a page can hold."""

    def letter(self) -> None:
        """A letter: address, salutation, a body that states facts, and a signature."""
        rng, words, flow = self.rng, self.values, self.flow
        sender, recipient, signer = words.company(), words.person(), words.person()
        ask = self.page.asked.append
        self.title(sender, scale=1.3)
        line = self.em * self.leading
        aside = rng.random() < 0.2  # the address stands at the right
        date_first, at_right = rng.random() < 0.6, rng.random() < 0.35
        if date_first and not self.letter_date(at_right):
            return
        named: Box = (0, 0, 0, 0)
        right = flow.x0 + rng.uniform(0.5, 0.6) * (flow.x1 - flow.x0)
        address = [words.address(), rng.choice(("", words.digits(5, 5) + " ")) + words.city()]
        for text in (recipient, *([words.company()] if rng.random() < 0.2 else []), *address):
            if (y := flow.take(line)) is None:
                return
            item = self.put(flow.x0, y, text)
            if aside and right + item.width < flow.x1:
                self.page.items[-1] = item = replace(item, x=right)
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
                        "Who is the addressee?",
                        "Who should receive this letter?",
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
        if rng.random() < 0.25:
            self.names.take(
                ["reference", "amount", "phone number", "room", "contact", "date", "subject", "city", "item"]
            )
            self.sentences(rng.randint(1, 2))
        flow.skip(line * 0.5)
        closing = rng.choice(
            (
                "Sincerely,",
                "Best regards,",
                "Yours faithfully,",
                "Kind regards,",
                "Yours truly,",
                "Respectfully,",
                "Thank you,",
            )
        )
        if (y := flow.take(line * 1.2)) is None:
            return
        self.put(flow.x0, y, closing)
        if (y := flow.take(line)) is None:
            return
        box = self.put(flow.x0, y, signer).box
        ask(
            Asked(
                rng.choice(
                    (
                        "Who signed the letter?",
                        "Who wrote the letter?",
                        "Who is the sender of the letter?",
                        "Whose name is below?",
                    )
                ),
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
