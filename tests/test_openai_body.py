"""Bodies are parsed as JSON says, with their data URIs aside."""

from __future__ import annotations

import json

import pytest

from idefics_cli.openai_api.body import parse_body
from idefics_cli.openai_api.errors import ApiError

URI = "data:image/png;base64,AAAA"


def put_back(value: object, uris: dict[str, str]) -> object:
    if isinstance(value, dict):
        return {key: put_back(one, uris) for key, one in value.items()}
    if isinstance(value, list):
        return [put_back(one, uris) for one in value]
    return uris.get(value, value) if isinstance(value, str) else value


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("value", [
    {"image_url": {"url": URI}}, {"image_url": URI}, {"file": {"file_data": URI, "filename": "data:"}}, {"a": [{"url": URI}, {"url": "data:,1"}]},
    {"text": URI}, {"text": f'"url": "{URI}"'}, {"text": f'\\"url": "{URI}'}, {"url": f'{URI}"\\'}, {"url": "data:\n\\", "text": '"data:'},
    {"url": ["data:x"]}, {"url": {"url": "http://x"}}, {"url": "DATA:x"}, {"url": "data:,\u00e9"}, {"\u00e9": "\u4e2d", "url": URI}, URI, [], {},
], ids=str)  # fmt: skip
def test_a_body_is_what_json_makes_of_it(value: object, indent: int | None) -> None:
    for escaped in (True, False):
        written = json.dumps(value, indent=indent, ensure_ascii=escaped).encode()
        for body in (written, bytearray(written)):
            parsed, uris = parse_body(body)
            assert put_back(parsed, {name: str(uri, "utf-8") for name, uri in uris.items()}) == value
    assert json.loads(json.dumps(value).encode("utf-16")) == parse_body(json.dumps(value).encode("utf-16"))[0]


def test_data_uris_are_not_copied_and_texts_stay() -> None:
    body = json.dumps([{"url": URI}, {"text": URI}, {"file_data": f"{URI}AAAA"}]).encode()
    parsed, uris = parse_body(body)
    assert parsed == [{"url": "data:,0"}, {"text": URI}, {"file_data": "data:,1"}]
    assert [(bytes(uri), uri.obj is body) for uri in uris.values()] == [
        (URI.encode(), True),
        (f"{URI}AAAA".encode(), True),
    ]


@pytest.mark.parametrize("body", [b"", b"{", b'{"url": "data:x', b'{"url": "data:x"', b'{"url": "data:x"} y', b"[" * 100_000, b"\xff\xfe", b'{"url": "data:x", "a": "\xff"}'])  # fmt: skip
def test_what_is_not_json_is_refused_as_json_says(body: bytes) -> None:
    with pytest.raises((ValueError, RecursionError)) as wanted:
        json.loads(body)
    with pytest.raises(ApiError) as caught:
        parse_body(body)
    assert caught.value.status == 400
    assert str(wanted.value) in str(caught.value)
