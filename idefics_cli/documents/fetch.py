"""Fetches documents from http(s) addresses, but only from public hosts, within limits of size and time.

Every host is resolved here, and the connection goes to the address that was checked: a name that resolves otherwise the
second time leads nowhere. Redirects are checked like the first address.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from idefics_cli.errors import FailureKind, RowFailedError

_LARGEST = 100_000_000  # bytes
_SECONDS = 60.0
_REDIRECTS = 5
_BLOCK = 1 << 16
_AGAIN_LATER = (408, 425, 429)  # the answers below 500 that another time may be others
_KEPT = "%/:=&?~#+!$,;'@()*[]"  # what stands in an address for something, and is not to be quoted
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_LOCAL_NAT64 = ipaddress.ip_network("64:ff9b:1::/48")
_V4_COMPATIBLE = ipaddress.ip_network("::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: Address) -> bool:
    """Whether an address is one of the open internet: not private, local, link-local or reserved.

    An IPv6 address that stands for an IPv4 one is judged by that too.
    """
    if isinstance(address, ipaddress.IPv6Address):
        embedded = address.ipv4_mapped or address.sixtofour
        if embedded is None and (address in _NAT64 or address in _V4_COMPATIBLE):
            embedded = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if embedded is not None:
            return is_public(embedded)
        if address.is_site_local or address in _LOCAL_NAT64:
            return False
    return address.is_global and not address.is_multicast


def fetch(
    url: str,
    path: str,
    *,
    is_allowed: Callable[[Address], bool] = is_public,
    largest: int = _LARGEST,
    seconds: float = _SECONDS,
) -> None:
    """Fetch a document into a file.

    Args:
        url: http or https.
        path: the file, which is replaced.
        is_allowed: whether an address may be connected to.
        largest: bytes that are taken at most.
        seconds: after which it is given up, however much has come; resolving a name is not counted.

    Raises:
        RowFailedError: not reachable, not allowed, too large or too slow.

    """
    deadline = time.monotonic() + seconds
    try:
        _follow(url, path, is_allowed, largest, deadline)
    except http.client.InvalidURL as error:
        raise RowFailedError(FailureKind.UNREADABLE, f"{url!r}: {error}") from error
    except (OSError, http.client.HTTPException) as error:
        if time.monotonic() >= deadline:
            detail = f"{url}: not there after {seconds:g} seconds"
            raise RowFailedError(FailureKind.TIMED_OUT, detail) from error
        raise RowFailedError(FailureKind.UNREACHABLE, f"{url}: {error or type(error).__name__}") from error
    except ValueError as error:  # of what is no address, or not an allowed one
        raise RowFailedError(FailureKind.UNREADABLE, f"{url}: {error}") from error


def _follow(url: str, path: str, is_allowed: Callable[[Address], bool], largest: int, deadline: float) -> None:
    target = url
    for _ in range(_REDIRECTS + 1):
        with _opened(target, is_allowed, deadline) as response:
            if response.status in (301, 302, 303, 307, 308):
                target = urljoin(target, response.headers.get("Location", ""))
                continue
            if response.status != 200:
                is_lasting = response.status < 500 and response.status not in _AGAIN_LATER
                kind = FailureKind.UNREADABLE if is_lasting else FailureKind.UNREACHABLE
                raise RowFailedError(kind, f"{url}: the server answers {response.status} {response.reason}")
            _save(response, url, path, largest)
            if time.monotonic() >= deadline:
                raise TimeoutError
            return
    raise ValueError(f"more than {_REDIRECTS} redirects")


@contextlib.contextmanager
def _opened(url: str, is_allowed: Callable[[Address], bool], deadline: float) -> Iterator[http.client.HTTPResponse]:
    """Connect to a checked address and ask for the document; the connection is cut at the deadline."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url} is no http(s) address")
    if parts.username is not None:
        raise ValueError("addresses with a name and password are not fetched")
    connection = _Connection(parts, _checked_address(parts, is_allowed), deadline)
    try:
        path = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=_KEPT)
        connection.request("GET", path, headers={"User-Agent": "idefics-cli", "Connection": "close"})
        with connection.getresponse() as response:
            yield response
    finally:
        connection.close()
        connection.forget_deadline()


def _checked_address(parts: SplitResult, is_allowed: Callable[[Address], bool]) -> str:
    """Resolve a host; every address that it has must be allowed."""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        resolved = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise ValueError(f"{parts.hostname!r} is no name of a host") from error
    found = [str(info[4][0]) for info in resolved]
    for address in found:
        if not is_allowed(ipaddress.ip_address(address.partition("%")[0])):
            raise ValueError(f"{parts.hostname} is at {address}, which is not on the public internet")
    return found[0]


class _Connection(http.client.HTTPConnection):
    """A connection to an address, in the name of a host, that is cut at a deadline.

    A time limit of the socket would hold for each of its reads: a byte a second never reaches it.
    """

    def __init__(self, parts: SplitResult, address: str, deadline: float) -> None:
        assert parts.hostname is not None
        self._is_secure, self._address, self._deadline = parts.scheme == "https", address, deadline
        self._cut: threading.Timer | None = None
        self._copy: socket.socket | None = None
        super().__init__(parts.hostname, parts.port or (443 if self._is_secure else 80))

    def connect(self) -> None:
        """Connect to the checked address, and check the host's certificate."""
        left = max(0.1, self._deadline - time.monotonic())
        connected = socket.create_connection((self._address, self.port), left)
        # Of a copy of the descriptor: what wraps the socket later must not be touched from another thread.
        self._copy = connected.dup()
        self._cut = threading.Timer(max(0.0, self._deadline - time.monotonic()), _shut_down, (self._copy,))
        self._cut.daemon = True
        self._cut.start()
        self.sock = connected
        if self._is_secure:
            self.sock = ssl.create_default_context().wrap_socket(connected, server_hostname=self.host)

    def forget_deadline(self) -> None:
        """Call when the answer has been read; `close` comes before that where the server does not keep connections."""
        if self._cut is not None and self._copy is not None:
            self._cut.cancel()
            self._copy.close()


def _shut_down(connected: socket.socket) -> None:
    with contextlib.suppress(OSError), connected:
        connected.shutdown(socket.SHUT_RDWR)


def _save(response: http.client.HTTPResponse, url: str, path: str, largest: int) -> None:
    size = 0
    with Path(path).open("wb") as stream:
        while block := response.read(_BLOCK):
            size += len(block)
            if size > largest:
                raise RowFailedError(FailureKind.TOO_LARGE, f"{url}: more than {largest / 1e6:g} MB")
            stream.write(block)
    if size == 0:
        raise ConnectionError("the server answers without a document")
    if response.length:  # of Content-Length: what has not come
        raise ConnectionError(f"the connection ended after {size} of {size + response.length} bytes")
