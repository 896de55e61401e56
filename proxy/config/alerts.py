"""Alerts for people: whom to tell, and of what."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, Field, PlainSerializer, ValidationInfo

from proxy.config.address import url_fault
from proxy.config.backend import ApiKey
from proxy.config.fields import FROZEN, Bool, Float, Int, refuse, setting
from proxy.config.secrets import Secret, SecretError, resolve, unresolved


def _address(value: object, info: ValidationInfo) -> Secret:
    """An address is as secret as a key: whoever has a chat's webhook can write there. It is kept as one, wherever it
    comes from, and never shown."""
    if not isinstance(value, str | Secret):
        raise refuse("text", "must be an address", "https://..., env:NAME or file:PATH")
    if isinstance(value, str) and not value.startswith(("env:", "file:")):
        return Secret(value, "the configuration")
    try:
        context = info.context or {}
        return resolve(value, context.get("env")) if context.get("secrets", True) else unresolved(value)
    except SecretError as error:
        raise refuse("secret", str(error), error.hint or "") from None


def webhook_fault(url: str) -> tuple[str, str | None] | None:
    """Why nothing may be sent to `url`, as (message, hint); None where it may."""
    if fault := url_fault(url.partition("?")[0], path=True):
        return fault
    parts = urlsplit(url)
    if parts.fragment:
        return "must not have a fragment", None
    if parts.scheme != "https" and not _loopback(parts.hostname or ""):
        return "must be https://, or of this machine", "figures about money do not cross a network in clear"
    return None


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Webhook(BaseModel):
    """One place that alerts are sent to."""

    model_config = FROZEN

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._\-]{0,63}$")] = setting(
        ..., "Name", "As metrics and `breakeven alerts test` call it.")
    url: Annotated[Secret, BeforeValidator(_address), PlainSerializer(lambda s: s.reference)] = setting(
        ..., "Address", "https, or of this machine. env:NAME or file:PATH where it is a secret itself, as Slack's are.",
        unit="URL")
    format: Literal["json", "slack"] = setting("json", "Form of the message", "slack for Slack's incoming webhooks, "
        "and for what takes the same (Mattermost, Rocket.Chat).")
    secret: ApiKey = setting(None, "Signing key", "env:NAME or file:PATH. Messages then carry an HMAC of their body, "
        "so that the receiver knows who sends.")


class Alerts(BaseModel):
    """What people are told of. Nothing is looked at without a webhook."""

    model_config = FROZEN

    webhooks: tuple[Webhook, ...] = setting((), "Whom to tell", "Each gets every alert, once when it begins and once "
        "when it is over.", max_length=16)
    budget_percent: tuple[Annotated[Int, Field(ge=1, le=100)], ...] = setting(
        (50, 80, 100), "Shares of a budget", "When what is spent of a budget (a key's, route's or tag's, or "
        "api_spend_max) reaches so much. Empty: never.", unit="percent", max_length=8)
    savings_negative_hours: Int | None = setting(
        24, "Savings below zero", "When the report of the last so many hours is negative; null for never. Long enough "
        "for a night to be made up for by a day.", unit="hours", ge=1, le=744)
    below_breakeven_hours: Int | None = setting(
        6, "Fleet below breakeven", "When in each of the last so many whole hours the GPUs cost more than the API "
        "would have charged for what they served; null for never.", unit="hours", ge=1, le=744)
    reconciliation: Bool = setting(True, "A bill that does not agree", "When the newest `breakeven reconcile` of a "
        "provider is not within its tolerance.")
    check_s: Float = setting(60.0, "How often it is looked", "Less often where the ledger is large.", unit="seconds",
        ge=1, le=3600)
