"""Upgrades from one version of the ledger's tables to the next. Imported only when there is one to make."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

from proxy.ledger.schema import HEAD


def config() -> Config:
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    made.set_main_option("path_separator", "os")
    return made


def upgrade(connection: Connection, to: str = HEAD) -> None:
    """Run the missing migrations on a connection whose transaction the caller commits or rolls back."""
    settings = config()
    settings.attributes["connection"] = connection
    command.upgrade(settings, to)
