"""What can come of one HTTP request other than an answer."""

from __future__ import annotations

from idefics_cli.endpoint.concurrency import Outcome


class RequestError(Exception):
    """A request without an answer."""

    def __init__(self, words: str, *, status: int | None = None, code: str = "", param: str = "") -> None:
        """Take what is said of it.

        Args:
            words: of the server, or about the connection.
            status: of HTTP; None where nothing came.
            code: the error's code in the OpenAI form; empty where there is none.
            param: the field that it names, likewise.

        """
        super().__init__(words)
        self.words, self.status, self.code, self.param = words, status, code, param


class TransientError(RequestError):
    """A request that may pass another time."""

    def __init__(
        self,
        words: str,
        *,
        status: int | None = None,
        code: str = "",
        outcome: Outcome = Outcome.FAILED,
        cost: float = 1.0,
        is_of_server: bool = False,
        retry_after: float | None = None,
    ) -> None:
        """Take how it is dealt with.

        Args:
            words: as above.
            status: as above.
            code: as above.
            outcome: what it says of the number of requests.
            cost: of the request's budget of failures.
            is_of_server: whether it says that the server is not there or busy, and nothing about this request.
            retry_after: seconds that the server wants to be left alone.

        """
        super().__init__(words, status=status, code=code)
        self.outcome, self.cost, self.is_of_server, self.retry_after = outcome, cost, is_of_server, retry_after


class RefusedError(RequestError):
    """A request that can't pass as it is."""

    @property
    def concerns_all(self) -> bool:
        """Whether it says that no request of this run can pass: a wrong key, no such model or path."""
        return self.status in (401, 402, 403, 404, 405, 407) or self.is_misdirected

    @property
    def is_misdirected(self) -> bool:
        """Whether the server sends its clients to another address."""
        return self.status is not None and 300 <= self.status < 400
