"""The HTTP server's routes, and who may ask."""

from __future__ import annotations

import hmac
import time

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from idefics_cli.openai_api.errors import ApiError
from idefics_cli.server.admission import Admission
from idefics_cli.server.completions import ChatCompletions
from idefics_cli.server.exchange import Reply, refuse
from idefics_cli.server.kept_engine import KeptEngine
from idefics_cli.server.metrics import Metrics

_BEARER = b"bearer "
_OPEN_PATHS = ("/health",)


def make_app(
    engine: KeptEngine, completions: ChatCompletions, admission: Admission, metrics: Metrics, api_key: str | None
) -> ASGIApp:
    """Return the application.

    Args:
        engine: that answers.
        completions: the endpoint that asks it.
        admission: says when the server is stopping.
        metrics: what Prometheus is told.
        api_key: that clients must send; None asks for none.

    """
    created = int(time.time())
    model = {"id": engine.info.name, "object": "model", "created": created, "owned_by": "idefics-cli"}

    async def models(request: Request) -> Response:  # noqa: ARG001 - the signature of an endpoint
        return JSONResponse({"object": "list", "data": [model]})

    async def one_model(request: Request) -> Response:
        name = request.path_params["name"]
        if name != model["id"]:
            return _response(ApiError(404, f"model {name!r} is not here: {model['id']} is", code="model_not_found"))
        return JSONResponse(model)

    async def health(request: Request) -> Response:  # noqa: ARG001
        status = "stopping" if admission.is_stopping else "ok"
        body = {"status": status, "model": model["id"], "loaded": engine.is_loaded}
        return JSONResponse(body, 503 if admission.is_stopping else 200)

    async def metrics_text(request: Request) -> Response:  # noqa: ARG001
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", completions, methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", one_model),
            Route("/health", health),
            Route("/metrics", metrics_text),
        ],
        exception_handlers={HTTPException: _http_error, Exception: _bug},
    )
    return app if api_key is None else _WithKey(app, api_key, metrics)


class _WithKey:
    """Lets those through who send the key; /health is open."""

    def __init__(self, app: ASGIApp, api_key: str, metrics: Metrics) -> None:
        self._app, self._key, self._metrics = app, api_key.encode(), metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _OPEN_PATHS or self._is_allowed(dict(scope["headers"])):
            await self._app(scope, receive, send)
            return
        self._metrics.requests.labels("401").inc()
        words = "a key is wanted: Authorization: Bearer KEY, that of IDEFICS_CLI_API_KEY where the server was started"
        await refuse(ApiError(401, words, code="invalid_api_key"), scope, receive, send, Reply())

    def _is_allowed(self, headers: dict[bytes, bytes]) -> bool:
        given = headers.get(b"authorization", b"")
        key = given[len(_BEARER) :].strip() if given[: len(_BEARER)].lower() == _BEARER else b""
        return hmac.compare_digest(key, self._key)


def _response(error: ApiError) -> Response:
    return JSONResponse(error.body, error.status)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = f"{request.method} {request.url.path}: {error.detail.lower()}; there is POST /v1/chat/completions"
    return _response(ApiError(error.status_code, words))


async def _bug(request: Request, error: Exception) -> Response:  # noqa: ARG001 - uvicorn logs it
    return _response(ApiError(500, f"the server failed: {type(error).__name__}: {error}", code="internal_error"))
