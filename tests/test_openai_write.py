"""Bodies that are written are read by the reader of the same form as what they were written from."""

from __future__ import annotations

from idefics_cli.openai_api.request import read_request
from idefics_cli.openai_api.write import chat_body
from idefics_cli.records import PAGE, DocumentPart, Generation, Turn

URIS = ["data:image/png;base64,AAAA", "data:image/png;base64,BBBB"]


def test_a_conversation_comes_back_with_its_pages_where_they_stood() -> None:
    turns = (Turn("user", (PAGE, "Who?")), Turn("assistant", ("Erik",)), Turn("user", ("Here:", PAGE, "When?")))
    wanted = Generation(9, 0.5, 0.9, 3, ("x", "y"))
    body = chat_body(turns, URIS, wanted, "their-model")
    read = read_request(body)
    assert read.turns == (
        Turn("user", (DocumentPart(URIS[0]), "Who?")),
        Turn("assistant", ("Erik",)),
        Turn("user", ("Here:", DocumentPart(URIS[1]), "When?")),
    )
    assert (read.generation, read.model) == (wanted, "their-model")


def test_what_is_left_to_the_server_is_left_out() -> None:
    body = chat_body((Turn("system", ("Be brief.",)), Turn("user", ("?",))), [], Generation(temperature=0.0), "m")
    assert body == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "?"}],
        "temperature": 0.0,
    }
