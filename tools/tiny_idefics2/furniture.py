"""What stands on pages beside their content: heads, feet, page numbers, logos, stamps, bar codes and side bars."""

from __future__ import annotations

from tools.tiny_idefics2 import labels, lexicon
from tools.tiny_idefics2.grids import GridWriter
from tools.tiny_idefics2.page import Rule, Text
from tools.tiny_idefics2.panels import Print


class FurnitureWriter(GridWriter):
    """Writes what surrounds the content too; it is never asked for."""

    def furnish(self) -> None:
        """Set heads and feet at the page's edges, and take their room from the flow."""
        rng, flow = self.rng, self.flow
        if rng.random() < 0.3:
            self._edge(flow.top, above=True)
            flow.top += 2.2 * self.em
            flow.y = flow.top
        if rng.random() < 0.3:
            flow.bottom -= 2.2 * self.em
            self._edge(flow.bottom + 0.6 * self.em, above=False)
        if rng.random() < 0.12:
            self._logo()
        if rng.random() < 0.08 and flow.bottom > flow.top and flow.x1 - flow.x0 > 24 * self.em:
            self._side_bar()

    def _edge(self, y: float, *, above: bool) -> None:
        rng, page = self.rng, self.page
        style = Print(self.family, rng.random() < 0.2, rng.choice((1.0, 0.85)))
        number = rng.choice(("Page {}", "{}", "Page {} of 9", "- {} -", "p. {}")).format(rng.randint(1, 9))
        words = rng.choice((self.values.company, self.values.subject, lambda: rng.choice(lexicon.FILLER)))()
        left, right = self.flow.columns[0][0], self.flow.columns[-1][1]
        for text, at in ((self.values.cased(words), rng.choice((0.0, 0.0, 0.5))), (number, 1.0)):
            shown = self.text(left, y, text, style)
            if shown.width < 0.45 * (right - left) and rng.random() < 0.8:
                x = left + at * (right - left - shown.width)
                page.items.append(self.text(x, y, text, style))
        if rng.random() < 0.5:
            line = y + 1.5 * self.em if above else y - 0.3 * self.em
            page.items.append(Rule((left, line, right, line + 1), rng.choice((0, 90, 160))))

    def _logo(self) -> None:
        """A box with a word or nothing in it, above the content or at its right."""
        rng, flow = self.rng, self.flow
        style = Print(self.heads, True, rng.choice((1.2, 1.6, 2.0)))
        word = labels.heading(self.values).split()[0]
        shown = self.text(0, 0, word, style)
        height = self.em * style.scale * 1.7
        if shown.width > 0.6 * (flow.x1 - flow.x0) or (y := flow.take(height + 0.5 * self.em)) is None:
            return
        x = rng.choice((flow.x0, flow.x1 - shown.width - self.em))
        dark = rng.random() < 0.5
        frame = (x, y, x + shown.width + self.em, y + height)
        self.page.items.append(Rule(frame, rng.choice((0, 60)) if dark else 120, outline=not dark))
        text = self.text(x + 0.5 * self.em, y + 0.15 * self.em, word, style, 255 if dark else None)
        self.page.items.append(text)

    def _side_bar(self) -> None:
        """A shaded bar at the right with some words, beside the first column."""
        rng, flow, page = self.rng, self.flow, self.page
        x0, x1 = flow.columns[-1]
        width = self.em * rng.uniform(6, 9)
        flow.columns[-1] = (x0, x1 - width - 0.6 * self.em)
        page.items.append(Rule((x1 - width, flow.top, x1, flow.bottom), rng.choice((205, 222, 235))))
        y = flow.top + self.em
        style = Print(self.family, rng.random() < 0.3, 0.85)
        while y < flow.bottom - 2 * self.em and rng.random() < 0.9:
            text = self.text(x1 - width + 0.4 * self.em, y, labels.heading(self.values), style)
            if text.width < width - 0.8 * self.em:
                page.items.append(text)
            y += 1.4 * self.em

    def stamp(self) -> None:
        """A framed word or a bar code in the flow."""
        rng, flow = self.rng, self.flow
        if (y := flow.take(2.4 * self.em)) is None:
            return
        x = flow.x0 + rng.random() * max(0.0, flow.x1 - flow.x0 - 9 * self.em)
        if rng.random() < 0.5:
            end = min(flow.x1, x + 8 * self.em)
            while x < end:
                self.page.items.append(Rule((x, y, x + rng.choice((0, 1, 2)), y + 2 * self.em), 0))
                x += rng.uniform(2, 6)
            return
        style = Print(self.heads, True, 1.1)
        word = rng.choice(("PAID", "COPY", "DRAFT", "RECEIVED", "VOID", "APPROVED", "ORIGINAL", "SAMPLE", "URGENT"))
        text: Text = self.text(x + 0.4 * self.em, y + 0.3 * self.em, word, style)
        self.page.items += [Rule((x, y, text.box[2] + 0.4 * self.em, y + 2 * self.em), 110, outline=True), text]
