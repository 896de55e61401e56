"""`breakeven alerts`: does what alerts are sent to take them?"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from proxy.config.alerts import Webhook

alerts_app = typer.Typer(no_args_is_help=True, add_completion=False, help=(
    "Alerts for people. Exit codes: 0 taken, 1 a webhook did not take it, 2 wrong use or a configuration that cannot "
    "be used."))


@alerts_app.callback()
def _root() -> None:
    """So that `test` stays a command of its own."""


@alerts_app.command()
def test(
    config: Annotated[Path, typer.Option("--config", metavar="FILE", show_default=False, help=(
        "The configuration whose `alerts` are meant."))],
) -> None:
    """Send a test message to every webhook of the configuration, once, and say who took it.

    Exit 1: a webhook did not take it, or there is none.

    Example: breakeven alerts test --config config/minimal.yaml
    """
    from proxy.cli.check_prices import load_or_exit

    settings = load_or_exit(config, secrets=True)
    if not settings.alerts.webhooks:
        typer.echo(f"breakeven alerts: {config} has no alerts.webhooks: nobody is told of anything", err=True)
        raise typer.Exit(1)
    if not asyncio.run(_send(settings.alerts.webhooks)):
        raise typer.Exit(1)


async def _send(webhooks: tuple[Webhook, ...]) -> bool:
    import aiohttp

    from proxy.server.alerts import test_message
    from proxy.server.webhooks import post

    message = test_message(time.time_ns())
    async with aiohttp.ClientSession(trust_env=False) as session:
        found = await asyncio.gather(*(post(session, one, message) for one in webhooks))
    for one, problem in zip(webhooks, found, strict=True):
        typer.echo(f"{one.name}: {problem or 'taken'}")
    return not any(found)
