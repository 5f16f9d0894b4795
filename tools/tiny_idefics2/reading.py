"""Answers questions about page images with the tiny model, in batches, without the package's engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers import DynamicCache

from idefics_cli.engine.families.idefics2 import Idefics2ImageProcessor
from tools.tiny_idefics2.data import Encoder
from tools.tiny_idefics2.model import IMAGE_SIZE, SHORTEST_EDGE, Reader, load_checkpoint, make_model

LONGEST_ANSWER = 64  # tokens
_PROCESSOR = Idefics2ImageProcessor(IMAGE_SIZE, SHORTEST_EDGE)


@dataclass(frozen=True, slots=True)
class AskedPage:
    """A page and what it is asked: (question, answer, kind of look-up)."""

    image: Image.Image
    group: str  # what figures are told apart by: dense, large, ...
    em: float  # of its text, in pixels of one unsplit image
    questions: tuple[tuple[str, str, str], ...]


class TinyReader:
    """A checkpoint ready to be asked."""

    def __init__(self, folder: Path, dtype: torch.dtype, device: str, threads: int | None = None) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.reader = Reader(make_model())
        load_checkpoint(self.reader.model, folder)
        self.reader = self.reader.to(device, dtype).eval()
        self.dtype, self.device = dtype, torch.device(device)
        self.encoder = Encoder()
        self.characters = {index: token for token, index in self.encoder.ids.items()}

    @torch.inference_mode()
    def answer(self, pages: Sequence[AskedPage], split: Sequence[bool], batch: int = 96) -> list[list[str]]:
        """Return the answers to each page's questions; `split` says which pages are split."""
        answers: list[list[str]] = [[] for _ in pages]
        for way in (False, True):
            features: list[tuple[int, str, Tensor]] = []
            for number, page in enumerate(pages):
                if split[number] is way:
                    seen = self._see(page.image, way)
                    features += [(number, question, seen) for question, _, _ in page.questions]
                if len(features) >= batch:
                    self._decode(features, answers, 5 if way else 1)
                    features = []
            if features:
                self._decode(features, answers, 5 if way else 1)
        return answers

    def _see(self, image: Image.Image, split: bool) -> Tensor:
        """The image features of a page, (crops * 64, width)."""
        crops = [torch.tensor(crop) for crop in _PROCESSOR.crops(image.convert("RGB"), split=split)]
        same = len({crop.shape for crop in crops}) == 1
        found = []
        for group in [crops] if same else [[crop] for crop in crops]:
            pixels = torch.stack(group).to(self.device).permute(0, 3, 1, 2).float() / 255
            found.append(self.reader.see((pixels * 2 - 1).to(self.dtype))[1].flatten(0, 1))
        return torch.cat(found)

    def _decode(self, asked: list[tuple[int, str, Tensor]], answers: list[list[str]], crops: int) -> None:
        """Answer questions greedily, prompts padded on the left."""
        text, head = self.reader.model.model.text_model, self.reader.model.lm_head
        encoder = self.encoder
        prompts = [
            [*encoder.prefix(crops), *encoder.text(question), encoder.end, *encoder.text("\nAssistant:")]
            for _, question, _ in asked
        ]
        length = max(map(len, prompts))
        tokens = torch.tensor([[0] * (length - len(prompt)) + prompt for prompt in prompts], device=self.device)
        mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts], device=self.device)
        hidden = text.embed_tokens(tokens)
        hidden = hidden.masked_scatter((tokens == encoder.image)[..., None], torch.cat([x for *_, x in asked]))
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache, written = DynamicCache(), []
        ended = torch.zeros(len(asked), dtype=torch.bool, device=self.device)
        for _ in range(LONGEST_ANSWER):
            out = text(
                inputs_embeds=hidden,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
            token = head(out.last_hidden_state[:, -1]).argmax(-1)
            written.append(token)
            ended |= token == encoder.end
            if bool(ended.all()):
                break
            hidden = text.embed_tokens(token)[:, None]
            mask = torch.cat((mask, mask.new_ones(len(asked), 1)), 1)
            positions = positions[:, -1:] + 1
        for (number, _, _), row in zip(asked, torch.stack(written, 1).tolist(), strict=True):
            kept = row[: row.index(encoder.end)] if encoder.end in row else row
            answers[number].append("".join(self.characters[token] for token in kept).strip())
