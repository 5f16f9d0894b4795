"""One HTTP request, and what came of it."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from idefics_cli.endpoint.address import Address
from idefics_cli.endpoint.concurrency import Outcome
from idefics_cli.endpoint.errors import RefusedError, TransientError
from idefics_cli.endpoint.retry import retry_after
from idefics_cli.errors import ModelError, first_line

if TYPE_CHECKING:
    import httpx2

_CONNECT_SECONDS = 10.0
_LIST_SECONDS = 30.0
_MOST_BYTES = 64_000_000
_SHOWN = 300
_TRANSIENT = frozenset((408, 409, 425))
_BUSY = frozenset((429, 503, 529))
_GATEWAY = frozenset((502, 504, 520, 521, 522, 523, 524))
_COSTLY = 3.0  # of a request that took all its time, or had an answer without end: three are enough
_RATE_LIMIT_COST = 0.1  # 429 says nothing about the request


class Client:
    """Sends chat completions; for one event loop."""

    def __init__(self, address: Address, timeout: float, most_requests: int) -> None:
        """Make a client; nothing is sent yet.

        Args:
            address: of the server.
            timeout: seconds that one request may take.
            most_requests: connections that are kept.

        """
        import httpx2

        self._address, self._timeout = address, timeout
        self._client = httpx2.AsyncClient(
            headers=_headers(address),
            timeout=httpx2.Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS), pool=None),
            limits=httpx2.Limits(max_connections=most_requests, max_keepalive_connections=most_requests),
            follow_redirects=False,
        )

    async def complete(self, body: Mapping[str, object]) -> object:
        """Send the body of a request and return that of its answer, parsed from JSON.

        Raises:
            TransientError: it may pass another time.
            RefusedError: it can't.
            ModelError: the connection can't be made secure, or the address is none.

        """
        import httpx2

        content = json.dumps(body).encode()
        try:
            async with (
                asyncio.timeout(self._timeout),
                self._client.stream("POST", self._address.completions, content=content) as response,
            ):
                data = await _read(response)
        except (TimeoutError, httpx2.TimeoutException, httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            raise _of_connection(error, self._address, self._timeout) from error
        return _checked(response, data, self._address)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def list_models(address: Address) -> list[str]:
    """Return the names of the models that a server has.

    Raises:
        TransientError: it can't be reached, or is busy.
        RefusedError: it does not list them.
        ModelError: as `Client.complete`.

    """
    import httpx2

    try:
        with httpx2.Client(headers=_headers(address), timeout=_LIST_SECONDS, follow_redirects=False) as client:
            response = client.get(address.models)
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        raise _of_connection(error, address, _LIST_SECONDS) from error
    listed = _checked(response, response.content, address)
    entries = listed.get("data") if isinstance(listed, dict) else None
    if not isinstance(entries, list):
        raise RefusedError("its list of models has no data", status=response.status_code)
    names = [entry.get("id") for entry in entries if isinstance(entry, dict)]
    return [name for name in names if isinstance(name, str) and name]


async def _read(response: httpx2.Response) -> bytes:
    data = bytearray()
    async for piece in response.aiter_bytes():
        data += piece
        if len(data) > _MOST_BYTES:
            raise TransientError(f"its answer is larger than {_MOST_BYTES // 10**6} MB", cost=_COSTLY)
    return bytes(data)


def _headers(address: Address) -> dict[str, str]:
    headers = {"content-type": "application/json", "accept": "application/json"}
    return headers | ({"authorization": f"Bearer {address.key}"} if address.key else {})


def _of_connection(error: Exception, address: Address, timeout: float) -> Exception:
    """Return what an error of the connection is for the caller: TransientError, or ModelError if it stays so."""
    import httpx2

    if isinstance(error, httpx2.ConnectTimeout):
        return TransientError(f"no connection within {min(timeout, _CONNECT_SECONDS):g} s", is_of_server=True)
    if isinstance(error, TimeoutError | httpx2.TimeoutException):
        words = f"no answer within {timeout:g} s (--endpoint-timeout)"
        return TransientError(words, outcome=Outcome.OVERLOADED, cost=_COSTLY)
    words = address.redacted(_one_line(first_line(error)))
    if _is_of_certificate(error):
        return ModelError(f"{address.base}: its certificate is not trusted: {words}")
    if isinstance(error, httpx2.InvalidURL | httpx2.UnsupportedProtocol | httpx2.LocalProtocolError):
        return ModelError(f"{address.base}: {words}")
    is_unconnected = isinstance(error, httpx2.ConnectError | httpx2.ProxyError)
    return TransientError(f"connection failed: {words}", is_of_server=is_unconnected)


def _is_of_certificate(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _checked(response: httpx2.Response, data: bytes, address: Address) -> object:
    """Return the body of a response of success; raises TransientError or RefusedError for others."""
    status = response.status_code
    if 200 <= status < 300:
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            words = address.redacted(_one_line(data[:_SHOWN].decode("utf-8", "replace")))
            raise TransientError(f"its answer is no JSON: {words or 'empty'}", status=status) from error
    refused = _error_of(status, data, address)
    if 300 <= status < 400:
        place = _one_line(address.redacted(response.headers.get("location", "")))
        raise RefusedError(f"HTTP {status}: it is to be asked at {place or 'another address'}", status=status)
    if status in _BUSY or status in _GATEWAY or status in _TRANSIENT or (status >= 500 and status != 501):
        raise TransientError(
            refused.words,
            status=status,
            code=refused.code,
            outcome=Outcome.OVERLOADED if status in _BUSY else Outcome.FAILED,
            cost=_RATE_LIMIT_COST if status == 429 else 1.0,
            # out_of_memory: our own server says so of one request
            is_of_server=(status in _BUSY or status in _GATEWAY) and refused.code != "out_of_memory",
            retry_after=retry_after(response.headers, time.time()),
        )
    raise refused


def _error_of(status: int, data: bytes, address: Address) -> RefusedError:
    """Read the body of an error, in the OpenAI form or another, into words, code and field."""
    try:
        body: Any = json.loads(data)
    except (ValueError, RecursionError):
        body = None
    error = body.get("error", body) if isinstance(body, dict) else None
    fields: Mapping[str, Any] = error if isinstance(error, dict) else {}
    words = error if isinstance(error, str) else fields.get("message") or fields.get("detail")
    if words is None:
        words = re.sub(r"<[^>]*>", " ", data[: 4 * _SHOWN].decode("utf-8", "replace"))
    code, param = (fields.get(name) for name in ("code", "param"))
    shown = _one_line(address.redacted(words if isinstance(words, str) else json.dumps(words)))
    return RefusedError(
        f"HTTP {status}" + (f": {shown}" if shown else ""),
        status=status,
        code=code if isinstance(code, str) else "",
        param=param if isinstance(param, str) else "",
    )


def _one_line(text: str) -> str:
    text = " ".join(text.split()).encode("utf-8", "replace").decode()
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
