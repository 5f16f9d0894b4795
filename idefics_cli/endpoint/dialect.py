"""How servers of the form differ in what they take, learned from what they refuse."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from idefics_cli.endpoint.errors import RefusedError

_NEW_NAME = "max_completion_tokens"
_BAD_REQUEST = (400, 422)


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a request holds that not every server takes."""

    tokens_field: str = "max_tokens"
    """The name of the longest answer; newer servers want another."""
    logprobs: bool = True
    """Whether log-probabilities are asked for."""

    def after(self, error: RefusedError) -> Dialect | None:
        """Return what to try once a request was refused; None where the error names nothing that can be changed."""
        if error.status not in _BAD_REQUEST:
            return None
        named = f"{error.param} {error.words}"
        if self.tokens_field != _NEW_NAME and (_NEW_NAME in named or error.param == self.tokens_field):
            return dataclasses.replace(self, tokens_field=_NEW_NAME)
        if self.logprobs and "logprobs" in named:
            return dataclasses.replace(self, logprobs=False)
        return None
