"""Lines of batch files, an engine that notes what they want, and the form of what they are answered with."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openai.types.chat import ChatCompletion
from PIL import Image

from idefics_cli.records import Answer, GeneratedTokens, Generation, Request
from tests.fakes import FakeEngine


def png_uri(grey: int, size: tuple[int, int] = (60, 40)) -> str:
    image, data = Image.new("RGB", size, (grey, grey, grey)), io.BytesIO()
    image.putpixel((0, 0), (0, 0, 0))
    image.save(data, "PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


def image(grey: int) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": png_uri(grey)}}


def request(custom_id: Any, *content: Any, **body: Any) -> dict[str, Any]:
    """One line; texts and parts of the user's turn, and other fields of the body."""
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    body = {"model": "some-model", "messages": [{"role": "user", "content": parts}]} | body
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def write_lines(path: Path, lines: Sequence[dict[str, Any] | str]) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


class RequestEngine(FakeEngine):
    """Answers as `FakeEngine`, conversations without a page too, with tokens; keeps what each wants."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.wanted: dict[str, Generation | None] = {}

    def answer(self, request: Request) -> Answer:
        self.wanted[request.question] = request.generation
        if "fail" in request.question:
            return super().answer(request)
        greys = [round(float(page.crops[-1].mean())) for page in request.pages]
        text = f"{request.question} @{'+'.join(map(str, greys))}"
        return Answer(
            text,
            confidence=0.5,
            mean_logprob=-0.5,
            prompt_tokens=10,
            new_tokens=2,
            batch_size=1,
            decode_ms=3.0,
            is_complete="long" not in request.question,
            tokens=GeneratedTokens((1, 2), (-0.25, -0.75), lambda ids: text[: len(ids)] if len(ids) < 2 else text),
        )


def check_form(line: dict[str, Any]) -> None:
    """Check a line of an output against what is documented: OpenAI's batch guide, vLLM's BatchRequestOutput."""
    assert list(line) == ["id", "custom_id", "response", "error"]
    assert isinstance(line["id"], str)
    assert line["id"]
    assert isinstance(line["custom_id"], str)
    response = line["response"]
    assert list(response) == ["status_code", "request_id", "body"]
    assert isinstance(response["request_id"], str)
    assert response["request_id"]
    if response["status_code"] == 200:
        assert line["error"] is None
        completion = ChatCompletion.model_validate(response["body"], strict=True)
        assert completion.choices[0].message.role == "assistant"
        assert completion.usage is not None
    else:
        assert line["error"] == response["body"]["error"]
        assert set(line["error"]) == {"message", "type", "param", "code"}
        assert line["error"]["message"]
