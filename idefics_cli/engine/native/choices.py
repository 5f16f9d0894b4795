"""Constrained decoding: the most probable of some answers, each scored whole, with what they have in common once.

The answers are a tree of tokens (a trie) that is the same for every question. A sequence visits its nodes depth first,
one a step: the node's token is run through the model behind its ancestors, whose keys and values are in the cache, and
the logits score its children. The search is exact, and its steps are those of decoding: in batches, without waiting.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from idefics_cli.engine.families.base import PromptBuilder
from idefics_cli.engine.families.generation import Choice, GenerationRules
from idefics_cli.engine.native.decode import Growing, Start, StepDecoder
from idefics_cli.engine.native.models.decoder import Decoder, KVCache
from idefics_cli.engine.native.ops.base import Ops
from idefics_cli.engine.native.sequence import Output
from idefics_cli.engine.native.token_decoder import TokenDecoder
from idefics_cli.engine.native.transfer import to_device


@dataclass(slots=True)
class _Node:
    """Tokens that answers begin with; whole answers among them."""

    path: tuple[int, ...]
    """Its tokens, from behind the prompt."""
    children: dict[int, _Node] = field(default_factory=dict)
    """By the token that follows."""
    text: str | None = None
    """Of the answer that these tokens are."""


def _tree(choices: Sequence[Choice], eos_token_ids: Collection[int]) -> _Node:
    """Return the root of the tree of answers, end tokens included; without any, an answer is its own tokens."""
    root = _Node(())
    for choice in choices:
        for tokens in choice.tokens:
            ways = [(*tokens, end) for end in sorted(eos_token_ids)] or [tokens]
            for way in ways:
                node = root
                for token in way:
                    node = node.children.setdefault(token, _Node((*node.path, token)))
                node.text = choice.text
    return root


def _depth_first(root: _Node) -> Iterator[_Node]:
    """Yield all nodes, each before what is below it."""
    pending = [root]
    while pending:
        node = pending.pop()
        yield node
        pending += reversed(node.children.values())


class ChoiceDecoder(StepDecoder):
    """Scores answers; see the module."""

    def __init__(
        self, model: Decoder, cache: KVCache, ops: Ops, *, max_num_seqs: int, rows: int, rules: GenerationRules
    ) -> None:
        """See `StepDecoder`."""
        super().__init__(model, cache, ops, max_num_seqs=max_num_seqs, rows=rows, rules=rules)
        root = _tree(rules.choices, rules.eos_token_ids)
        nodes = [node for node in _depth_first(root) if node.children]
        columns = {(): 0} | {
            path: at for at, path in enumerate((c.path for n in nodes for c in n.children.values()), 1)
        }
        most, self._steps = max(len(node.children) for node in nodes), len(nodes)
        unused = len(columns)  # the column of children that a node lacks
        lacking = [most - len(node.children) for node in nodes]
        device = model.device

        def table(rows: Sequence[object]) -> Tensor:
            return torch.tensor(rows, dtype=torch.long, device=device)

        self._answers = [(node, columns[node.path]) for node in _depth_first(root) if node.text is not None]
        self._own = table([columns[node.path] for node in nodes])
        """The column of each node's score (nodes,); `_children` likewise those of its children (nodes, most)."""
        self._children = table(
            [[columns[c.path] for c in n.children.values()] + [unused] * k for n, k in zip(nodes, lacking, strict=True)]
        )
        self._child_tokens = table([[*n.children, *[0] * k] for n, k in zip(nodes, lacking, strict=True)])
        following = [*nodes[1:], nodes[-1]]
        self._next_token = table([node.path[-1] if node.path else 0 for node in following])
        self._next_depth = table([max(0, len(node.path) - 1) for node in following]).int()
        self._prompt_end = torch.zeros(self._size, dtype=torch.int32, device=device)
        """Suffix length of each prompt."""
        self._scores = torch.zeros(self._size, unused + 1, device=device)
        """Log-probability of each node, end tokens included."""

    def _chosen(self) -> Sequence[Tensor]:
        """See `StepDecoder`."""
        return (self._scores,)

    def _outputs(self, rows: Sequence[tuple[int, Growing]], chosen: Sequence[np.ndarray]) -> dict[int, Output]:
        """See `StepDecoder`: the answers of sequences that have visited every node."""
        outputs = {}
        for index, growing in rows:
            growing.is_over = growing.read == growing.most_steps
            if growing.is_over:
                scores = chosen[0][index].tolist()
                node, at = max(self._answers, key=lambda answer: scores[answer[1]])
                outputs[index] = Output(node.path, is_complete=True, logprob=scores[at], text=node.text)
        return outputs

    def _most_steps(self, rules: GenerationRules) -> int:  # noqa: ARG002 - as many as the tree has nodes
        """See `StepDecoder`."""
        return self._steps

    def _begin(self, index: Tensor, starts: Sequence[Start]) -> None:
        """See `StepDecoder`."""
        ends = [start.segment.suffix_done + start.segment.length for start in starts]
        self._prompt_end[index] = to_device(torch.tensor(ends, dtype=torch.int32), index.device)
        self._scores.index_fill_(0, index, 0.0)

    def _choose(self, index: Tensor, logits: Tensor) -> None:
        """Score the children of each sequence's node, and go on to the next node."""
        node = self._count[index].clamp(max=self._steps - 1)
        logprobs = logits.gather(1, self._child_tokens[node]) - logits.logsumexp(-1, keepdim=True)  # (rows, most)
        own = self._scores[index, self._own[node]]
        self._scores[index[:, None], self._children[node]] = own[:, None] + logprobs
        self._count[index] = node + 1
        self._token[index] = self._next_token[node]
        # The row of no sequence stays where it is, at slot 0: its limit is 0.
        self._location[3, index] = torch.minimum(self._prompt_end[index] + self._next_depth[node], self._limit[index])


def step_decoder(
    model: Decoder,
    cache: KVCache,
    ops: Ops,
    rules: GenerationRules,
    prompts: PromptBuilder,
    *,
    max_num_seqs: int,
    rows: int,
) -> StepDecoder:
    """Return the decoder that the rules of generation ask for.

    Args:
        model: the text model.
        cache: its keys and values.
        ops: what it computes with.
        rules: of generation.
        prompts: knows the text of tokens.
        max_num_seqs: sequences that there may be at once.
        rows: of a step.

    """
    if rules.choices:
        return ChoiceDecoder(model, cache, ops, max_num_seqs=max_num_seqs, rows=rows, rules=rules)
    has_stop = prompts.has_stop
    return TokenDecoder(model, cache, ops, max_num_seqs=max_num_seqs, rows=rows, rules=rules, has_stop=has_stop)
