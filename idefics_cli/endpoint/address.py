"""Where a server is, and the key that it wants."""

from __future__ import annotations

import ipaddress
import json
import os
import re
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit
from urllib.request import getproxies_environment

from idefics_cli.config import check_text
from idefics_cli.errors import UsageError

KEY_VARIABLES = ("IDEFICS_CLI_API_KEY", "OPENAI_API_KEY")
_PORTS = {"http": 80, "https": 443}
_SHORTEST_SECRET = 8  # characters
_TAILS = ("/chat/completions", "/models")


@dataclass(frozen=True, slots=True)
class Address:
    """A server of the OpenAI form."""

    base: str
    """Up to and with the version, as in `http://127.0.0.1:8000/v1`: no user, no key."""
    key: str | None = field(default=None, repr=False)

    @property
    def completions(self) -> str:
        """Where chat completions are asked for."""
        return f"{self.base}/chat/completions"

    @property
    def models(self) -> str:
        """Where models are listed."""
        return f"{self.base}/models"

    @property
    def exposes_key(self) -> bool:
        """Whether the key would travel unencrypted to another machine."""
        parts = urlsplit(self.base)
        return self.key is not None and parts.scheme == "http" and not _is_local(parts.hostname or "")

    def redacted(self, words: str) -> str:
        """Return words of the server without the key, which some servers repeat, as it is or escaped."""
        if self.key is None:
            return words
        forms = {self.key, json.dumps(self.key)[1:-1], repr(self.key)[1:-1], quote(self.key, safe="")}
        pattern = "|".join(map(re.escape, sorted(forms, key=len, reverse=True)))
        if len(self.key) < _SHORTEST_SECRET:  # such as `x`, for servers that want none: it is a part of other words
            pattern = rf"(?<!\w)(?:{pattern})(?!\w)"
        return re.sub(pattern, "***", words)

    @property
    def proxy_words(self) -> str:
        """What to add to a failed connection: that the environment names a proxy; empty where it names none."""
        scheme = urlsplit(self.base).scheme
        proxies = getproxies_environment()
        name = next((name for name in (scheme, "all") if proxies.get(name)), None)
        return f"; {name.upper()}_PROXY is set: NO_PROXY says which hosts are reached without it" if name else ""


def read_address(url: str, environment: dict[str, str] | os._Environ[str] = os.environ) -> Address:
    """Read an address as a user gives it, with or without a version at its end; the key comes from the environment.

    Raises:
        UsageError: it is none, or the key can't be sent.

    """
    given = url.strip()
    check_text("--endpoint", given)
    try:
        parts = urlsplit(given)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        words = _shown(given) if "@" in given else error  # which may name a part of a password
        raise UsageError(f"--endpoint takes an address such as http://127.0.0.1:8000/v1: {words}") from None
    if parts.scheme.lower() not in _PORTS or not host or re.search(r"[\x00-\x20\x7f]", given):
        raise UsageError(f"--endpoint takes an address such as http://127.0.0.1:8000/v1: not {_shown(given)!r}")
    if parts.username is not None or parts.password is not None:
        raise UsageError(f"--endpoint takes no user in the address: set {KEY_VARIABLES[0]} to the key")
    if parts.query or parts.fragment:
        raise UsageError(f"--endpoint {_shown(given)}: leave out what stands from ? or # on")
    scheme = parts.scheme.lower()
    path = parts.path.rstrip("/")
    for tail in _TAILS:
        path = path.removesuffix(tail)
    if not any(re.fullmatch(r"v[0-9]\w*", part) for part in path.split("/")):
        path += "/v1"
    shown_host = f"[{host}]" if ":" in host else host
    shown_port = "" if port is None or port == _PORTS[scheme] else f":{port}"
    return Address(f"{scheme}://{shown_host}{shown_port}{path}", _key(environment))


def _key(environment: dict[str, str] | os._Environ[str]) -> str | None:
    for name in KEY_VARIABLES:
        if key := environment.get(name, "").strip():
            if not re.fullmatch(r"[\x21-\x7e]+", key):
                raise UsageError(f"{name} holds characters that no header takes")
            return key
    return None


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _shown(url: str) -> str:
    """Return an address for messages: without what may hold a key or a password, wherever it stands."""
    if "@" in url:
        return f"{scheme[0]}***" if (scheme := re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", url)) else "***"
    return re.split(r"[?#]", url)[0][:200]
