"""Clients that people use, unchanged, against the server: the official package, and llm."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from idefics_cli.config import ModelSettings
from tests.servers import SAMPLES, data_uri, running

KEY = "sk-tests"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with running(model=ModelSettings("tiny", most_new_tokens=256), api_key=KEY) as (_, client):
        yield f"{str(client.base_url).rstrip('/')}/v1"


def test_the_official_client(address: str) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=address, api_key=KEY, http_client=None)
    content = [
        {"type": "file", "file": {"filename": "letter.pdf", "file_data": data_uri("letter.pdf", "application/pdf")}},
        {"type": "text", "text": "To whom is the letter addressed?"},
    ]
    asked = {"model": "tiny", "messages": [{"role": "user", "content": content}]}
    answer = client.chat.completions.create(**asked, logprobs=True, temperature=0, max_tokens=20)
    assert answer.choices[0].message.content == "Erik Kansfield"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert "".join(token.token for token in answer.choices[0].logprobs.content) == "Erik Kansfield"
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "Erik Kansfield"
    assert chunks[-1].usage == answer.usage
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt")
    with pytest.raises(openai.BadRequestError, match="n 2"):
        client.chat.completions.create(**asked, n=2)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=address, api_key="wrong").models.list()


def test_the_llm_command(address: str, tmp_path: Path) -> None:
    pytest.importorskip("llm")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: local\n  model_name: tiny\n  api_base: {address}\n  api_key_name: local\n  vision: true\n"
    )
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path)}

    def llm(*arguments: str) -> str:
        command = [sys.executable, "-m", "llm", *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=120, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    asked = ("-m", "local", "--key", KEY, "-a", str(SAMPLES / "transparent.png"), "What is the date?", "--no-log")
    body = {"messages": [{"role": "user", "content": [
        {"type": "text", "text": "What is the date?"},
        {"type": "image_url", "image_url": {"url": data_uri("transparent.png")}},
    ]}]}  # fmt: skip
    headers = {"Authorization": f"Bearer {KEY}"}
    reply = httpx2.post(f"{address}/chat/completions", json=body, headers=headers, timeout=60, trust_env=False)
    wanted = reply.json()["choices"][0]["message"]["content"]
    assert llm("prompt", *asked) == wanted != ""
    assert llm("prompt", "--no-stream", *asked) == wanted
