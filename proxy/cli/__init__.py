"""The `breakeven` command. Each command is in a file of its own and imported when it is called.

Exit codes: 0 done, 1 the answer is no, 2 wrong use or a configuration that cannot be used.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click
import typer
from typer.core import TyperGroup

# name → (module, attribute, one line of help); the module is imported when the command is used.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "serve": ("proxy.cli.serve", "serve", "Run the gateway."),
    "demo": ("proxy.cli.demo", "demo", "Gateway, simulated engines, simulated API and traffic, to look at."),
    "check": ("proxy.cli.check", "check", "Validate a configuration; --live also calls every backend."),
    "calibrate": ("proxy.cli.calibrate", "calibrate", "Measure an engine of your own, for its `capacity`."),
    "explain": ("proxy.cli.explain", "explain", "Where a request of a given size would go now, and why."),
    "status": ("proxy.cli.status", "status", "A running gateway at a glance."),
    "report": ("proxy.cli.report", "report", "The savings report from the ledger."),
    "reconcile": ("proxy.cli.reconcile", "reconcile", "Our metering against a provider's bill, explained by cause."),
    "replay": ("proxy.cli.replay", "replay", "Recorded traffic against your fleet: what a policy would have saved."),
    "plan": ("proxy.cli.plan", "plan_app", "What a token costs, and whether to self-host."),
    "ledger": ("proxy.cli.ledger", "ledger_app", "Back up the ledger, verify it, correct what was booked wrong."),
    "alerts": ("proxy.cli.alerts", "alerts_app", "Send a test message to the webhooks that alerts go to."),
    "keys": ("proxy.cli.keys", "keys_app", "Create, list and revoke keys."),
    "prices": ("proxy.cli.check", "prices_app", "The price book."),
}


class LazyGroup(TyperGroup):
    """Knows every command's name; loads only the one that is called, so that `--help` and start-up are quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> Any:
        if name not in COMMANDS:
            return None
        module, attribute, help_ = COMMANDS[name]
        if "--help" in sys.argv[1:2] or len(sys.argv) == 1:  # the list of commands needs no modules
            return typer.core.TyperCommand(name, help=help_)
        target = getattr(importlib.import_module(module), attribute)
        if isinstance(target, typer.Typer):
            command = typer.main.get_command(target)
        else:
            single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
            single.command(name)(target)
            command = typer.main.get_command(single)
        command.name = name
        return command


app = typer.Typer(cls=LazyGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Send each LLM request wherever the next token is cheapest, and prove what that saved.")


@app.callback(invoke_without_command=True)
def _root(ctx: typer.Context, version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    if version:
        from proxy import __version__

        typer.echo(f"breakeven {__version__}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())
        raise typer.Exit


def main() -> None:
    """Entry point: a known problem is one sentence on standard error and exit 2, never a stack trace."""
    from proxy.core.errors import GatewayError

    try:
        app()
    except GatewayError as error:
        typer.echo(f"breakeven: {error.message}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
