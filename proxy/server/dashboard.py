"""The dashboard's routes: who may look, what is sent with every page, and never more work than a little.

Deny by default: a reader's or an admin's key, in a header or behind the session cookie that the sign-in form gives
(`sessions.py`). Everything else is for `Desk` (desk.py), which asks the ledger in a thread, and for `Pages`, which
knows what a page looks like (proxy/reports/dashboard).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import parse_qs

from fastapi import FastAPI, Request, Response

from proxy.core.errors import GatewayError, InvalidRequest, NotFound, PermissionDenied, Unauthorized
from proxy.ledger.keys import Principal
from proxy.server import auth, sessions
from proxy.server.desk import Desk
from proxy.server.live import Live
from proxy.wire.openai import error_body

ROLES = ("reader", "admin")
FORM_BYTES_MAX = 8 * 1024
HTML = "text/html; charset=utf-8"
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "cache-control": "no-store",
    "x-frame-options": "DENY", "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
A_YEAR = "public, max-age=31536000, immutable"  # the address of a file changes with what is in it

Answer = Callable[[Request, Principal], Awaitable[Response]]
FormAnswer = Callable[[Request, Mapping[str, str]], Response]


class Door:
    """Who is asking. Without `keys` everybody on this machine may look, as with every other route."""

    def __init__(self, keys: auth.KeyRing | None, desk: Desk) -> None:
        self._keys, self._desk, self._attempts = keys, desk, sessions.Attempts()

    def caller(self, request: Request) -> Principal:
        """By the key in a header or else by the session. Raises Unauthorized, PermissionDenied."""
        if self._keys is not None and auth.secret_of(headers := dict(request.headers.raw)) is None:
            principal = sessions.opened(self._keys, request.cookies.get(sessions.COOKIE, ""), time.time())
            if principal is not None:
                return auth.permitted(principal, ROLES)
        else:
            headers = dict(request.headers.raw)
        return auth.authenticate(headers, self._keys, ROLES)

    def page(self, answer: Answer) -> Callable[[Request], Awaitable[Response]]:
        """The route that gives `answer` to whoever may have it, and says in words of its own why not to others."""
        async def route(request: Request) -> Response:
            try:
                made = await answer(request, self.caller(request))
            except Unauthorized as error:
                made = self._sign_in(request, 401, "") if _browses(request) else _json_error(error)
            except GatewayError as error:
                made = self._problem(error) if _browses(request) else _json_error(error)
            return guarded(made)

        return route

    def form(self, answer: FormAnswer) -> Callable[[Request], Awaitable[Response]]:
        """The route that takes a form of ours."""
        async def route(request: Request) -> Response:
            try:
                if not sessions.from_our_page(request.headers):
                    raise PermissionDenied("The form came from a page of another site.")
                return guarded(answer(request, await _form(request)))
            except GatewayError as error:
                return guarded(self._problem(error) if _browses(request) else _json_error(error))

        return route

    def sign_in(self, request: Request, form: Mapping[str, str]) -> Response:
        """A key in a form against a cookie, and on to where the form was shown. The key is looked at first: a right one
        never waits for the wrong ones that came before it."""
        made = Response(status_code=303, headers={"location": _inside(form.get("to", ""))})
        if self._keys is not None:
            try:
                given = {b"authorization": b"Bearer " + form.get("key", "").encode()}
                principal = auth.authenticate(given, self._keys, ROLES)
            except GatewayError as error:
                return self._not_signed_in(request, form, error)
            cookie = sessions.issue(self._keys, principal, time.time())
            made.headers["set-cookie"] = sessions.set_cookie(cookie or "", _secure(request))
        return made

    def _not_signed_in(self, request: Request, form: Mapping[str, str], error: GatewayError) -> Response:
        """Why not. Nothing is held meanwhile: however many wrong keys come at once, none of them waits here."""
        forbidden = isinstance(error, PermissionDenied)  # the key is somebody's
        if form.get("key") and not forbidden:
            address = request.client.host if request.client else ""
            if (wait_s := self._attempts.wrong(address, time.monotonic())) > 0:
                made = self._sign_in(request, 429, "Too many wrong keys. Wait a minute, then try again.", form)
                made.headers["retry-after"] = str(max(1, round(wait_s)))
                return made
        if not _browses(request):
            raise error
        words = ("This key is for applications. The dashboard takes a reader's or an admin's key." if forbidden
                 else "This key is not valid.")
        return self._sign_in(request, error.status, words, form)

    def sign_out(self, request: Request, _: Mapping[str, str]) -> Response:
        made = Response(status_code=303, headers={"location": "/dashboard"})
        made.headers["set-cookie"] = sessions.set_cookie("", _secure(request))
        return made

    def _sign_in(self, request: Request, status: int, message: str, form: Mapping[str, str] | None = None) -> Response:
        here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        to = _inside(here if form is None else form.get("to", ""))
        return Response(self._desk.pages.sign_in(message, to), status, media_type=HTML)

    def _problem(self, error: GatewayError) -> Response:
        return Response(self._desk.pages.problem(error.status, error.message), error.status, media_type=HTML)


def add_routes(app: FastAPI, keys: auth.KeyRing | None, desk: Desk, live: Live) -> None:
    """The dashboard, on the listener that is the operators'."""
    door = Door(keys, desk)

    async def overview(request: Request, caller: Principal) -> Response:
        status, page = await desk.overview(dict(request.query_params), _name(caller))
        return Response(page, status, media_type=HTML)

    async def one_request(request: Request, caller: Principal) -> Response:
        page = await desk.one_request(request.path_params["request_id"], _name(caller))
        return Response(page, media_type=HTML)

    async def csv(request: Request, _: Principal) -> Response:
        name, text = await desk.csv(dict(request.query_params))
        return Response(text, media_type="text/csv; charset=utf-8",
                        headers={"content-disposition": f'attachment; filename="{name}"'})

    async def stream(request: Request, _: Principal) -> Response:
        return live.stream(dict(request.query_params), lambda: door.caller(request))

    _served(app, door, overview, one_request, csv, stream)
    _files(app, desk)


