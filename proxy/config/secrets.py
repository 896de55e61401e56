"""Secrets: only as `env:NAME` or `file:PATH`, wrapped on arrival, never shown.

A `Secret` prints as the place it came from. Its value comes out of `.reveal()` alone.
"""

from __future__ import annotations

import hmac
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

SECRET_BYTES_MAX = 65_536
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


class Secret:
    """A value that must not be seen. `reference` says where it came from ('env:OPENAI_API_KEY')."""

    __slots__ = ("_value", "reference")

    def __init__(self, value: str, reference: str = "") -> None:
        object.__setattr__(self, "_value", value)
        object.__setattr__(self, "reference", reference)

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return f"Secret({self.reference or '***'})"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(repr(self), spec)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("a Secret does not change")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled or copied to another process")

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Secret:
        return self


class SecretError(ValueError):
    """A reference that yields no secret. The message names the variable or file, never a value."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


def resolve(reference: object, env: Mapping[str, str] | None = None) -> Secret:
    """The secret that `env:NAME` or `file:PATH` points at; SecretError where it yields none."""
    if isinstance(reference, Secret):
        return reference
    scheme, _, rest = reference.partition(":") if isinstance(reference, str) else ("", "", "")
    if scheme == "env":
        return _from_env(rest, os.environ if env is None else env)
    if scheme == "file":
        return _from_file(rest)
    raise SecretError("a secret must not be written in the file", "write env:NAME or file:/path/to/secret")


def unresolved(reference: object) -> Secret:
    """A stand-in that knows where its value would come from, for commands that call nobody."""
    if isinstance(reference, str) and reference.startswith(("env:", "file:")):
        return Secret("", reference)
    return resolve(reference)


def _from_env(name: str, env: Mapping[str, str]) -> Secret:
    if not _ENV_NAME.match(name):
        raise SecretError("env: must be followed by the name of a variable", "such as env:OPENAI_API_KEY")
    value = env.get(name)
    if value is None:
        raise SecretError(f"environment variable {name} is not set", f"export {name}=... before starting")
    return _usable(value, f"environment variable {name}", f"env:{name}")


def _from_file(name: str) -> Secret:
    if not name or "\0" in name:
        raise SecretError("file: must be followed by a path", "such as file:/run/secrets/openai")
    try:
        with Path(name).open("rb") as stream:
            raw = stream.read(SECRET_BYTES_MAX + 1)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise SecretError(f"file {name} cannot be read: {reason}",
                          "relative paths start at the working directory") from None
    if len(raw) > SECRET_BYTES_MAX:
        raise SecretError(f"file {name} is over {SECRET_BYTES_MAX} bytes, too long for a secret")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise SecretError(f"file {name} is not text") from None
    return _usable(text, f"file {name}", f"file:{name}")


def _usable(value: str, place: str, reference: str) -> Secret:
    value = value.strip()
    if not value:
        raise SecretError(f"{place} is empty")
    if any(not 32 < ord(c) < 127 for c in value):
        raise SecretError(f"{place} holds spaces, line breaks or other characters that no key has")
    return Secret(value, reference)
