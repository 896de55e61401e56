"""Everything but the data routes: health, models, metrics, status, and the operator's switch. FastAPI.

Deny by default: each route names the roles that may call it. The data routes pass this application by. Where
operators have a listener of their own, two applications are built, and neither knows the other's paths.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, Protocol, TypeVar

import orjson
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from proxy.core.errors import BodyTooLarge, GatewayError, InvalidRequest, MethodNotAllowed, NotFound
from proxy.ledger.keys import Principal
from proxy.server import auth, dashboard
from proxy.server.connection import FRAMING
from proxy.server.desk import Desk
from proxy.server.exchange import Asgi, Receive, Scope, Send
from proxy.server.guard import Guard
from proxy.server.ids import new_id
from proxy.server.live import Live
from proxy.wire.endpoints import ENDPOINTS
from proxy.wire.openai import check_content_type, error_body

OPERATORS_BODY_MAX = 64 * 1024  # a switch or a drain: read before anyone is asked for a key

Caller = Callable[[Request], Awaitable[Principal]]
Body = TypeVar("Body", bound=BaseModel)


class Operations(Protocol):
    """What the operator's routes may do; the gateway object offers it."""

    def models(self, caller: Principal) -> list[str]: ...
    def ready(self) -> str | None:
        """None when able to serve, else why not."""
    async def status_page(self) -> dict[str, Any]: ...
    async def decisions_page(self, limit: int) -> list[dict[str, Any]]: ...
    def explain(self, model: str, prompt_tokens: int, output_tokens: int) -> dict[str, Any]: ...
    async def metrics_page(self) -> bytes: ...
    def switch(self, to: Literal["auto", "all-api", "all-local"]) -> None: ...
    def drain(self, backend: str, on: bool) -> None: ...


class Door:
    """ASGI middleware: bodies are bounded, answers have an id."""

    def __init__(self, app: Asgi, body_s: float) -> None:
        self._app, self._body_s = app, body_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, _bounded(receive, self._body_s), _named(scope, send))


async def _body(request: Request, model: type[Body]) -> Body:
    """The body, read after the key was looked at: who has none learns nothing, not even of his JSON. It must say that
    it is JSON, which no form of another site's page can."""
    check_content_type(request.headers.get("content-type", ""))
    try:
        return model.model_validate_json(await request.body())
    except ValidationError as error:
        raise _invalid(error.errors(include_input=False)[0]) from None


def _invalid(first: Mapping[str, Any], skip: int = 0) -> InvalidRequest:
    where = ".".join(str(part) for part in first["loc"][skip:])[:128]
    return InvalidRequest(f"{where or 'body'}: {first['msg']}", param=where or None)


def _bounded(receive: Receive, body_s: float) -> Receive:
    """`receive`, refusing a body that no operator's route needs, or that takes longer than any of them may."""
    seen = 0
    ends_at: float | None = asyncio.get_running_loop().time() + body_s

    async def bounded() -> Any:
        nonlocal seen, ends_at
        try:
            async with asyncio.timeout_at(ends_at):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408) from None
        seen += len(message.get("body", b""))
        if not message.get("more_body"):
            ends_at = None  # it is here; what is waited for now is the end of the connection
        if seen > OPERATORS_BODY_MAX:
            raise HTTPException(413)
        return message

    return bounded


def _named(scope: Scope, send: Send) -> Send:
    """`send`, giving the answer an id to quote. A body that was not asked for, or not waited for, ends the connection:
    reading on would keep it busy for nothing."""
    unread = any(name in FRAMING and value != b"0" for name, value in scope["headers"])

    async def named(message: Any) -> None:
        if message["type"] == "http.response.start":
            more = [(b"x-request-id", new_id().encode())]
            if unread and (scope["method"] != "POST" or message["status"] >= 400):
                more.append((b"connection", b"close"))
            message["headers"] = [*message["headers"], *more]
        await send(message)

    return named


class SwitchBody(BaseModel):
    to: Literal["auto", "all-api", "all-local"]


class DrainBody(BaseModel):
    on: bool = True


