"""One HTTP request, and what came of it."""

from __future__ import annotations

import asyncio
import html
import json
import re
import ssl
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from idefics_cli.endpoint.address import Address
from idefics_cli.endpoint.concurrency import Outcome
from idefics_cli.endpoint.errors import RefusedError, TransientError
from idefics_cli.endpoint.retry import retry_after
from idefics_cli.errors import ModelError, first_line, one_line, shortened

if TYPE_CHECKING:
    import httpx2

_CONNECT_SECONDS = 10.0
_LIST_SECONDS = 30.0
_MOST_BYTES = 64_000_000
_SHOWN = 300
_READ = 100_000  # bytes of a body of another form that are looked at
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
        self._address, self._timeout = address, timeout
        self._client = _connections(address, timeout, most_requests)

    async def complete(self, body: Mapping[str, object]) -> object:
        """Send the body of a request and return that of its answer, parsed from JSON.

        Raises:
            TransientError: it may pass another time.
            RefusedError: it can't.
            ModelError: the connection can't be made secure, or the address is none.

        """
        return await self._send("POST", self._address.completions, json.dumps(body).encode())

    async def models(self) -> list[str]:
        """Return the names of the models that the server has; without those that could not be shown.

        Raises:
            TransientError: as `complete`.
            RefusedError: it does not list them.
            ModelError: as `complete`.

        """
        listed = await self._send("GET", self._address.models)
        entries = listed.get("data") if isinstance(listed, dict) else None
        if not isinstance(entries, list):
            raise RefusedError("its list of models has no data")
        names = [entry.get("id") for entry in entries if isinstance(entry, dict)]
        return [name for name in names if isinstance(name, str) and name.isprintable() and 0 < len(name) <= _SHOWN]

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _send(self, method: str, url: str, content: bytes | None = None) -> object:
        import httpx2

        try:
            async with (
                asyncio.timeout(self._timeout),
                self._client.stream(method, url, content=content) as response,
            ):
                data = await _read(response)
        except (TimeoutError, httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError, ExceptionGroup) as error:
            flag = "" if content is None else " (--endpoint-timeout)"  # lists have a limit of their own
            raise _of_connection(error, self._address, self._timeout, flag) from error
        return _checked(response, data, self._address)


def list_models(address: Address, seconds: float = _LIST_SECONDS) -> list[str]:
    """Return the names of the models that a server has; an interrupt ends the wait at once.

    Args:
        address: of the server.
        seconds: that it may take from the connection to the last byte.

    Raises:
        TransientError: as `Client.models`.
        RefusedError: as `Client.models`.
        ModelError: as `Client.models`.

    """

    async def ask() -> list[str]:
        client = Client(address, seconds, 1)
        try:
            return await client.models()
        finally:
            await client.close()

    def run() -> None:
        try:
            listed.set_result(asyncio.run(ask()))
        except BaseException as error:
            listed.set_exception(error)

    listed: Future[list[str]] = Future()
    # a thread of its own: the caller's may have an event loop, as in a notebook
    threading.Thread(target=run, name="models", daemon=True).start()
    return listed.result()


def _connections(address: Address, timeout: float, most_requests: int) -> httpx2.AsyncClient:
    import httpx2

    try:
        return httpx2.AsyncClient(
            headers=_headers(address),
            timeout=httpx2.Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS), pool=None),
            limits=httpx2.Limits(max_connections=most_requests, max_keepalive_connections=most_requests),
            follow_redirects=False,
        )
    except ImportError as error:
        words = "the SOCKS proxy of the environment needs socksio: pip install socksio, or set NO_PROXY"
        raise ModelError(f"{address.base}: {words}") from error
    except (ValueError, OSError, httpx2.InvalidURL) as error:
        words = "the proxy (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY) or certificates (SSL_CERT_FILE) of the environment"
        raise ModelError(f"{address.base}: {words} can't be used: {first_line(error)}") from error


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


def _of_connection(error: Exception, address: Address, timeout: float, flag: str) -> Exception:
    """Return what an error of the connection is for the caller: TransientError, or ModelError if it stays so."""
    import httpx2

    if isinstance(error, httpx2.ConnectTimeout):
        words = f"no connection within {min(timeout, _CONNECT_SECONDS):g} s{address.proxy_words}"
        return TransientError(words, is_of_server=True)
    if isinstance(error, TimeoutError | httpx2.TimeoutException):
        words = f"no answer within {timeout:g} s{flag}"
        return TransientError(words, outcome=Outcome.OVERLOADED, cost=_COSTLY)
    if isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    words = address.redacted(_one_line(first_line(error)))
    if _is_of_certificate(error):
        return ModelError(f"{address.base}: its certificate is not trusted: {words}")
    if "WRONG_VERSION_NUMBER" in words:
        return ModelError(f"{address.base}: no TLS is spoken there; is its address http://... ?{address.proxy_words}")
    of_request = httpx2.InvalidURL | httpx2.UnsupportedProtocol | httpx2.LocalProtocolError
    if isinstance(error, of_request | ValueError | OverflowError):  # such as the port of a proxy
        return ModelError(f"{address.base}: {words}")
    is_unconnected = isinstance(error, httpx2.ConnectError | httpx2.ProxyError)
    words = f"connection failed: {words}{address.proxy_words if is_unconnected else ''}"
    return TransientError(words, is_of_server=is_unconnected)


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
            words = _one_line(address.redacted(data[:_READ].decode("utf-8", "replace")))
            raise TransientError(f"its answer is no JSON: {words or 'empty'}", status=status) from error
    refused = _error_of(status, data, address)
    if 300 <= status < 400:
        place = _one_line(address.redacted(response.headers.get("location", "")))
        words = f"it is to be asked at {place}" if place else "a redirect without an address"
        raise RefusedError(f"HTTP {status}: {words}", status=status)
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
        # without the key before tags go and entities are read, which may be a part of it, and once more below
        text = address.redacted(data[:_READ].decode("utf-8", "replace"))
        words = html.unescape(re.sub(r"<[^>]*>", " ", text))
    code, param = (fields.get(name) for name in ("code", "param"))
    shown = _one_line(address.redacted(words if isinstance(words, str) else json.dumps(words)))
    return RefusedError(
        f"HTTP {status}" + (f": {shown}" if shown else ""),
        status=status,
        code=code if isinstance(code, str) else "",
        param=param if isinstance(param, str) else "",
    )


def _one_line(text: str) -> str:
    return shortened(one_line(text).encode("utf-8", "replace").decode(), _SHOWN)
