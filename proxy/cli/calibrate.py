"""`breakeven calibrate`: how fast is this engine? A short ramp, and the `capacity:` block to configure it with."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from proxy.config import Backend, Settings
from proxy.config.secrets import Secret, SecretError, resolve
from proxy.core.calibration import Calibration, TooFew
from proxy.replay.files import replacing

if TYPE_CHECKING:
    from proxy.cli.calibrate_ramp import Bounds, Outcome, Tell

REFERENCES = ("env:", "file:")
GRACE_S = 90.0  # beyond --seconds: for a first token that loads a model, and for what was asked last
T = TypeVar("T")


def calibrate(
    url: Annotated[str | None, typer.Option(help="The engine itself, such as http://10.0.0.5:8000. With --config: "
                                            "another address of the backend.")] = None,
    model: Annotated[str | None, typer.Option(help="What the engine calls the model. Default: the first it lists.",
                                              show_default=False)] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="Address, model and key are in here.")] = None,
    backend: Annotated[str | None, typer.Option(help="Which backend of --config.")] = None,
    api_key: Annotated[str | None, typer.Option(metavar="env:NAME", help="Where the engine's key is, never the key "
                                                "itself.")] = None,
    seconds: Annotated[float, typer.Option(min=5, max=900, help="How long it may take. More is more exact.")] = 60,
    batch_max: Annotated[int, typer.Option(min=1, max=1024, help="Most answers at once.")] = 64,
    ttft_s_max: Annotated[float, typer.Option(min=0.1, max=300, help="A first token that takes longer ends the "
                                              "ramp.")] = 10,
    chunk_tokens: Annotated[int | None, typer.Option(min=16, max=1_048_576, help="Tokens of one iteration, vLLM: "
        "--max-num-batched-tokens. Default: the configuration's, else 2048.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write the YAML to this file.")] = None,
) -> None:
    """Measure an engine of your own with a short ramp, and print the `capacity:` block for its backend.

    It sends long prompts one by one, then 1, 2, 4, ... answers at once, for at most --seconds, and ends early
    where the engine refuses, requests wait, or a first token takes longer than --ttft-s-max. Best on an idle
    engine: others' requests are slower meanwhile, and are measured along with ours.

    Exit code 0: measured. 1: too noisy to be used, nothing is written. 2: the engine cannot be measured.
    """
    one = _backend(url, model, config, backend, api_key)
    from proxy.cli.calibrate_ramp import Bounds

    chunk = chunk_tokens or (one.capacity.chunk_tokens if one.capacity is not None else Bounds().chunk_tokens)
    bounds = Bounds(seconds, batch_max, ttft_s_max, chunk)
    address = url.rstrip("/").removesuffix("/v1") if url else one.urls[0]
    typer.echo(f"Measuring {address} for up to {seconds:g} s: prompts of up to 16,384 tokens one at a time, then up to "
               f"{batch_max} short answers at once, all with random words.", err=True)
    if output is not None and not output.resolve().parent.is_dir():
        _stop(f"{output} cannot be written: no such folder")
    outcome, model_name = _measured(one, address, bounds)
    doubts = outcome.calibration.doubts()
    block = yaml_block(outcome, model_name)
    if as_json:
        typer.echo(json.dumps(as_dict(outcome, model_name, address, doubts)))
    else:
        _show(outcome, model_name)
        if not doubts:
            typer.echo(block, nl=False)
    for note in outcome.notes:
        typer.echo(f"note: {note}", err=True)
    if doubts:
        typer.echo(f"breakeven calibrate: too noisy to be used: {'; '.join(doubts)}. Try an idle engine, a longer "
                   f"--seconds, or a machine nearer to it.", err=True)
        raise typer.Exit(1)
    if output is not None:
        _write(output, block)


def _stop(message: str, code: int = 2) -> NoReturn:
    typer.echo(f"breakeven calibrate: {message}", err=True)
    raise typer.Exit(code)


def _backend(url: str | None, model: str | None, config: Path | None, name: str | None, api_key: str | None) -> Backend:
    """Whom to measure, as a backend of a configuration, with what the command line says instead."""
    key = _key(api_key)
    if config is None:
        if name is not None:
            _stop("--backend is a name in --config FILE")
        if url is None:
            _stop("give --url ENGINE, or --config FILE and --backend NAME")
        if not url.startswith(("http://", "https://")):
            _stop("--url must begin with http:// or https://")
        return Backend.model_validate({"name": "engine", "kind": "vllm", "url": url, "model": model or "*",
                                       "gpu": {"type": "unknown", "usd_per_hour": "0"}, "api_key": key})
    found = _chosen(config, name)
    changes: dict[str, Any] = {}
    if model is not None:
        changes["model"] = model
    if key is not None:
        changes["api_key"] = key
    if url is not None and url.rstrip("/").removesuffix("/v1") not in found.urls and found.api_key and not key:
        _stop(f"the key of {found.name} is for {', '.join(found.urls)}, not for another address: give --api-key")
    return found.model_copy(update=changes)


def _chosen(config: Path, name: str | None) -> Backend:
    from proxy.cli.serve import settings_of

    settings: Settings = settings_of(config)
    engines = [backend for backend in settings.backends.values() if backend.is_gpu]
    if name is None and len(engines) == 1:
        return engines[0]
    found = next((backend for backend in engines if backend.name == name), None)
    if found is None:
        known = ", ".join(backend.name for backend in engines) or "none"
        _stop(f"{name} is no engine of this configuration; it has: {known}" if name else
              f"say which one with --backend; the configuration has: {known}")
    return found


def _key(reference: str | None) -> Secret | None:
    if reference is None:
        return None
    if not reference.startswith(REFERENCES):
        _stop("--api-key takes env:NAME or file:PATH, never the key itself: it would stay in the shell's history")
    try:
        return resolve(reference)
    except SecretError as error:
        _stop(f"--api-key: {error}" + (f" ({error.hint})" if error.hint else ""))


# ---------------------------------------------------------------- measuring


def _measured(backend: Backend, url: str, bounds: Bounds) -> tuple[Outcome, str]:
    """What the ramp found, and what the engine calls its model; every failure in words, and exit 2."""
    import aiohttp

    from proxy.cli.calibrate_engine import Engine, Refused, TooLate, said
    from proxy.cli.calibrate_ramp import Ramp
    from proxy.cli.check_live import Failed

    async def measure(tell: Tell) -> tuple[Outcome, str]:
        async with aiohttp.ClientSession(trust_env=False, auto_decompress=False,
                                         connector=aiohttp.TCPConnector(limit=0)) as session:
            engine = Engine(session, backend, url)
            try:
                return await Ramp(engine, bounds, tell).run(), engine.model
            except TooFew as error:
                _stop(f"too little to be used: {error}; give it more time with --seconds", code=1)
            except (Failed, Refused, TooLate, aiohttp.ClientError, TimeoutError) as error:
                _stop(f"{url}: {engine.scrub(said(error))}")

    with _progress() as tell:
        try:
            outcome, model = asyncio.run(_within(bounds.seconds + GRACE_S, measure(tell)))
        except TimeoutError:
            _stop(f"{url}: not done {GRACE_S:g} s after the {bounds.seconds:g} s it was given; an answer never ends")
    return outcome, model


async def _within(seconds: float, measuring: Coroutine[Any, Any, T]) -> T:
    async with asyncio.timeout(seconds):
        return await measuring


@contextmanager
def _progress() -> Iterator[Tell]:
    """A bar on standard error, where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda what, share: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(BarColumn(24), TimeElapsedColumn(), TextColumn("{task.description}", markup=False),
                  console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=1.0)
        yield lambda what, share: progress.update(task, description=what, completed=share)


