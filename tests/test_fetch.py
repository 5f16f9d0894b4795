from __future__ import annotations

import ipaddress
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from idefics_cli.documents.fetch import Address, fetch, is_public
from idefics_cli.errors import Failure, FailureKind, RowFailedError


class Pages(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        name = self.path.partition("?")[0].lstrip("/")
        moves = {
            "loop": "/loop", "moved": "/page?x=1", "away": "http://169.254.169.254/secret", "file": "file:///etc/passwd"
        }  # fmt: skip
        if name in moves:
            self._answer(302, b"", Location=moves[name])
        elif name.startswith("page") or "%20" in name:
            self._answer(200, self.path.encode())
        elif name == "large":
            self._answer(200, b"x" * 5000)
        elif name == "short":
            self._answer(200, b"x" * 50, **{"Content-Length": "5000"})
        elif name == "bare":
            self._answer(200, b"", **{"Content-Length": "0"})
        elif name == "drip":
            self._answer(200, b"", **{"Content-Length": "5000"})
            self._drip(b"x" * 5000)
        elif name == "drip-headers":
            self.wfile.write(b"HTTP/1.0 200 OK\r\n")
            self._drip(b"X-Slow: " + b"x" * 5000)
        elif name.isdecimal():
            self._answer(int(name), b"")
        else:
            self._answer(404, b"")

    def _drip(self, data: bytes) -> None:
        try:
            for byte in data:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.05)
        except OSError:
            pass

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as made:
        made.daemon_threads = True
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_port}"
        made.shutdown()


def here(address: Address) -> bool:
    return address.is_loopback


@pytest.fixture
def target(tmp_path: Path) -> str:
    return str(tmp_path / "fetched")


def failure(url: str, path: str, **options: object) -> Failure:
    with pytest.raises(RowFailedError) as caught:
        fetch(url, path, **options)  # type: ignore[arg-type]
    return caught.value.failure


def test_a_document_is_fetched_through_redirects(server: str, target: str) -> None:
    fetch(f"{server}/moved", target, is_allowed=here)
    assert Path(target).read_bytes() == b"/page?x=1"
    fetch(f"{server}/a b é?x=1%2F2", target, is_allowed=here)
    assert Path(target).read_bytes() == b"/a%20b%20%C3%A9?x=1%2F2"


def test_private_addresses_are_refused_first_or_later(server: str, target: str) -> None:
    refused = failure(f"{server}/page", target)
    assert "not on the public internet" in refused.detail
    assert not refused.kind.is_transient
    away = failure(f"{server}/away", target, is_allowed=here)
    assert "169.254.169.254, which is not on the public internet" in away.detail
    assert "no http(s) address" in failure(f"{server}/file", target, is_allowed=here).detail
    assert "name and password" in failure("http://a:b@127.0.0.1/", target, is_allowed=here).detail
    assert failure("http://127.0.0.1:99999/", target).kind is FailureKind.UNREADABLE
    assert failure(f"http://{'x' * 70}.example/", target).kind is FailureKind.UNREADABLE


@pytest.mark.parametrize(
    "address",
    ["10.1.2.3", "192.168.0.1", "127.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "100.64.0.1", "255.255.255.255",
     "::1", "::", "fe80::1", "fc00::1", "fec0::1", "ff02::1", "::ffff:10.0.0.1", "::10.0.0.1", "64:ff9b::10.0.0.1",
     "64:ff9b::169.254.169.254", "64:ff9b:1::10.0.0.1", "2002:a00:1::1", "2002:a9fe:a9fe::1", "2001:db8::1"],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1"]
)
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


def test_answers_that_are_no_document(server: str, target: str) -> None:
    assert failure(f"{server}/large", target, is_allowed=here, largest=1000).kind is FailureKind.TOO_LARGE
    gone = failure(f"{server}/gone", target, is_allowed=here)
    assert gone.kind is FailureKind.UNREADABLE
    assert "404" in gone.detail
    assert "redirects" in failure(f"{server}/loop", target, is_allowed=here).detail


@pytest.mark.parametrize("name", ["500", "503", "429", "short", "bare"])
def test_what_another_time_may_be_better_is_transient(server: str, target: str, name: str) -> None:
    found = failure(f"{server}/{name}", target, is_allowed=here)
    assert found.kind is FailureKind.UNREACHABLE
    assert found.kind.is_transient


def test_a_body_shorter_than_it_was_said_to_be_is_not_taken_as_whole(server: str, target: str) -> None:
    assert "50 of 5000 bytes" in failure(f"{server}/short", target, is_allowed=here).detail


def test_hosts_that_do_not_answer_are_unreachable(target: str) -> None:
    assert failure("http://127.0.0.1:9/", target, is_allowed=here).kind is FailureKind.UNREACHABLE
    assert failure("http://nowhere.invalid/", target).kind is FailureKind.UNREACHABLE


@pytest.mark.parametrize("name", ["drip", "drip-headers"])
def test_a_byte_at_a_time_does_not_outlast_the_limit(server: str, target: str, name: str) -> None:
    started = time.monotonic()
    found = failure(f"{server}/{name}", target, is_allowed=here, seconds=0.5)
    assert found.kind is FailureKind.TIMED_OUT
    assert "0.5 seconds" in found.detail
    assert time.monotonic() - started < 3
