"""What is wrong with a configuration, and where: every problem at once, and never a secret in a message."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

Path = tuple[str | int, ...]  # where a value stands: ("backends", "gpt-4o", "url")

# Shapes of credentials in the wild: OpenAI/Anthropic, AWS, Hugging Face, Groq, xAI, Google, GitHub, Slack, JWT.
SECRET = re.compile(
    r"sk-[A-Za-z0-9_\-]{12,}|AKIA[0-9A-Z]{12,}|hf_[A-Za-z0-9]{16,}|gsk_[A-Za-z0-9]{16,}|xai-[A-Za-z0-9]{16,}"
    r"|AIza[0-9A-Za-z_\-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|xox[abpr]-[A-Za-z0-9\-]{10,}"
    r"|eyJ[A-Za-z0-9_\-]{10,}\.[A-Za-z0-9_\-]{4,}(?:\.[A-Za-z0-9_\-]*)?")
_RUN = re.compile(r"[A-Za-z0-9_+/=]{20,}")  # a long run without separators, of mixed kinds: probably a key
HIDDEN = "[hidden]"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to put right. `line` and `column` count from 1; line 0 is the file as a whole."""

    file: str
    line: int
    column: int | None
    field: str
    message: str
    hint: str | None = None

    def __str__(self) -> str:
        line = f":{self.line}" if self.line else ""
        where = f" {self.field}:" if self.field else ""
        return f"{self.file}{line}:{where} {self.message}" + (f" ({self.hint})" if self.hint else "")


class ConfigError(Exception):
    """The configuration cannot be used. `problems` says everything that is wrong with it, in file order."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


@dataclass(eq=False, slots=True)
class Source:
    """The file behind some settings, and where each value stands in it.

    All sources are equal: where a value was written is no part of what it is.
    """

    file: str
    marks: dict[Path, tuple[int, int]] = field(default_factory=dict)
    text: str = field(default="", repr=False)
    secrets: set[str] = field(default_factory=set, repr=False)  # values that no message may repeat

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Source)

    __hash__ = None  # type: ignore[assignment]

    def problem(self, path: Path, message: str, hint: str | None = None) -> Problem:
        """A problem at `path`, or at the nearest thing around it that the file holds; scrubbed."""
        known = path
        while known and known not in self.marks:
            known = known[:-1]
        line, column = self.marks.get(known, (1, 1))
        clean = self.scrub
        return Problem(self.file, line, column, clean(dotted(path)), clean(message), clean(hint) if hint else None)

    def at(self, line: int, column: int | None, message: str, hint: str | None = None, where: str = "") -> Problem:
        clean = self.scrub
        return Problem(self.file, line, column, clean(where), clean(message), clean(hint) if hint else None)

    def scrub(self, text: str) -> str:
        for secret in sorted(self.secrets, key=len, reverse=True):
            text = text.replace(secret, HIDDEN)
        text = SECRET.sub(HIDDEN, text)
        return _RUN.sub(lambda run: HIDDEN if looks_random(run[0]) else run[0], text)


def looks_random(run: str) -> bool:
    """Digits, upper and lower case in one long unbroken run: a key, not a name."""
    return bool(re.search(r"\d", run) and re.search(r"[a-z]", run) and re.search(r"[A-Z]", run))


def dotted(path: Path) -> str:
    """("routes", "gpt-4o", "backends", 0) as 'routes.gpt-4o.backends[0]'."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text.replace("\n", " ")[:200]


def shown(value: object) -> str:
    """A value as it may stand in a message: short, on one line."""
    text = " ".join(str(value).split())
    return f"'{text}'" if len(text) <= 80 else f"'{text[:77]}...'"


def in_order(problems: Iterable[Problem]) -> list[Problem]:
    """Without repetitions, in the order of the file."""
    return sorted(dict.fromkeys(problems), key=lambda p: (p.line, p.column or 0, p.field))
