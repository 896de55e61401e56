"""`breakeven check` and `breakeven prices`, as an operator calls them; --live against small honest servers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import typer
from aiohttp import web
from typer.testing import CliRunner

from proxy.cli.check import check, prices_app
from proxy.cli.check_live import call_all
from proxy.config import load

KEY = "canary-3f9a1c77"
CONFIG = """\
backends:
  llama: {{kind: vllm, url: "{engine}", model: llama-8b, gpu: {{type: L4, usd_per_hour: 0.70, from: 2026-01-01}}}}
  gpt-4o: {{kind: openai, url: "{api}", model: {model}, api_key: env:BREAKEVEN_TEST_KEY, provider: openai}}
routes:
  chat: {{backends: [llama, gpt-4o], baseline: gpt-4o}}
"""
app = typer.Typer()
app.command()(check)
app.add_typer(prices_app, name="prices")


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("BREAKEVEN_TEST_KEY", KEY)


def write(tmp_path: Path, engine: str = "http://127.0.0.1:9", api: str = "http://127.0.0.1:9", model: str = "gpt-4o",
          extra: str = "") -> Path:
    file = tmp_path / "c.yaml"
    file.write_text(extra + CONFIG.format(engine=engine, api=api, model=model))
    return file


def call(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_good_file_prints_its_backends_routes_and_prices_and_exits_0(tmp_path):
    done = call("check", write(tmp_path))
    assert done.exit_code == 0, done.output
    for piece in ("llama-8b", "0.7 USD/h", "2.5 in, 10 out USD/Mtok", "chat", "marginal-cost", "is good"):
        assert piece in done.stdout
    assert "\x1b[" not in done.output


def test_a_bad_file_is_told_on_stderr_as_compilers_do_and_exits_2(tmp_path):
    file = write(tmp_path, extra="sever: {}\n")
    done = call("check", file)
    assert done.exit_code == 2 and done.stdout == ""
    assert f"{file}:1: sever: unknown key 'sever' (did you mean 'server'?)" in done.stderr
    answer = json.loads(call("check", file, "--json").stdout)
    assert answer["ok"] is False and answer["errors"][0]["line"] == 1


def test_json_holds_warnings_and_prices(tmp_path):
    done = call("check", write(tmp_path, model="gpt-of-tomorrow"), "--json")
    answer = json.loads(done.stdout)
    assert done.exit_code == 0 and answer["ok"] is True
    assert [w["field"] for w in answer["warnings"]] == ["backends.gpt-4o.model"]
    assert [b["price"] for b in answer["backends"]] == ["0.7 USD/h", "UNKNOWN"]


def test_a_bad_price_file_makes_check_refuse(tmp_path):
    (tmp_path / "p.yaml").write_text("prices: {openai: {gpt-4o: [{from: 2026-01-01, input: 25000, source: x}]}}\n")
    done = call("check", write(tmp_path, extra=f"prices: {tmp_path}/p.yaml\n"))
    assert done.exit_code == 2 and f"{tmp_path}/p.yaml:1: prices.openai.gpt-4o[0].input: is over" in done.stderr


def test_prices_show_gives_figures_dates_sources_and_versions(tmp_path):
    done = call("prices", "show", "--config", write(tmp_path), "--at", "2026-11-01", "--json")
    default = next(p for p in json.loads(done.stdout) if p["service_tier"] == "default")
    assert default["tiers"] == [{"above_input_tokens": 0, "usd_per_mtok": {
        "input_text": "2.5", "cache_read": "1.25", "output_text": "10"}}]
    assert default["source"].startswith("genai-prices") and len(default["version"]) == 12
    assert "openai" in call("prices", "show", "--model", "gpt-4o").stdout
    assert call("prices", "show", "--model", "gpt-of-tomorrow").exit_code == 1
    assert call("prices", "show").exit_code == 2
    assert call("prices", "show", "--model", "gpt-4o", "--at", "soon").exit_code == 2


def test_prices_show_needs_no_secrets(tmp_path, monkeypatch):
    monkeypatch.delenv("BREAKEVEN_TEST_KEY")
    assert call("prices", "show", "--config", write(tmp_path)).exit_code == 0


def test_prices_diff_says_how_far_own_prices_are_from_the_list(tmp_path):
    (tmp_path / "p.yaml").write_text("prices: {openai: {gpt-4o: [{from: 2026-03-01, input: 2.25, cached_input: 1.25, "
                                     "output: 11, source: c}], other: [{from: 2026-03-01, input: 1, source: c}]}}\n")
    file = write(tmp_path, extra=f"prices: {tmp_path}/p.yaml\n")
    rows = json.loads(call("prices", "diff", "--config", file, "--json").stdout)
    assert [(r["model"], r["bucket"], r["list"], r["own"], r["difference"]) for r in rows] == [
        ("gpt-4o", "input_text", "2.5", "2.25", "-10.0 %"), ("gpt-4o", "cache_read", "1.25", "1.25", "+0.0 %"),
        ("gpt-4o", "output_text", "10", "11", "+10.0 %"), ("other", "input_text", None, "1", "not listed")]
    assert "-10.0 %" in call("prices", "diff", "--config", file).stdout


def test_prices_show_has_the_prices_of_each_step_of_a_contract(tmp_path):
    (tmp_path / "p.yaml").write_text("""\
prices: {openai: {gpt-4o: [{from: 2026-02-01, input: 2, output: 8, source: page}]}}
contracts:
  - {provider: openai, kind: volume, from: 2026-03-01, source: contract 9, steps: [{above_tokens: 1000, percent: 25}]}
