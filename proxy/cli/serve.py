"""`breakeven serve`: the gateway."""

from __future__ import annotations

import contextlib
import errno
import gc
import socket
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from proxy.config import ConfigError, Settings, load, warnings
from proxy.config.checks import loopback
from proxy.ledger.errors import LedgerUnavailable


def serve(
    config: Annotated[Path, typer.Option("--config", "-c", help="The YAML configuration.", envvar="BREAKEVEN_CONFIG")],
    host: Annotated[str | None, typer.Option(help="Instead of server.host.")] = None,
    port: Annotated[int | None, typer.Option(help="Instead of server.port; 0 takes any free one.", min=0,
                                             max=65535)] = None,
) -> None:
    """Run the gateway until SIGTERM or Ctrl-C, then drain.

    SIGUSR1 sends everything to the API and back again; SIGUSR2 keeps everything on our own GPUs and back.
    """
    settings = settings_of(config)
    for caution in warnings(settings):
        typer.echo(f"warning: {caution}", err=True)
    if not settings.keys.required:
        typer.echo("warning: keys are not required, so the gateway listens on loopback only", err=True)
    from proxy import main

    status = 0
    address, number = host or settings.server.host, settings.server.port if port is None else port
    if not settings.keys.required and not loopback(address):
        _stop(f"keys are not required, so {address} is refused; use 127.0.0.1 or set keys.required: true")
    with contextlib.ExitStack() as open_sockets:
        sock = open_sockets.enter_context(_listen(address, number, "server.port or --port"))
        where, apart = _url(address, sock), settings.server.admin
        said = f"Breakeven is listening on {where} (base URL {where}/v1)"
        admin = None
        if apart is not None:
            admin = open_sockets.enter_context(_listen(apart.host, apart.port, "server.admin.port"))
            said += f"; metrics and admin on {_url(apart.host, admin)}"
        gc.freeze()  # what was loaded to start stays; no need to look at it again
        try:
            if settings.server.workers > 1:
                status = _several(settings, open_sockets, said, (address, sock), admin and (apart.host, admin))
            else:
                main.run(settings, sock, lambda: typer.echo(said), admin)
        except LedgerUnavailable as error:
            _stop(error.message)
    if status:
        raise typer.Exit(status)


def _several(settings: Settings, open_sockets: contextlib.ExitStack, said: str,
             *bound: tuple[str, socket.socket] | None) -> int:
    """Workers, each with sockets of its own where ours were; the exit status. That nobody listens there was for sockets
    that do not share to find out; now the places are kept by some that do, and do not listen."""
    from proxy import main, workers

    places = [(host, sock.getsockname()[1]) for host, sock in filter(None, bound)]
    open_sockets.close()
    with contextlib.ExitStack() as kept:
        for host, port in places:
            kept.enter_context(main.listen(host, port, beside_others=True))
        return workers.run(settings, places, lambda: typer.echo(said))


def _listen(address: str, port: int, setting: str) -> socket.socket:
    """A bound socket, or the reason why there is none, and exit 2."""
    from proxy import main

    try:
        return main.listen(address, port)
    except OSError as error:
        reason = "it is in use by another process" if error.errno == errno.EADDRINUSE else error.strerror
        _stop(f"cannot listen on {address}:{port}: {reason}; choose another with {setting}")


def _url(address: str, sock: socket.socket) -> str:
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{sock.getsockname()[1]}"


def settings_of(config: Path) -> Settings:
    """The settings, or every problem on standard error and exit 2."""
    try:
        return load(config)
    except ConfigError as error:
        for problem in error.problems:
            typer.echo(str(problem), err=True)
        raise typer.Exit(2) from None


def _stop(message: str) -> NoReturn:
    typer.echo(f"breakeven: {message}", err=True)
    raise typer.Exit(2)
