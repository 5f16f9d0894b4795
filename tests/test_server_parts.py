"""What a server holds: documents by content, bodies within their room, pages prepared from bodies; and its settings."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from idefics_cli.config import ClientSettings, Duration, ModelSettings, PageSettings, RunSettings, ServeSettings, Split
from idefics_cli.documents.pool import PagePool
from idefics_cli.errors import RowFailedError, UsageError
from idefics_cli.local_socket.background import serve_arguments
from idefics_cli.openai_api.errors import ApiError
from idefics_cli.server.admission import Admission
from idefics_cli.server.chat import ChatPreparer, kept_page_bytes
from idefics_cli.server.documents import DocumentStore
from tests.fakes import FakeEngine
from tests.servers import asking, data_uri, image


def uri(data: bytes) -> str:
    return f"data:application/octet-stream;base64,{base64.b64encode(data).decode()}"


def test_each_content_is_one_file_and_the_least_recently_used_goes_first() -> None:
    store = DocumentStore(100)
    with store.stored([uri(b"a" * 60), uri(b"a" * 60), "https://example.org/x.png"]) as (first, same, address):
        assert first == same
        assert Path(first.path or "").read_bytes() == b"a" * 60
        assert (address.path, address.url) == (None, "https://example.org/x.png")
        with store.stored([uri(b"b" * 60)]) as (other,):
            assert Path(first.path or "").exists()  # in use, though there is no room
            assert Path(other.path or "").exists()
        assert not Path(other.path or "").exists()  # the only one that nobody uses
    with store.stored([uri(b"b" * 60)]) as (again,):
        assert again.path != other.path  # a name of its own each time
    assert not Path(first.path or "").exists()
    assert Path(again.path or "").exists()
    spaced = uri(b"b" * 60).replace("Yg", "Y g")  # another text of the same content
    with store.stored([spaced, uri(b"b" * 60), spaced]) as same_again:
        assert {document.path for document in same_again} == {again.path}
    with store.stored([uri(b"c" * 200)]), store.stored([spaced]):
        pass  # neither has room any more
    with store.stored([spaced]) as (anew,):
        assert anew.path != again.path
    folder = Path(again.path or "").parent
    with pytest.raises(RowFailedError, match="document 2: "), store.stored([uri(b"a"), "data:nothing"]):
        pass
    store.close()
    assert not folder.exists()


def test_requests_and_the_bytes_of_their_bodies_are_bounded() -> None:
    admission = Admission(3, 100)
    with admission.request() as one, admission.request() as two, admission.request() as three:
        with pytest.raises(ApiError) as full, admission.request():
            pass
        assert (full.value.status, full.value.retry_after) == (429, 2)
        one.grow(40)
        one.grow(100)
        with pytest.raises(ApiError) as large:
            two.grow(101)
        assert large.value.status == 413
        three.release()
        three.release()
        assert admission.held == 3
    assert admission.held == 0
    crowded = Admission(20, 100)
    rooms = [crowded.request() for _ in range(9)]
    for number, room in enumerate(rooms):
        entered = room.__enter__()
        if number < 8:
            entered.grow(100)
        else:
            with pytest.raises(ApiError) as full:
                entered.grow(1)
            assert full.value.status == 429
    for room in rooms:
        room.__exit__(None, None, None)
    with crowded.request() as last:
        last.grow(100)
    crowded.is_stopping = True
    with pytest.raises(ApiError) as stopping, crowded.request():
        pass
    assert stopping.value.status == 503


@pytest.fixture
def preparer(pool: PagePool) -> Iterator[Callable[..., ChatPreparer]]:
    made = []

    def make(**settings: Any) -> ChatPreparer:
        pages = PageSettings(split=Split.NEVER, **settings)
        made.append(ChatPreparer(FakeEngine().info, pool.with_settings(pages), pages, allow_urls=True, longest=50))
        return made[-1]

    yield make
    for one in made:
        one.close()


def body(*arguments: Any, **fields: Any) -> bytes:
    return json.dumps(asking(*arguments, **fields)).encode()


def test_pages_of_a_body_are_prepared_once(preparer: Callable[..., ChatPreparer]) -> None:
    chats = preparer()
    fax = {"type": "file", "file": {"file_data": data_uri("fax.tiff", "image/tiff")}}
    first = chats.prepare(body("What?", fax, image("notice.bmp")))
    pages = len(first.request.pages)
    assert pages == first.pages_prepared == len(set(first.request.page_ids)) > 2
    again = chats.prepare(body("Who?", image("notice.bmp"), fax))
    assert (again.pages_prepared, again.prepare_s) == (0, 0.0)
    assert set(again.request.page_ids) == set(first.request.page_ids)
    assert len(preparer(selection="1").prepare(body("What?", fax)).request.pages) == 1


def test_pages_of_hundreds_of_clients_are_kept_where_memory_allows() -> None:
    page = 5 * 980 * 756 * 3  # bytes of a split page
    assert kept_page_bytes(128 * 10**9) > 300 * page
    assert kept_page_bytes(10**12) == kept_page_bytes(128 * 10**9)
    assert kept_page_bytes(24 * 10**9) == 3 * 10**9
    assert kept_page_bytes(None) == kept_page_bytes(10**9) == 512_000_000


def test_settings_of_a_body_are_bounded_and_plain_ones_none(preparer: Callable[..., ChatPreparer]) -> None:
    chats = preparer()
    assert chats.prepare(body("What?", image("notice.bmp"))).request.generation is None
    bounded = chats.prepare(body("What?", image("notice.bmp"), max_tokens=1000)).request.generation
    assert bounded is not None
    assert bounded.max_new_tokens == 50
    drawn = [chats.prepare(body("?", image("notice.bmp"), temperature=1.0)).request.generation for _ in range(2)]
    assert len({one.seed for one in drawn if one}) == 2


def test_what_cannot_be_prepared_is_an_error_of_its_own_request(
    preparer: Callable[..., ChatPreparer], grey_png: Callable[..., Path]
) -> None:
    chats = preparer(max_pixels=100_000)
    large = {"type": "image_url", "image_url": {"url": uri(grey_png("large.png", 9, (400, 400)).read_bytes())}}
    local = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/a.png"}}
    for part, code in ((large, "too_large"), (local, "unreadable")):
        with pytest.raises(ApiError) as caught:
            chats.prepare(body("?", part))
        assert (caught.value.status, caught.value.code) == (400, code)


def test_durations_and_settings_that_contradict_each_other() -> None:
    found = [Duration.parse(text).seconds for text in ("90", "90s", "1.5m", "10m", "2h", "1d")]
    assert found == [90, 90, 90, 600, 7200, 86400]
    for text in ("", "0", "0s", "-1", "10 minutes", "1w", "m"):
        with pytest.raises(UsageError, match="10m"):
            Duration.parse(text)
    assert Duration.parse(str(Duration(600.0))) == Duration(600.0)
    for wrong in ({"port": 70_000}, {"exit_when_idle": True}, {"max_body": 0}, {"max_queue": 0}, {"host": " "}):
        with pytest.raises(UsageError):
            ServeSettings(**wrong)
    with pytest.raises(UsageError, match="--keep and --no-server"):
        ClientSettings(no_server=True, keep=Duration(1.0))


def test_a_server_in_the_background_gets_what_decides_which_model_is_loaded() -> None:
    model = ModelSettings("tiny", device="cpu", dtype="float32", temperature=0.5, max_new_tokens=9)  # type: ignore[arg-type]
    arguments = serve_arguments(RunSettings(PageSettings(workers=3, password="secret"), model), Duration(600))
    assert arguments[:5] == ["serve", "--socket", "--keep-alive", "600s", "--exit-when-idle"]
    assert set(arguments[5:]) == {"--model=tiny", "--device=cpu", "--dtype=float32", "--workers=3"}


@pytest.mark.parametrize("name", ["prometheus_client", "starlette", "uvicorn"])
def test_without_the_extra_serve_says_how_to_get_it(name: str) -> None:
    code = (
        f"import sys; sys.modules[{name!r}] = None\n"
        "from idefics_cli.cli import app\n"
        "sys.argv = ['idefics-cli', 'serve', '--model', 'tiny']\n"
        "app.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert f"serve needs {name}" in done.stderr
    assert "idefics-cli[serve]" in done.stderr
