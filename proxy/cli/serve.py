"""`breakeven serve`: the gateway."""

from __future__ import annotations

import errno
import gc
from pathlib import Path
from typing import Annotated

import typer

from proxy.config import ConfigError, Settings, load, warnings
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

    address, number = host or settings.server.host, settings.server.port if port is None else port
    if not settings.keys.required and address not in ("127.0.0.1", "::1", "localhost"):
        _stop(f"keys are not required, so {address} is refused; use 127.0.0.1 or set keys.required: true")
    try:
        sock = main.listen(address, number)
    except OSError as error:
        reason = "it is in use by another process" if error.errno == errno.EADDRINUSE else error.strerror
        _stop(f"cannot listen on {address}:{number}: {reason}; choose another with server.port or --port")
    with sock:
        where = f"http://{address}:{sock.getsockname()[1]}"
        gc.freeze()  # what was loaded to start stays; no need to look at it again
        try:
            main.run(settings, sock, lambda: typer.echo(f"Breakeven is listening on {where} (base URL {where}/v1)"))
        except LedgerUnavailable as error:
            _stop(error.message)


def settings_of(config: Path) -> Settings:
    """The settings, or every problem on standard error and exit 2."""
    try:
        return load(config)
    except ConfigError as error:
        for problem in error.problems:
            typer.echo(str(problem), err=True)
        raise typer.Exit(2) from None


def _stop(message: str) -> None:
    typer.echo(f"breakeven: {message}", err=True)
    raise typer.Exit(2)