# ---------------------------------------------------------------- what is shown and written


def _show(outcome: Outcome, model: str) -> None:
    from rich.console import Console
    from rich.table import Table

    found = outcome.calibration
    table = Table("", "measured", "±", "", box=None, header_style="bold", pad_edge=False,
                  title=f"{model}, {outcome.requests} requests in {outcome.seconds:.0f} s", title_justify="left")
    for name, figure, factor, unit in (
            ("prefill", found.prefill_tokens_per_s, 1, "prompt tokens per second"),
            ("alpha", found.alpha_s, 1e3, "ms per step"), ("beta", found.beta_s, 1e3, "ms per step and sequence"),
            ("kappa", found.kappa_s, 1e6, "ms per step and 1,000 KV tokens"),
            ("overhead", found.overhead_s, 1e3, "ms of a first token, network included")):
        table.add_row(name, _short(figure.value * factor), _short(figure.error * factor), unit)
    table.add_row("KV cache", f"{outcome.kv_tokens:,}", "", f"tokens: {outcome.kv_from}")
    table.add_row("batch", f"{outcome.max_running}", "", f"sequences: {outcome.running_from}")
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    console.print(table, markup=False)
    typer.echo(f"steps fit within {found.step_residual:.1%}, first tokens within {found.prefill_residual:.1%}; timed "
               f"up to {outcome.batch} at once; ended because {outcome.stopped}\n")


