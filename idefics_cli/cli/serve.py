"""`serve`: the model behind an OpenAI-compatible server, and for `ask` and `run` of the same user."""

from __future__ import annotations

import dataclasses
import os

from idefics_cli.cli.console import note, set_up_messages
from idefics_cli.cli.exit_codes import Interrupted
from idefics_cli.cli.options import PasswordFile, checked_pages, from_settings
from idefics_cli.config import MessageSettings, ModelSettings, PageSettings, QuestionSettings, ServeSettings
from idefics_cli.errors import UsageError

KEY_VARIABLE = "IDEFICS_CLI_API_KEY"
_EXTRA = ("prometheus_client", "starlette", "uvicorn")
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_OF_REQUESTS = ("min_new_tokens", "temperature", "top_p", "seed", "repetition_penalty", "num_beams", "stop", "choices")
_OF_RUNS = ("columns", "examples", "limit", "shard", "root", "allow_empty", "across")


@from_settings(without=(*_OF_REQUESTS, *_OF_RUNS))
def serve(
    *,
    serving: ServeSettings,
    model: ModelSettings,
    pages: PageSettings,
    allowed: QuestionSettings,
    messages: MessageSettings,
    password_file: PasswordFile = None,
) -> None:
    """Keep the model loaded and answer over HTTP, in the OpenAI form, and to ask and run of the same user.

    A key that clients must send is taken from IDEFICS_CLI_API_KEY. Ctrl-C or SIGTERM stops the server once what was
    asked is answered; twice, at once.

    Examples:
    [bold]idefics-cli serve --keep-alive 10m[/bold]

    [bold]curl 127.0.0.1:8000/v1/models[/bold]

    """
    set_up_messages(messages, is_dated=True)
    try:
        from idefics_cli.server.serving import Server, ServerSettings
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in _EXTRA:
            raise
        raise UsageError(
            f"serve needs {error.name}, which is not installed: pip install 'idefics-cli[serve]'"
        ) from error
    api_key = os.environ.get(KEY_VARIABLE) or None
    if not serving.socket and serving.host not in _LOOPBACK and api_key is None:
        note(f"{serving.host} is open to other machines, and no key is wanted: set {KEY_VARIABLE}")
    server = Server(
        ServerSettings(
            dataclasses.replace(model, most_new_tokens=serving.max_answer, is_shared=True),
            checked_pages(pages, password_file),
            serving,
            allow_urls=allowed.allow_urls,
            api_key=api_key,
        ),
        on_ready=lambda place: note(f"{server.engine.info.name} answers at {place}"),
        on_note=note,
    )
    for words in server.engine.info.notes:
        note(words)
    if not server.run():
        raise Interrupted(server.signal)
