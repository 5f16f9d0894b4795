"""Fetches documents from http(s) addresses, but from public hosts alone, within limits of size and time.

Every host is resolved here, and the connection goes to the address that was checked: a name that resolves otherwise the
second time leads nowhere. Redirects are checked like the first address.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable
from urllib.parse import SplitResult, urljoin, urlsplit

from idefics_cli.errors import FailureKind, RowFailedError
from idefics_cli.records import Document

_LARGEST = 100_000_000  # bytes
_SECONDS = 60.0
_REDIRECTS = 5
_BLOCK = 1 << 16

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: Address) -> bool:
    """Whether an address is one of the open internet: not private, local, link-local or reserved."""
    mapped = getattr(address, "ipv4_mapped", None)
    return is_public(mapped) if mapped is not None else address.is_global and not address.is_multicast


def fetch(url: str, *, is_allowed: Callable[[Address], bool] = is_public, largest: int = _LARGEST) -> Document:
    """Fetch a document.

    Args:
        url: http or https.
        is_allowed: whether an address may be connected to.
        largest: bytes that are taken at most.

    Raises:
        RowFailedError: not reachable, not allowed, too large or too slow.

    """
    deadline = time.monotonic() + _SECONDS
    target = url
    for _ in range(_REDIRECTS + 1):
        try:
            response = _opened(target, is_allowed, deadline)
            with response:
                if response.status in (301, 302, 303, 307, 308):
                    target = urljoin(target, response.headers.get("Location", ""))
                    continue
                if response.status != 200:
                    raise _failure(url, f"the server answers {response.status} {response.reason}")
                return Document(url, data=_body(response, url, largest, deadline))
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _failure(url, str(error) or type(error).__name__) from error
    raise _failure(url, f"more than {_REDIRECTS} redirects")


def _opened(url: str, is_allowed: Callable[[Address], bool], deadline: float) -> http.client.HTTPResponse:
    """Connect to a checked address and ask for the document."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url} is no http(s) address")
    if parts.username is not None:
        raise ValueError("addresses with a name and password are not fetched")
    left = max(0.1, deadline - time.monotonic())
    connection = _Connection(parts, _checked_address(parts, is_allowed), left)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection.request("GET", path, headers={"User-Agent": "idefics-cli", "Connection": "close"})
    return connection.getresponse()


def _checked_address(parts: SplitResult, is_allowed: Callable[[Address], bool]) -> str:
    """Resolve a host; every address that it has must be allowed."""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    found = [str(info[4][0]) for info in socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)]
    for address in found:
        if not is_allowed(ipaddress.ip_address(address.partition("%")[0])):
            raise ValueError(f"{parts.hostname} is at {address}, which is not on the public internet")
    return found[0]


class _Connection(http.client.HTTPConnection):
    """A connection to an address, in the name of a host."""

    def __init__(self, parts: SplitResult, address: str, timeout: float) -> None:
        assert parts.hostname is not None
        self._is_secure, self._address = parts.scheme == "https", address
        super().__init__(parts.hostname, parts.port or (443 if self._is_secure else 80), timeout=timeout)

    def connect(self) -> None:
        """Connect to the checked address, and check the host's certificate."""
        connected = socket.create_connection((self._address, self.port), self.timeout)
        if self._is_secure:
            connected = ssl.create_default_context().wrap_socket(connected, server_hostname=self.host)
        self.sock = connected


def _body(response: http.client.HTTPResponse, url: str, largest: int, deadline: float) -> bytes:
    parts, size = [], 0
    while block := response.read(_BLOCK):
        size += len(block)
        if size > largest:
            raise RowFailedError(FailureKind.TOO_LARGE, f"{url}: more than {largest / 1e6:g} MB")
        if time.monotonic() > deadline:
            raise RowFailedError(FailureKind.TIMED_OUT, f"{url}: not there after {_SECONDS:g} seconds")
        parts.append(block)
    return b"".join(parts)


def _failure(url: str, words: str) -> RowFailedError:
    return RowFailedError(FailureKind.UNREADABLE, f"{url}: {words}")
