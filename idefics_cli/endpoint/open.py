"""Opens the engine for a server: what is refused, which model answers, and what a row says of it."""

from __future__ import annotations

import dataclasses
import importlib.util
import time
import typing
from collections.abc import Iterator

from idefics_cli.config import DEFAULT_MODEL, ModelSettings, RunSettings, check_text, option_of
from idefics_cli.endpoint.address import Address, read_address
from idefics_cli.endpoint.client import list_models
from idefics_cli.endpoint.engine import EndpointEngine
from idefics_cli.endpoint.errors import RefusedError, TransientError
from idefics_cli.endpoint.images import DEFAULT_EDGE, WholePageProcessor
from idefics_cli.engine.base import EngineInfo
from idefics_cli.engine.families.generation import default_answer_length
from idefics_cli.errors import ModelError, UsageError
from idefics_cli.records import Generation

_SENT = frozenset(("model", "prompt", "longest_edge", "max_new_tokens", "temperature", "top_p", "seed", "stop"))
"""Settings of a model that a server can be told."""
_HIGHEST_TEMPERATURE = 2.0
_WAITING = 8  # requests whose images are ready while as many as are allowed are under way
_LIST_TRIES = 3
_SHOWN = 20


def open_endpoint(settings: RunSettings) -> EndpointEngine:
    """Open the engine that asks a server; only its list of models is asked for, and only without `--model`.

    Raises:
        UsageError: the address is none, the settings ask for what a server can't be told, or no model is chosen.
        ModelError: the client's package is not installed, or the server does not list its models.

    """
    assert settings.endpoint.url is not None
    address = read_address(settings.endpoint.url)
    for flag in _refused(settings):
        raise UsageError(f"{flag} has no meaning for a server: leave it out, or leave --endpoint out")
    if (settings.model.temperature or 0) > _HIGHEST_TEMPERATURE:
        raise UsageError(f"--temperature with --endpoint: {_HIGHEST_TEMPERATURE:g} at most")
    if importlib.util.find_spec("httpx2") is None:
        raise ModelError("--endpoint needs httpx2, which is not installed: pip install 'idefics-cli[endpoint]'")
    wanted = settings.model.model
    check_text("--model with --endpoint", wanted)  # a folder's name may be any bytes
    is_named = settings.endpoint.is_model_named or wanted != DEFAULT_MODEL
    name, notes = (wanted, []) if is_named else _model_of(address)
    if address.exposes_key:
        notes.append(f"the key goes to {address.base} without encryption")
    generation = _generation(settings.model, name)
    edge = settings.model.longest_edge or DEFAULT_EDGE
    info = EngineInfo(
        name,
        _answer_settings(address, name, settings.model, generation, edge),
        settings.endpoint.most_requests + _WAITING,
        WholePageProcessor(edge),
        tuple(notes),
    )
    return EndpointEngine(info, address, settings.endpoint, generation, settings.model.prompt)


def _refused(settings: RunSettings) -> Iterator[str]:
    """Yield the flags of what is given and can't be told to a server."""
    hints = typing.get_type_hints(ModelSettings, include_extras=True)
    for field in dataclasses.fields(ModelSettings):
        option = option_of(hints[field.name])
        is_given = getattr(settings.model, field.name) != field.default
        if field.name not in _SENT and option is not None and is_given:
            yield option.flags(field.name)[0]


def _model_of(address: Address) -> tuple[str, list[str]]:
    """Return the name of the model that is asked where the user names none, and what the user is told of it."""
    names = _listed(address)
    if DEFAULT_MODEL in names:
        return DEFAULT_MODEL, []
    if len(names) == 1:
        return names[0], [f"{address.base} answers with {names[0]}, its only model"]
    if not names:
        raise ModelError(f"{address.base} lists no model: give its name there with --model")
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    raise UsageError(f"{address.base} has several models; choose one with --model: {', '.join(names[:_SHOWN])}{more}")


def _listed(address: Address) -> list[str]:
    for tries in range(1, _LIST_TRIES + 1):
        try:
            return list_models(address)
        except RefusedError as error:
            hint = "" if error.status in (401, 402, 403) else "; give the model's name there with --model"
            raise ModelError(f"{address.models}: {error}{hint}") from error
        except TransientError as error:
            if tries == _LIST_TRIES:
                raise ModelError(f"{address.models}: {error}; --model NAME does without it") from error
            time.sleep(tries * 0.5)
    raise AssertionError


def _generation(model: ModelSettings, name: str) -> Generation:
    return Generation(
        max_new_tokens=model.max_new_tokens or default_answer_length(name),
        temperature=model.temperature or 0.0,
        top_p=model.top_p,
        seed=(model.seed or 0) if model.is_sampling else None,
        stop=model.stop,
    )


def _answer_settings(
    address: Address, name: str, model: ModelSettings, generation: Generation, edge: int
) -> dict[str, str]:
    """Return what can change an answer, by the names that users know."""
    given = {
        "--temperature": generation.temperature or None,
        "--top-p": generation.top_p,
        "--seed": generation.seed,
        "--stop": list(generation.stop) or None,
    }
    return {
        "--endpoint": address.base,
        "--model": name,
        "--prompt": model.prompt,
        "--max-new-tokens": str(generation.max_new_tokens),
        "--longest-edge": str(edge),
        **{flag: str(value) for flag, value in given.items() if value is not None},
    }
