"""What a step of training minimizes: the answers, and the characters in each patch as patches and latents know them."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tools.tiny_idefics2.data import Batch
from tools.tiny_idefics2.model import PATCH, Reader

TURNS = 128  # more than a page is ever asked


@dataclass(frozen=True, slots=True)
class Losses:
    """The parts of a step's loss, and how many questions were answered exactly."""

    spelling: Tensor  # nats a character slot, from patches
    recall: Tensor  # the same, from latents
    answers: Tensor  # nats a character of the answers
    right: Tensor  # turns answered exactly, greedily
    turns: Tensor

    @property
    def parts(self) -> Tensor:
        """All of them, detached, in a row."""
        return torch.stack(
            [x.detach().float() for x in (self.spelling, self.recall, self.answers, self.right, self.turns)]
        )


def find_losses(reader: Reader, batch: Batch, device: torch.device, *, settling: bool = False) -> Losses:
    """Read a batch. Nothing here makes the host wait for the GPU.

    Args:
        settling: heads that know nothing yet do not move a model that reads.

    """
    count, views, height, width = batch.images.shape
    autocast = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()
    spelled, tokens, turns, positions, targets, answered, sampled = (
        tensor.to(device, non_blocking=True).long()
        for tensor in (
            batch.spelled,
            batch.tokens,
            batch.turns,
            batch.positions,
            batch.targets,
            batch.answered,
            batch.sampled,
        )
    )
    with autocast:
        pixels = tint(batch.images.to(device, non_blocking=True).flatten(0, 1))
        patches, latents = reader.see(pixels)
        hidden = reader.read(latents.reshape(count, views * latents.shape[1], -1), tokens, turns, positions)
        logits = reader.model.lm_head(hidden.flatten(0, 1).index_select(0, answered)).float()
        if settling:
            patches, latents = patches.detach(), latents.detach()
        found = reader.look_up(latents, height // PATCH, width // PATCH)
        names, recalled = (
            head(states.flatten(0, 1).index_select(0, sampled)).float().unflatten(-1, (Reader.CHARACTERS_A_PATCH, -1))
            for head, states in ((reader.spell, patches), (reader.recall, found))
        )
    asked = spelled.view(-1, Reader.CHARACTERS_A_PATCH).index_select(0, sampled).flatten()
    wanted = targets.flatten().index_select(0, answered)
    right, all_ = _exact(logits, wanted, turns, answered)
    return Losses(
        functional.cross_entropy(names.flatten(0, 1), asked),
        functional.cross_entropy(recalled.flatten(0, 1), asked),
        functional.cross_entropy(logits, wanted),
        right,
        all_,
    )


@torch.no_grad()
def _exact(logits: Tensor, wanted: Tensor, turns: Tensor, answered: Tensor) -> tuple[Tensor, Tensor]:
    """How many turns have no wrong character, and how many there are."""
    count, length = turns.shape
    turn = turns.flatten().index_select(0, answered) + answered // length * TURNS
    wrong = (logits.argmax(-1) != wanted).float()
    missed, there = (torch.zeros(count * TURNS, device=turns.device) for _ in range(2))
    missed.index_add_(0, turn, wrong)
    there.index_fill_(0, turn, 1.0)
    return ((missed == 0) & (there > 0)).sum().float(), there.sum()


def tint(grey: Tensor) -> Tensor:
    """Grey uint8 (n, height, width) to normalized colour (n, 3, height, width), worn anew whenever a page is seen.

    A third of the images get a tint, and half of them noise and other contrast.
    """
    n = grey.shape[0]
    tinted = (torch.rand(n, 1, device=grey.device) < 0.33).float()
    dark = torch.rand(n, 3, device=grey.device) * 0.35 * tinted
    light = 1 - torch.rand(n, 3, device=grey.device) * 0.2 * tinted
    worn = (torch.rand(n, 1, 1, 1, device=grey.device) < 0.5).float()
    strength, slope = (torch.rand(2, n, 1, 1, 1, device=grey.device) * worn).unbind()
    level = grey[:, None].float() / 255
    level = 1 - (1 - level) * (1 - 0.3 * slope) + 0.03 * strength * torch.randn_like(level)
    return (dark[..., None, None] + (light - dark)[..., None, None] * level.clamp(0, 1)) * 2 - 1
