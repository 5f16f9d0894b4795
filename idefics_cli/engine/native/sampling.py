"""Random tokens that depend on the seed, the request and the step alone: the same in any batch, on CPU and GPU."""

from __future__ import annotations

import torch
from torch import Tensor

_GAMMA, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def uniform(keys: Tensor, count: Tensor) -> Tensor:
    """Return float64 numbers from 0 to below 1, (rows,): number `count` of the stream of each key.

    SplitMix64 (Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, 2014), by counter: integers of
    64 bits are multiplied modulo 2 ** 64, which is the same on every device.

    Args:
        keys: int64 (rows,).
        count: int64 (rows,), from 0.

    """
    mixed = keys + (count + 1) * _signed(_GAMMA)
    mixed = (mixed ^ _shifted(mixed, 30)) * _signed(_MIX_1)
    mixed = (mixed ^ _shifted(mixed, 27)) * _signed(_MIX_2)
    return _shifted(mixed ^ _shifted(mixed, 31), 11).double() * 2.0**-53


def draw(logits: Tensor, numbers: Tensor) -> Tensor:
    """Return a token for each row of logits (rows, width), by inversion of the cumulated probabilities.

    Args:
        logits: float32; -inf is never drawn.
        numbers: float64 (rows,), from 0 to below 1.

    """
    cumulated = logits.softmax(-1).double().cumsum(-1)  # (rows, width)
    total = cumulated[:, -1]
    wanted = torch.minimum(numbers * total, torch.nextafter(total, torch.zeros_like(total)))
    # The first token whose cumulated probability is above: there is one, and its own probability is not 0.
    return (cumulated <= wanted[:, None]).sum(-1)


class Sampler:
    """Takes the token of each row by the temperature, top-p and random numbers of its sequence; 0 takes the greatest.

    Temperature and top-p (Holtzman et al., nucleus sampling, 2020) are applied as transformers' `generate` does.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        """Allocate the state of so many sequences, none of which is drawn."""
        self._temperature = torch.zeros(size, device=device)
        self._removed = torch.zeros(size, device=device)  # probability that top-p takes away: 1 - p
        self._keys = torch.zeros(size, dtype=torch.long, device=device)

    def start(self, index: Tensor, temperature: Tensor, removed: Tensor, keys: Tensor) -> None:
        """Take new sequences, each at an index of its own.

        Args:
            index: of each (sequences,), as all others.
            temperature: 0 draws nothing.
            removed: 1 - top_p.
            keys: what random numbers are made from, int64.

        """
        self._temperature[index], self._removed[index], self._keys[index] = temperature, removed, keys

    def __call__(self, logits: Tensor, index: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits that tokens are drawn from, (rows, width), and the tokens (rows,).

        Args:
            logits: float32 (rows, width).
            index: which sequence each row belongs to.
            count: tokens that each has so far.

        """
        temperature = self._temperature[index][:, None]
        is_drawn = temperature > 0
        scaled = logits / torch.where(is_drawn, temperature, 1.0)
        ordered, tokens = scaled.sort(dim=-1, stable=True)
        is_removed = ordered.softmax(-1).cumsum(-1) <= self._removed[index][:, None]
        is_removed[:, -1] = False
        kept = scaled.masked_fill(torch.zeros_like(is_removed).scatter(1, tokens, is_removed), -torch.inf)
        kept = torch.where(is_drawn, kept, logits)
        drawn = draw(kept, uniform(self._keys[index], count))
        return kept, torch.where(is_drawn[:, 0], drawn, logits.argmax(-1))


def _signed(constant: int) -> int:
    return constant - (1 << 64)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Shift int64 to the right as if it had no sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)
