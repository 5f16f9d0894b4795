from __future__ import annotations

import ipaddress
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from idefics_cli.documents.fetch import Address, fetch, is_public
from idefics_cli.errors import FailureKind, RowFailedError


class Pages(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path.startswith("/loop"):
            self._redirect("/loop")
        elif self.path == "/moved":
            self._redirect("/page?x=1")
        elif self.path == "/away":
            self._redirect("http://169.254.169.254/secret")
        elif self.path == "/file":
            self._redirect("file:///etc/passwd")
        elif self.path.startswith("/page"):
            self._answer(200, self.path.encode())
        elif self.path == "/large":
            self._answer(200, b"x" * 5000)
        else:
            self._answer(404, b"")

    def _redirect(self, target: str) -> None:
        self.send_response(302)
        self.send_header("Location", target)
        self.end_headers()

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_port}"
        made.shutdown()


def here(address: Address) -> bool:
    return address.is_loopback


def failure(url: str, **options: object) -> RowFailedError:
    with pytest.raises(RowFailedError) as caught:
        fetch(url, **options)  # type: ignore[arg-type]
    return caught.value


def test_a_document_is_fetched_through_redirects(server: str) -> None:
    document = fetch(f"{server}/moved", is_allowed=here)
    assert (document.name, document.data, document.path) == (f"{server}/moved", b"/page?x=1", None)


def test_private_addresses_are_refused_first_or_later(server: str) -> None:
    assert "not on the public internet" in failure(f"{server}/page").words
    assert "169.254.169.254, which is not on the public internet" in failure(f"{server}/away", is_allowed=here).words
    assert "no http(s) address" in failure(f"{server}/file", is_allowed=here).words
    assert "name and password" in failure("http://a:b@127.0.0.1/", is_allowed=here).words
    for address in ("10.1.2.3", "192.168.0.1", "127.0.0.1", "169.254.169.254", "::1", "fe80::1", "::ffff:10.0.0.1", "0.0.0.0", "224.0.0.1", "100.64.0.1"):  # fmt: skip
        assert not is_public(ipaddress.ip_address(address)), address
    for address in ("8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"):
        assert is_public(ipaddress.ip_address(address)), address


def test_limits_and_answers_that_are_no_document(server: str) -> None:
    assert failure(f"{server}/large", is_allowed=here, largest=1000).kind is FailureKind.TOO_LARGE
    assert "404" in failure(f"{server}/gone", is_allowed=here).words
    assert "redirects" in failure(f"{server}/loop", is_allowed=here).words
    assert failure("http://127.0.0.1:9/", is_allowed=here).kind is FailureKind.UNREADABLE