def build(operations: Operations, keys: auth.KeyRing | None, *, data: bool, operators: bool, headers_max: int,
          header_bytes_max: int, body_s: float, refused: Callable[[str], None], desk: Desk | None = None) -> Guard:
    """The application of one listener. `data`: the data routes are served there; without `operators` it has none of
    theirs, nor the dashboard, which is made at the `desk`."""
    # Redirects would repeat a Host that nobody has vouched for.
    app = FastAPI(title="Breakeven", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    _errors(app, frozenset(ENDPOINTS) if data else frozenset())
    _health_routes(app, operations)
    if data:
        _model_routes(app, operations, _allow(keys, "application", "reader", "admin"))
    if operators:
        _operator_routes(app, operations, _allow(keys, "reader", "admin"), _allow(keys, "admin"))
        if desk is not None:
            dashboard.add_routes(app, keys, desk, Live(desk, lambda: operations.ready() == "draining"))
    return Guard(Door(app, body_s), headers_max, header_bytes_max, refused, keyless=keys is None)


def _allow(keys: auth.KeyRing | None, *roles: str) -> Caller:
    async def caller(request: Request) -> Principal:
        return auth.authenticate(dict(request.headers.raw), keys, roles)

    return caller


def _health_routes(app: FastAPI, operations: Operations) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Alive: the process answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> Response:
        """Able to serve: the ledger can be written and the gateway is not draining."""
        why = operations.ready()
        body = {"status": "ready"} if why is None else {"status": "not_ready", "reason": why}
        return _json(body, 200 if why is None else 503)


def _model_routes(app: FastAPI, operations: Operations, anyone: Caller) -> None:
    @app.get("/v1/models")
    async def models(caller: Principal = Depends(anyone)) -> dict[str, Any]:
        """The routes that the key may use, as OpenAI lists models; never the backends behind them."""
        return {"object": "list", "data": [_model(name) for name in operations.models(caller)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str, caller: Principal = Depends(anyone)) -> dict[str, Any]:
        if name not in operations.models(caller):
            raise NotFound(f"The model '{name[:128]}' does not exist.", param="model", code="model_not_found")
        return _model(name)


def _operator_routes(app: FastAPI, operations: Operations, reader: Caller,
                     admin: Caller) -> None:
    @app.get("/metrics")
    async def metrics(_: Principal = Depends(reader)) -> Response:
        return Response(await operations.metrics_page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/admin/status")
    async def status(_: Principal = Depends(reader)) -> Response:
        return _json(await operations.status_page())

    @app.get("/admin/decisions")
    async def decisions(limit: int = 50, _: Principal = Depends(reader)) -> Response:
        return _json({"decisions": await operations.decisions_page(max(1, min(limit, 1000)))})

    @app.get("/admin/explain")
    async def explain(model: str, prompt_tokens: int, output_tokens: int, _: Principal = Depends(reader)) -> Response:
        return _json(operations.explain(model, prompt_tokens, output_tokens))

    @app.post("/admin/switch")
    async def switch(request: Request, _: Principal = Depends(admin)) -> Response:
        """Everything to the API, or nothing, at once; `auto` gives the policies back their say."""
        body = await _body(request, SwitchBody)
        operations.switch(body.to)
        return _json({"switch": body.to})

    @app.post("/admin/backends/{name}/drain")
    async def drain(name: str, request: Request, _: Principal = Depends(admin)) -> Response:
        """Nothing new to this backend; what runs there finishes."""
        body = await _body(request, DrainBody)
        operations.drain(name, body.on)
        return _json({"backend": name, "draining": body.on})


def _errors(app: FastAPI, data_paths: frozenset[str]) -> None:
    """Every error in OpenAI's envelope. `data_paths`: known, and served elsewhere."""
    @app.exception_handler(GatewayError)
    async def gateway(_: Request, error: GatewayError) -> Response:
        return _error(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return _error(_invalid(error.errors()[0], skip=1))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        if error.status_code == 413:
            return _error(BodyTooLarge(f"The body is larger than {OPERATORS_BODY_MAX} bytes."))
        if error.status_code == 408:
            return _error(InvalidRequest("The body did not arrive in time.", code="body_timeout"))
        if request.scope["path"] in data_paths:
            return _error(MethodNotAllowed("This path takes POST only."), {"allow": "POST"})
        if error.status_code == 405:
            return _error(MethodNotAllowed("This path does not take that method."), error.headers)
        if error.status_code == 404:
            return _error(NotFound("There is nothing at this path." + _meant(
                request.scope["path"], data_paths.union(getattr(route, "path", "") for route in app.routes))))
        return _error(InvalidRequest(str(error.detail)))

    @app.exception_handler(Exception)
    async def internal(_: Request, error: Exception) -> Response:
        return _error(GatewayError("The gateway failed to handle this request."))


def _meant(path: str, known: frozenset[str]) -> str:
    """The path that there is, where a base URL lacks its /v1 or has it twice, or a slash is too much."""
    plain = path.rstrip("/")
    meant = next((one for one in (plain, f"/v1/{plain.rpartition('/v1/')[2].lstrip('/')}") if one in known), None)
    return "" if meant is None else f" Did you mean {meant}? A client's base URL ends in /v1." if (
        meant.startswith("/v1/")) else f" Did you mean {meant}?"


def _error(error: GatewayError, headers: Mapping[str, str] | None = None) -> Response:
    more = dict(headers or {})
    if error.retry_after_s is not None:
        more["retry-after"] = str(max(1, round(error.retry_after_s)))
    return Response(error_body(error.message, error.type, error.param, error.code), error.status, more,
                    "application/json")


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "breakeven"}


def _json(body: dict[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, media_type="application/json")
