"""Errors in the form of the OpenAI API."""

from __future__ import annotations

from idefics_cli.errors import Failure, FailureKind

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
_INVALID = "invalid_request_error"
_STATUS_OF_FAILURE = {FailureKind.MODEL_ERROR: 500, FailureKind.OUT_OF_MEMORY: 503, FailureKind.ENDPOINT: 503}


class ApiError(Exception):
    """A request that is answered with an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        """Take what the client is told.

        Args:
            status: of HTTP.
            message: names what is wrong and the way out.
            param: the field of the body that is wrong.
            code: for programs.
            retry_after: seconds after which the same request may be answered.

        """
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    @property
    def body(self) -> dict[str, object]:
        """The body of the response."""
        kind = _TYPES.get(self.status, _INVALID)
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def error_of(failure: Failure) -> ApiError:
    """Return the error that a request is answered with which failed: what no retry would change is a 400."""
    return ApiError(_STATUS_OF_FAILURE.get(failure.kind, 400), str(failure), code=failure.kind.replace("-", "_"))