def _served(app: FastAPI, door: Door, overview: Answer, one_request: Answer, csv: Answer, stream: Answer) -> None:
    pages = {"include_in_schema": False}

    @app.get("/dashboard", **pages)
    async def dashboard(request: Request) -> Response:
        return await door.page(overview)(request)

    @app.get("/dashboard/request/{request_id}", **pages)
    async def dashboard_request(request: Request) -> Response:
        return await door.page(one_request)(request)

    @app.get("/dashboard/csv", **pages)
    async def dashboard_csv(request: Request) -> Response:
        return await door.page(csv)(request)

    @app.get("/dashboard/live", **pages)
    async def dashboard_live(request: Request) -> Response:
        return await door.page(stream)(request)

    @app.post("/dashboard/login", **pages)
    async def dashboard_login(request: Request) -> Response:
        return await door.form(door.sign_in)(request)

    @app.post("/dashboard/logout", **pages)
    async def dashboard_logout(request: Request) -> Response:
        return await door.form(door.sign_out)(request)


def _files(app: FastAPI, desk: Desk) -> None:
    """Style sheets and scripts: nothing in them is anybody's, and the sign-in form needs them."""
    @app.get("/dashboard/static/{name}", include_in_schema=False)
    async def dashboard_static(name: str) -> Response:
        found = desk.pages.file(name)
        if found is None:
            raise NotFound("There is nothing at this path.")
        return guarded(Response(found[0], media_type=found[1], headers={"cache-control": A_YEAR}))


def guarded(made: Response) -> Response:
    """The answer with what keeps a browser from being used against its reader."""
    for name, value in HEADERS.items():
        made.headers.setdefault(name, value)
    return made


def _browses(request: Request) -> bool:
    return "text/html" in request.headers.get("accept", "")


def _json_error(error: GatewayError) -> Response:
    return Response(error_body(error.message, error.type, error.param, error.code), error.status,
                    media_type="application/json")


async def _form(request: Request) -> dict[str, str]:
    """The fields of a small form, the first of each name. Raises InvalidRequest."""
    body = await request.body()
    if len(body) > FORM_BYTES_MAX:
        raise InvalidRequest("The form is too long.")
    try:
        fields = parse_qs(body.decode("ascii"), max_num_fields=8, errors="strict")
    except ValueError:
        raise InvalidRequest("The form cannot be read.") from None
    return {name: values[0] for name, values in fields.items()}


def _inside(to: str) -> str:
    """Where a form may lead: to a page of the dashboard, never to another site."""
    path = to.partition("?")[0]
    sound = path == "/dashboard" or path.startswith("/dashboard/request/")
    return to if sound and "\\" not in to and to.isprintable() and to.isascii() and len(to) <= 2048 else "/dashboard"


def _secure(request: Request) -> bool:
    return sessions.is_secure(request.url.scheme, request.headers)


def _name(caller: Principal) -> str | None:
    """Who is signed in; None where nobody has to be."""
    return None if caller is auth.ANONYMOUS else caller.name