def yaml_block(outcome: Outcome, model: str) -> str:
    """The `capacity:` block, to be indented under its backend."""
    found, at = outcome.calibration, datetime.now(UTC)
    step = ", ".join(map(_short, _step_ms(found, "value")))
    ranges = ", ".join(f"± {_short(error)}" for error in _step_ms(found, "error"))
    return (f"# breakeven calibrate, {at:%Y-%m-%d %H:%M} UTC: {' '.join(model.split())}, {outcome.requests} requests, "
            f"{outcome.seconds:.0f} s, up to {outcome.batch} at once\n"
            f"capacity:\n"
            f"  prefill_tokens_per_s: {_short(found.prefill_tokens_per_s.value)}  # ± "
            f"{_short(found.prefill_tokens_per_s.error)}\n"
            f"  step_ms: [{step}]  # {ranges}\n"
            f"  kv_tokens: {outcome.kv_tokens}  # {outcome.kv_from}\n"
            f"  max_running: {outcome.max_running}  # {outcome.running_from}\n"
            f"  chunk_tokens: {found.chunk_tokens}  # not measured: --max-num-batched-tokens\n")


def as_dict(outcome: Outcome, model: str, url: str, doubts: list[str]) -> dict[str, Any]:
    """All of it, for programs. `errors` are standard errors, in the units of `capacity`."""
    found = outcome.calibration
    return {
        "ok": not doubts, "doubts": doubts, "url": url, "model": model,
        "capacity": {"prefill_tokens_per_s": round(found.prefill_tokens_per_s.value, 3),
                     "step_ms": _step_ms(found, "value"), "kv_tokens": outcome.kv_tokens,
                     "max_running": outcome.max_running, "chunk_tokens": found.chunk_tokens},
        "errors": {"prefill_tokens_per_s": round(found.prefill_tokens_per_s.error, 3),
                   "step_ms": _step_ms(found, "error")},
        "overhead_ms": round(found.overhead_s.value * 1e3, 3),
        "residuals": {"step": round(found.step_residual, 4), "prefill": round(found.prefill_residual, 4)},
        "kv_tokens_from": outcome.kv_from, "max_running_from": outcome.running_from, "stopped": outcome.stopped,
        "batch": outcome.batch, "seconds": round(outcome.seconds, 1), "requests": outcome.requests,
        "tokens": outcome.tokens, "notes": outcome.notes,
    }


def _step_ms(found: Calibration, part: str) -> list[float]:
    """Alpha, beta and kappa, or their errors, as `step_ms` has them."""
    figures = ((found.alpha_s, 1e3), (found.beta_s, 1e3), (found.kappa_s, 1e6))
    return [round(getattr(figure, part) * factor, 5) for figure, factor in figures]


def _short(value: float) -> str:
    """Four significant digits, never as a power of ten."""
    return format(Decimal(f"{value:.4g}"), "f")


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    try:
        with replacing(path) as out:
            out.write(text)
    except OSError as error:
        _stop(f"{path} cannot be written: {error.strerror}")
    typer.echo(f"written to {path}", err=True)