""")
    file = write(tmp_path, extra=f"prices: {tmp_path}/p.yaml\n")
    rows = json.loads(call("prices", "show", "--config", file, "--model", "gpt-4o", "--json").stdout)
    [step] = [row for row in rows if row["kind"] == "volume" and row["source"].endswith(
        f"25 % off {tmp_path}/p.yaml:1 page above 1,000 tokens of the month")]
    assert step["tiers"][0]["usd_per_mtok"] == {"input_text": "1.5", "output_text": "6"} and step["version"]


def test_prices_show_and_diff_know_list_prices_and_contracts_apart(tmp_path):
    (tmp_path / "p.yaml").write_text("""\
prices: {openai: {gpt-4o: [{from: 2026-02-01, kind: list, input: 3, output: 12, source: page}]}}
discounts: [{provider: openai, percent: 20, from: 2026-03-01, until: 2026-04-01, source: contract 17}]
""")
    file = write(tmp_path, extra=f"prices: {tmp_path}/p.yaml\n")

    def shown(day):
        rows = json.loads(call("prices", "show", "--config", file, "--model", "gpt-4o", "--at", day, "--json").stdout)
        return {row["kind"]: row["tiers"][0]["usd_per_mtok"]["input_text"] for row in rows
                if row["service_tier"] == "default"}
    assert [shown(day) for day in ("2026-01-01", "2026-02-01", "2026-03-01", "2026-04-01")] == [
        {"list": "2.5"}, {"list": "3"}, {"list": "3", "contracted": "2.4"}, {"list": "3"}]
    rows = [(row["kind"], row["bucket"], row["list"], row["own"], row["difference"]) for row in json.loads(
        call("prices", "diff", "--config", file, "--json").stdout) if row["service_tier"] == "default"]
    assert rows == [("list", "input_text", "2.5", "3", "+20.0 %"), ("list", "output_text", "10", "12", "+20.0 %"),
                    ("contracted", "input_text", "3", "2.4", "-20.0 %"),
                    ("contracted", "output_text", "12", "9.6", "-20.0 %")]


class Upstream:
    """Speaks as engines and APIs do; `mood` says what is wrong with it."""

    def __init__(self) -> None:
        self.mood, self.asked = "well", []
        self.url = ""

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.append((request.method, request.path))
        if request.path == "/is_sleeping":
            return web.json_response({"is_sleeping": self.mood == "asleep"})
        if request.path == "/health":
            return web.Response(status=503 if self.mood == "loading" else 200)
        if self.mood == "redirects":
            return web.Response(status=302, headers={"location": "http://127.0.0.1:1/"})
        if self.mood == "wrong key":
            key = request.headers.get("authorization", "")
            return web.json_response({"error": {"message": f"Incorrect API key provided: {key}"}}, status=401)
        if request.path == "/v1/models":
            name = "another" if self.mood == "wrong model" else "llama-8b"
            return web.json_response({"data": [{"id": name}]})
        if self.mood == "no quota":
            return web.json_response({"error": {"message": "You exceeded your current quota"}}, status=429)
        if self.mood == "thinks":
            return web.json_response({"error": {"message": "Could not finish: output limit was reached"}}, status=400)
        if self.mood == "unknown model":
            return web.json_response({"error": {"message": "The model does not exist"}}, status=404)
        return web.json_response({"choices": [], "usage": {}})


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    served = Upstream()
    server = web.Application()
    server.router.add_route("*", "/{tail:.*}", served.handle)
    runner = web.AppRunner(server)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    served.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield served
    await runner.cleanup()


async def answers(tmp_path: Path, **urls: str):
    return {answer.backend: answer for answer in await call_all(load(write(tmp_path, **urls)))}


async def test_live_calls_health_models_and_one_token(tmp_path, upstream):
    both = await answers(tmp_path, engine=upstream.url, api=upstream.url)
    assert both["llama"].ok and both["gpt-4o"].ok, both
    assert upstream.asked.count(("POST", "/v1/chat/completions")) == 2
    assert ("GET", "/health") in upstream.asked


@pytest.mark.parametrize(("mood", "backend", "message"), [
    ("asleep", "llama", "asleep: wake it"), ("loading", "llama", "still loading"),
    ("wrong model", "llama", "does not serve llama-8b; it serves another"),
    ("wrong key", "gpt-4o", "refuses the key env:BREAKEVEN_TEST_KEY (401)"),
    ("no quota", "gpt-4o", "quota"), ("unknown model", "gpt-4o", "no model gpt-4o"), ("redirects", "gpt-4o",
     "redirects"),
])
async def test_live_says_in_plain_words_what_is_wrong(tmp_path, upstream, mood, backend, message):
    upstream.mood = mood
    answer = (await answers(tmp_path, engine=upstream.url, api=upstream.url))[backend]
    assert not answer.ok and message in answer.message
    assert KEY not in answer.message


async def test_live_takes_a_model_that_thinks_longer_than_one_token_as_good(tmp_path, upstream):
    upstream.mood = "thinks"
    assert (await answers(tmp_path, engine=upstream.url, api=upstream.url))["gpt-4o"].ok


async def test_live_explains_what_cannot_be_reached(tmp_path, unused_port: int = 9):
    both = await answers(tmp_path, engine=f"http://127.0.0.1:{unused_port}", api="http://no-such-host.invalid")
    assert "unreachable" in both["llama"].message and "unreachable" in both["gpt-4o"].message


def test_live_failures_make_check_exit_2(tmp_path):
    done = call("check", write(tmp_path), "--live")
    assert done.exit_code == 2 and "FAIL llama http://127.0.0.1:9: unreachable" in done.stderr
    assert "is good" not in done.stdout
