"""Parses the body of a request; its data URIs, which are nearly all of it, stay the bytes that came."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from idefics_cli.openai_api.errors import ApiError

_DATA = b'"data:'
_KEY = re.compile(rb'"(?:url|image_url|file_data)"[ \t\r\n]*:[ \t\r\n]*\Z')  # of what may be a data URI
_KEY_LENGTH = 40


def parse_body(body: bytes | bytearray) -> tuple[object, Mapping[str, memoryview]]:
    """Return the object that a body holds, with a short name in the place of each data URI, and these by their names.

    `json.loads` would go through a page's 900,000 characters one by one and copy them, while no other thread runs. A
    data URI ends at the next quote, since base64 has no escapes; one that has some is left in its place.

    Raises:
        ApiError: it is not JSON (400).

    """
    whole, rest = memoryview(body), bytearray()
    uris: dict[str, memoryview] = {}
    copied = 0
    quote = body.find(_DATA)
    while quote >= 0 and (end := body.find(b'"', quote + 1)) >= 0:
        start = quote + 1
        if _KEY.search(body[max(0, quote - _KEY_LENGTH) : quote]) and body.find(b"\\", start, end) < 0:
            name = f"data:,{len(uris)}"
            uris[name] = whole[start:end]
            rest += whole[copied:start]
            rest += name.encode()
            copied = end
        quote = body.find(_DATA, end)
    try:
        return json.loads(rest + whole[copied:] if uris else body), uris
    except (ValueError, RecursionError):
        pass
    try:
        return json.loads(body), {}  # says where the whole body is wrong
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}") from error
