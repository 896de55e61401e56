"""`breakeven status`: a running gateway at a glance."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.live import Live

from proxy.demo.live import View, is_status

TIMEOUT_S = 5.0
REFRESH_S = 0.5
RATE_OVER_S = 1.0
BODY_BYTES_MAX = 4_194_304
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Unreachable(Exception):
    """No status page; the message says why."""


def status(
    url: Annotated[str, typer.Option(help="The gateway, such as https://llm.example.com; its operators' address "
                                     "where server.admin is set.")] = "http://127.0.0.1:8000",
    key: Annotated[str, typer.Option(metavar="ENV_NAME", help=(
        "The environment variable that holds a reader's or admin's key; the key itself is never an argument."
    ))] = "BREAKEVEN_ADMIN_KEY",
    watch: Annotated[bool, typer.Option("--watch", help="Twice a second, until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The page as it is; with --watch, line by line.")] = False,
) -> None:
    """Where requests go and why, load and health of every backend, bid price, latency, money so far.

    Totals are of the gateway's process since it started; `breakeven report` reads the ledger and is the truth.
    Exits 0, 1 if the gateway is not ready, 2 if it cannot be reached.
    """
    secret = os.environ.get(key, "")
    url = url.rstrip("/").removesuffix("/v1")
    if not url.startswith(("http://", "https://")):
        _stop("--url must begin with http:// or https://")
    try:
        page = fetch(url, secret)
        if watch:
            _watch(url, secret, page, as_json)
        view = View(f"Breakeven  {url}")
        if not as_json:  # a rate is of two readings
            view.observe(page)
            time.sleep(RATE_OVER_S)
            view.observe(page := fetch(url, secret))
    except Unreachable as error:
        _stop(str(error))
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
    if as_json:
        typer.echo(json.dumps(page))
    else:
        Console(highlight=False).print(view)
    raise typer.Exit(0 if page["ready"] == "ready" else 1)


def _stop(message: str) -> None:
    typer.echo(f"breakeven status: {message}", err=True)
    raise typer.Exit(2)


def _watch(url: str, secret: str, page: dict[str, Any], as_json: bool) -> None:
    """Until Ctrl-C. A gateway that is away for a while is waited for, and said to be."""
    view, console = View(f"Breakeven  {url}", fill=True), Console(highlight=False)
    view.observe(page)
    if as_json or not console.is_terminal:
        while True:
            print(json.dumps(page) if as_json else view.line(), flush=True)
            time.sleep(REFRESH_S if as_json else 10 * REFRESH_S)
            page = fetch(url, secret)
            view.observe(page)
    with Live(view, console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.refresh()
            time.sleep(REFRESH_S)
            try:
                view.observe(fetch(url, secret))
                view.trouble = ""
            except Unreachable as error:
                view.trouble = f"{time.strftime('%H:%M:%S')} {error}"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A key goes where it was meant to go, and nowhere else."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def fetch(url: str, secret: str) -> dict[str, Any]:
    """The status page, or Unreachable."""
    page = ask(url, "/admin/status", secret)
    if not is_status(page):
        raise Unreachable(f"{url} answers, but not as a Breakeven gateway")
    return page


def ask(url: str, path: str, secret: str) -> Any:
    """What the gateway answers to an operator's question, or Unreachable."""
    request = urllib.request.Request(f"{url}{path}")  # noqa: S310 - scheme checked by the caller
    if secret:
        request.add_header("authorization", f"Bearer {secret}")
    try:
        host = urlsplit(url).hostname
    except ValueError:
        raise Unreachable(f"{url} is not a URL") from None
    proxies = [urllib.request.ProxyHandler({})] if host in LOOPBACK else []
    try:
        with urllib.request.build_opener(_NoRedirects, *proxies).open(request, timeout=TIMEOUT_S) as answer:
            return json.loads(answer.read(BODY_BYTES_MAX))
    except urllib.error.HTTPError as error:
        raise Unreachable(_refused(url, error, bool(secret))) from None
    except ValueError:
        raise Unreachable(f"{url} answers, but not as a Breakeven gateway") from None
    except (OSError, HTTPException) as error:
        raise Unreachable(f"no gateway answers at {url}: {getattr(error, 'reason', error)}") from None


def _refused(url: str, error: urllib.error.HTTPError, had_key: bool) -> str:
    if error.code in (401, 403):
        return (f"{url} does not accept the key ({error.code}); it must be a reader's or an admin's" if had_key else
                f"{url} wants a key: set BREAKEVEN_ADMIN_KEY to a reader's or admin's, or name its variable with --key")
    if error.code in (400, 404) and (told := _told(error)):
        return told
    if error.code in (404, 405):
        return f"{url} answers, but not as a Breakeven gateway (HTTP {error.code})"
    return f"{url} answers with HTTP {error.code}"


def _told(error: urllib.error.HTTPError) -> str:
    """What a gateway says of the question itself: a model without a route, a figure that is none. Of a path that it
    does not have there is no param."""
    try:
        body = json.loads(error.read(BODY_BYTES_MAX))["error"]
        return str(body["message"]) if error.code == 400 or body["param"] is not None else ""
    except (OSError, HTTPException, ValueError, KeyError, TypeError):
        return ""
