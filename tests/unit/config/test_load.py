"""A configuration is taken whole or refused whole: every problem at once, with its line, and never a secret."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path

import pytest

from proxy.config import ConfigError, Secret, Settings, load, warnings
from proxy.config.backend import DatedRate

ENV = {"KEY": "canary-3f9a1c", "EMPTY": "", "BROKEN": "two words"}
NS_2026 = 1_767_225_600_000_000_000

GOOD = """\
server: {port: 8000}
report: {time_zone: UTC}
electricity: {usd_per_kwh: 0.12}
backends:
  llama:
    kind: vllm
    url: http://10.0.0.5:8000
    model: llama-8b
    gpu: {type: L4, usd_per_hour: 0.70, from: 2026-01-01}
  gpt-4o:
    kind: openai
    model: gpt-4o
    api_key: env:KEY
routes:
  chat:
    backends: [llama, gpt-4o]
    baseline: gpt-4o
"""


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "c.yaml"
    file.write_text(text, "utf-8")
    return file


def loaded(tmp_path: Path, text: str = GOOD) -> Settings:
    return load(write(tmp_path, text), ENV)


def problems(tmp_path: Path, text: str):
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text)
    return caught.value.problems


# what is replaced in GOOD, by what, and then: line, field, a piece of the message, a piece of the hint
BAD = [
    ("server: {port: 8000}", "server: {prot: 8000}", 1, "server.prot", "unknown key 'prot'", "did you mean 'port'?"),
    ("server: {port: 8000}", "sever: {port: 8000}", 1, "sever", "unknown key", "did you mean 'server'?"),
    ("port: 8000", "port: '8000'", 1, "server.port", "whole number", "quotes"),
    ("port: 8000", "port: 80000", 1, "server.port", "at most 65535", None),
    ("port: 8000", "workers: 65", 1, "server.workers", "at most 64", None),
    ("{port: 8000}", "{workers: 2}\nledger: memory://", 2, "ledger", "several workers", "sqlite:///"),
    ("port: 8000", "drain_s: 1:30", 1, "server.drain_s", "must be a number", None),
    ("port: 8000", "drain_s: .inf", 1, "server.drain_s", "must be a number", None),
    ("port: 8000", "host: 'a b'", 1, "server.host", "no address", "127.0.0.1"),
    ("time_zone: UTC", "time_zone: Berlin", 2, "report.time_zone", "no such time zone", "Europe/Berlin"),
    ("time_zone: UTC", "time_zone: ../etc/passwd", 2, "report.time_zone", "no such time zone", None),
    ("time_zone: UTC", "currency: EUR", 2, "report.exchange_rates", "EUR needs rates", "per_usd"),
    ("time_zone: UTC", "currency: ERU", 2, "report.currency", "no such currency: 'ERU'", "ISO 4217"),
    ("time_zone: UTC", "currency: eur", 2, "report.currency", "no such currency", "did you mean 'EUR'?"),
    ("time_zone: UTC", "exchange_rates: [{from: 2026-10-01, per_usd: 1, source: x}]", 2, "report.exchange_rates",
     "another currency than USD", "report.currency"),
    *[("time_zone: UTC", f"currency: EUR, exchange_rates: [{rates}]", 2, f"report.exchange_rates{at}", words, hint)
      for rates, at, words, hint in [
          ("{from: 2026-10-01, per_usd: 0.9217}", "[0].source", "is missing", "Where it is from"),
          ("{from: 2026-10-01, per_usd: 0, source: x}", "[0].per_usd", "more than 0", None),
          ("{from: 2026-10-01, per_usd: 0.1234567891, source: x}", "[0].per_usd", "more than 9 decimals", "round"),
          ("{from: 2026-10-01, per_usd: 1e9, source: x}", "[0].per_usd", "at most 100000000", None),
          ("{from: 2026-10-01, per_usd: .nan, source: x}", "[0].per_usd", "must be a number", None),
          ("{from: 2026-10-01T12:00:00, per_usd: 1, source: x}", "[0].from", "whole day", None),
          ("{from: 2026-10-01, per_usd: 1, source: x}, {from: 2026-10-01, per_usd: 2, source: y}", "[1].from",
           "begin on the same day", None),
          ("{from: 2026-10-01, usd_per: 1, source: x}", "[0].usd_per", "unknown key", "per_usd")]],
    ("{time_zone: UTC}", "UTC", 2, "report", "must be a mapping", "indent"),
    ("usd_per_kwh: 0.12", "usd_per_kwh: 12", 3, "electricity.usd_per_kwh", "at most 10", None),
    ("electricity:", "state: redis://localhost:6379/0\nelectricity:", 3, "state", "not built yet", "memory://"),
    ("electricity:", "ledger: postgresql://u@h/d\nelectricity:", 3, "ledger", "not built yet", "sqlite:///"),
    ("electricity:", "ledger: data/ledger.db\nelectricity:", 3, "ledger", "must be sqlite:///PATH", None),
    ("electricity:", "prices: nowhere.yaml\nelectricity:", 3, "prices", "there is no file", "working directory"),
    ("electricity:", "keys: {required: no}\nserver2: 1\nelectricity:", 4, "server2", "unknown key", "'server'"),
    ("electricity:", "version: 2\nelectricity:", 3, "version", "version 1", None),
    ("electricity:", "overheads: [{name: x, usd_per_month: 1, from: 2026-02-01, until: 2026-01-01}]\nelectricity:", 3,
     "overheads[0].until", "after from", None),
    ("electricity:", "overheads: [{name: x, usd_per_month: 1, from: 2026-02-30}]\nelectricity:", 3,
     "overheads[0].from", "no date", "2026-01-31"),
    ("kind: vllm", "kind: vlm", 6, "backends.llama.kind", "'vlm' is not one of", "did you mean 'vllm'?"),
    ("    kind: vllm\n", "", 5, "backends.llama.kind", "kind is missing", None),
    ("http://10", "10", 7, "backends.llama.url", "must begin with http", "http://"),
    ("http://10.0.0.5:8000", "http://u:canary-3f9a1c@10.0.0.5", 7, "backends.llama.url", "must not carry a user",
     "env:NAME"),
    ("http://10.0.0.5:8000", "http://10.0.0.5:8000/?key=1", 7, "backends.llama.url", "query", None),
    ("http://10.0.0.5:8000", "http://10.0.0.5:99999", 7, "backends.llama.url", "is no URL", None),
    ("http://10.0.0.5:8000", "http://10.0.0.5/v1/chat/completions", 7, "backends.llama.url", "not that of one endpoint",
     None),
    ("    url: http://10.0.0.5:8000\n", "", 5, "backends.llama.url", "url is missing", "vllm server"),
    ("    url: http://10.0.0.5:8000\n", "    urls: [http://a:1, http://a:1/]\n", 7, "backends.llama.urls[1]", "twice",
     None),
    ("model: llama-8b", "model: 8", 8, "backends.llama.model", "must be text", "quotes"),
    ("    gpu: {type: L4, usd_per_hour: 0.70, from: 2026-01-01}\n", "", 5, "backends.llama.gpu", "needs gpu",
     "usd_per_hour"),
    ("usd_per_hour: 0.70, ", "", 9, "backends.llama.gpu.usd_per_hour", "is missing", "USD per hour"),
    ("usd_per_hour: 0.70", "usd_per_huor: 0.70", 9, "backends.llama.gpu.usd_per_huor", "unknown key", "'usd_per_hour'"),
    ("usd_per_hour: 0.70", "usd_per_hour: $0.70", 9, "backends.llama.gpu.usd_per_hour", "must be a number", "currency"),
    ("usd_per_hour: 0.70", "usd_per_hour: -1", 9, "backends.llama.gpu.usd_per_hour", "at least 0", None),
    ("from: 2026-01-01", "from: 2026-01-01, until: 2025-01-01", 9, "backends.llama.gpu.until", "after from", None),
    ("usd_per_hour: 0.70, from: 2026-01-01", "usd_per_hour: [{from: 2026-01-01, until: 2026-03-01, usd_per_hour: 1}, "
     "{from: 2026-02-01, usd_per_hour: 2}]", 9, "backends.llama.gpu.usd_per_hour[1].from", "overlaps", "until"),
    ("usd_per_hour: 0.70,", "usd_per_hour: [{from: 2026-01-01, usd_per_hour: 1}],", 9, "backends.llama.gpu.from",
     "already", "take it away"),
    ("from: 2026-01-01", "from: 0206-01-01", 9, "backends.llama.gpu.from", "year must be within 2000", None),
    ("port: 8000", "drain_s: 1.0e+999", 1, "server.drain_s", "finite", None),
    ("type: L4,", "type: L4, energy: metered,", 9, "backends.llama.gpu.energy", "watts, dcgm_url or nvml", "included"),
    ("    gpu: {type: L4",
     "    capacity: {prefill_tokens_per_s: 9, step_ms: [1, 1, 1], kv_tokens: 5}\n    gpu: {type: L4",
     9, "backends.llama.capacity.max_running", "is missing", "sequences"),
    ("kind: openai", "kind: openai\n    gpu: {type: L4, usd_per_hour: 1}", 12, "backends.gpt-4o.gpu", "has no gpu",
     "vllm"),
    ("env:KEY", "canary-3f9a1c", 13, "backends.gpt-4o.api_key", "must not be written", "env:NAME"),
    ("env:KEY", "env:NO_SUCH", 13, "backends.gpt-4o.api_key", "variable NO_SUCH is not set", "export NO_SUCH"),
    ("env:KEY", "env:EMPTY", 13, "backends.gpt-4o.api_key", "EMPTY is empty", None),
    ("env:KEY", "env:BROKEN", 13, "backends.gpt-4o.api_key", "characters that no key has", None),
    ("env:KEY", "file:/no/such/file", 13, "backends.gpt-4o.api_key", "cannot be read", "working directory"),
    ("env:KEY", "env:KEY\n    forward_headers: [cookie]", 14, "backends.gpt-4o.forward_headers[0]", "never passed on",
     None),
    ("env:KEY", "env:KEY\n    forward_headers: [X-Trace]", 14, "backends.gpt-4o.forward_headers[0]", "no name",
     "lower"),
    ("env:KEY", "env:KEY # was sk-canary3f9a1c0123456789", 13, "backends.gpt-4o.api_key", "looks like a secret",
     "replace"),
    ("env:KEY", "env:KEY\n    capabilities: [chat, tool]", 14, "backends.gpt-4o.capabilities[1]", "not one of",
     "'tools'"),
    ("[llama, gpt-4o]", "[lama, gpt-4o]", 16, "routes.chat.backends[0]", "no backend named 'lama'", "'llama'"),
    ("[llama, gpt-4o]", "[]", 16, "routes.chat.backends", "at least 1", None),
    ("[llama, gpt-4o]", "llama", 16, "routes.chat.backends", "must be a list", "[a, b]"),
    ("    baseline: gpt-4o\n", "", 15, "routes.chat.baseline", "baseline is missing", "API backend"),
    ("baseline: gpt-4o", "baseline: llama", 17, "routes.chat.baseline", "no commercial API", "gpt-4o"),
    ("baseline: gpt-4o", "baseline: gpt4o", 17, "routes.chat.baseline", "no backend named", "'gpt-4o'"),
    ("baseline: gpt-4o", "baseline: gpt-4o\n    policy: marginal_cost", 18, "routes.chat.policy", "not one of",
     "'marginal-cost'"),
    ("[llama, gpt-4o]", "[gpt-4o]\n    policy: self-hosted-only", 17, "routes.chat.policy", "no engine", None),
    ("[llama, gpt-4o]", "[llama]\n    policy: api-only", 17, "routes.chat.policy", "no commercial API", None),
    ("baseline: gpt-4o", "baseline: gpt-4o\n    residency: eu", 18, "routes.chat.residency", "no backend", "region"),
    ("baseline: gpt-4o", "baseline: gpt-4o\n    thresholds: {utilization_max: 0.8, utilization_resume: 0.9}", 18,
     "routes.chat.thresholds.utilization_resume", "below utilization_max", None),
    ("baseline: gpt-4o", "baseline: gpt-4o\n    thresholds: {kv_cache_max: 95}", 18,
     "routes.chat.thresholds.kv_cache_max", "at most 1", None),
    ("baseline: gpt-4o", "baseline: gpt-4o\n    wait_ms_max: never", 18, "routes.chat.wait_ms_max", "whole number",
     None),
    ("baseline: gpt-4o", "baseline: gpt-4o\n  talk: {backends: [gpt-4o], baseline: gpt-4o, aliases: [chat]}", 18,
     "routes.talk.aliases[0]", "already names route 'chat'", "one route"),
    ("  chat:", "  chat-*:", 15, "routes.chat-*", "no pattern", "aliases"),
    ("  chat:", "  'my chat':", 15, "routes.my chat", "no name", "spaces"),
    ("baseline: gpt-4o", "baseline: gpt-4o\n    baseline: gpt-4o", 18, "routes.chat.baseline", "given twice",
     "line 17"),
    ("    baseline: gpt-4o", "\tbaseline: gpt-4o", 17, "", "tab", "spaces"),
    ("    baseline: gpt-4o", "    baseline: a: b", 17, "", "not valid YAML", "quote"),
    ("    baseline: gpt-4o", "    baseline: *gpt", 17, "", "not valid YAML", "quote"),
    ("baseline: gpt-4o", "baseline: !!python/name:os.system gpt-4o", 17, "routes.chat.baseline", "tag", None),
]


@pytest.mark.parametrize(("old", "new", "line", "field", "message", "hint"), BAD)
def test_a_mistake_is_told_with_its_line_its_field_and_what_to_do(tmp_path, old, new, line, field, message, hint):
    assert old in GOOD
    found = problems(tmp_path, GOOD.replace(old, new, 1))
    hit = [p for p in found if p.line == line and p.field == field and message in p.message]
    assert hit, "\n".join(map(str, found))
    assert hint is None or hint in (hit[0].hint or ""), hit[0]
    assert len(found) <= 2, "one mistake is told once: " + "\n".join(map(str, found))
    assert "3f9a1c" not in "\n".join(map(str, found))


def test_all_problems_are_told_at_once_in_the_order_of_the_file(tmp_path):
    text = (GOOD.replace("port:", "prot:").replace("UTC", "Nowhere").replace("vllm", "vlm")
            .replace("env:KEY", "env:NO_SUCH").replace("[llama, gpt-4o]", "[lama, gpt-4o]"))
    found = problems(tmp_path, text)
    assert [p.line for p in found] == [1, 2, 6, 13, 16]


def test_a_good_file_loads_with_its_defaults_filled_in(tmp_path):
    settings = loaded(tmp_path)
    llama, api = settings.backends["llama"], settings.backends["gpt-4o"]
    assert (settings.server.host, settings.server.drain_s, settings.keys.required) == ("127.0.0.1", 120.0, True)
    assert (llama.name, llama.urls, llama.is_gpu, llama.on_client_abort) == (
        "llama", ("http://10.0.0.5:8000",), True, "cancel")
    assert (api.urls, api.is_api, api.provider, api.on_client_abort) == (
        ("https://api.openai.com",), True, "openai", "drain")
    assert llama.gpu is not None and llama.gpu.rates == (DatedRate(NS_2026, None, Decimal("0.70")),)
    assert settings.routes["chat"].thresholds.kv_cache_max == 0.95
    assert warnings(settings) == []


def test_settings_are_frozen_and_equal_wherever_they_were_written(tmp_path):
    settings = loaded(tmp_path)
    with pytest.raises(ValueError, match="frozen"):
        settings.server.port = 1
    assert settings == loaded(tmp_path, "# moved\n" + GOOD)
    assert settings != loaded(tmp_path, GOOD.replace("8000}", "8001}"))


def test_money_is_read_from_the_text_and_never_through_a_float(tmp_path):
    settings = loaded(tmp_path, GOOD.replace("0.70", "0.70000000000000000001"))
    gpu = settings.backends["llama"].gpu
    assert gpu is not None and gpu.usd_per_hour == Decimal("0.70000000000000000001")


def test_a_dated_rate_card_ends_each_price_where_the_next_begins(tmp_path):
    card = "[{from: 2026-02-01T12:00:00+02:00, usd_per_hour: 2}, {from: 2026-01-01, usd_per_hour: 1}]"
    gpu = loaded(tmp_path, GOOD.replace("0.70, from: 2026-01-01", card)).backends["llama"].gpu
    second = int(dt.datetime(2026, 2, 1, 10, tzinfo=dt.UTC).timestamp()) * 1_000_000_000
    assert gpu is not None
    assert gpu.rates == (DatedRate(NS_2026, second, Decimal(1)), DatedRate(second, None, Decimal(2)))


def test_v1_at_the_end_of_an_address_is_dropped(tmp_path):
    settings = loaded(tmp_path, GOOD.replace("http://10.0.0.5:8000", "http://10.0.0.5:8000/v1/"))
    assert settings.backends["llama"].urls == ("http://10.0.0.5:8000",)


def test_a_secret_never_shows_and_still_reveals(tmp_path):
    settings = loaded(tmp_path)
    secret = settings.backends["gpt-4o"].api_key
    assert isinstance(secret, Secret) and secret.reveal() == "canary-3f9a1c"
    for seen in (repr(settings), str(secret), f"{secret}", f"{secret!r:>40}", settings.model_dump_json(),
                 str(settings.model_dump()), str(settings.source)):
        assert "3f9a1c" not in seen
    assert secret == Secret("canary-3f9a1c") and secret != Secret("other")


def test_a_secret_from_a_file_loses_its_line_break(tmp_path):
    (tmp_path / "key").write_text("canary-3f9a1c\n")
    settings = loaded(tmp_path, GOOD.replace("env:KEY", f"file:{tmp_path}/key"))
    assert settings.backends["gpt-4o"].api_key == Secret("canary-3f9a1c")


def test_commands_that_call_nobody_need_no_secrets(tmp_path):
    settings = load(write(tmp_path, GOOD), {}, secrets=False)
    assert str(settings.backends["gpt-4o"].api_key) == "Secret(env:KEY)"


def test_no_error_carries_the_secret_in_its_chain(tmp_path):
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, GOOD.replace("env:KEY", "canary-3f9a1c").replace("port: 8000", "prot: 1"))
    error: BaseException | None = caught.value
    while error is not None:
        assert "3f9a1c" not in f"{error!r} {error}"
        error = error.__cause__ or error.__context__


def test_keys_are_required_where_others_can_reach_the_gateway(tmp_path):
    open_host = GOOD.replace("port: 8000", "host: 0.0.0.0")
    assert loaded(tmp_path, open_host).server.host == "0.0.0.0"
    found = problems(tmp_path, open_host + "keys: {required: false}\n")
    assert [(p.line, p.field) for p in found] == [(18, "keys.required")]
    for host in ("127.0.0.1", "::1", "localhost"):
        assert not loaded(tmp_path, GOOD.replace("port: 8000", f"host: '{host}'")
                          + "keys: {required: false}\n").keys.required


def test_anchors_and_merge_keys_are_fine_and_own_keys_win(tmp_path):
    text = GOOD.replace("    kind: vllm", "    &engine\n    kind: vllm").replace("  llama:\n    &engine",
     "  llama: &engine")
    text = text.replace("routes:", "  second:\n    <<: *engine\n    url: http://10.0.0.6:8000\nroutes:")
    second = loaded(tmp_path, text).backends["second"]
    assert (second.name, second.urls, second.model) == ("second", ("http://10.0.0.6:8000",), "llama-8b")


@pytest.mark.parametrize(("text", "message"), [
    ("", "is empty"),
    ("# nothing\n", "is empty"),
    ("[1, 2]", "must be a mapping"),
    ("a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n" + "".join(
        f"k{n}: &k{n} [{', '.join(['*' + (f'k{n - 1}' if n else 'c')] * 9)}]\n" for n in range(9)), "expand to more"),
    ("a: &a [*a]", "contains itself"),
    ("a: &a\n  <<: *a\n", "contains itself"),
    ("[" * 40 + "]" * 40, "nested deeper"),
    ("[" * 100_000, "nested deeper"),
    ("a: [" + "1," * 110_000 + "]", "too many values"),
    ("a: 1\n---\nb: 2\n", "not valid YAML"),
    ("? [a, b]\n: 1\n", "plain name"),
    ("a: \x07", "character"),
])
def test_what_is_no_configuration_is_refused_quickly(tmp_path, text, message):
    assert any(message in p.message for p in problems(tmp_path, text))


def test_a_file_too_long_missing_or_not_text_is_refused(tmp_path):
    (tmp_path / "long.yaml").write_text("#" * 1_100_000)
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nb: \xe9\n")
    for name, message in [("long.yaml", "over 1 MiB"), ("latin.yaml", "not UTF-8"), ("none.yaml", "cannot be read"),
                          (".", "cannot be read")]:
        with pytest.raises(ConfigError, match=message):
            load(tmp_path / name, ENV)


def test_names_come_before_aliases_aliases_before_globs_and_the_rest_goes_to_the_star(tmp_path):
    api = "backends: [gpt-4o], baseline: gpt-4o"
    settings = loaded(tmp_path, GOOD + f"""\
  "*": {{{api}}}
  first: {{{api}, aliases: ["gpt-*", "exact"]}}
  second: {{{api}, aliases: ["gpt-4*", "gpt-4-turbo"]}}
  gpt-9: {{{api}}}
""")
    asked = {"chat": "chat", "gpt-9": "gpt-9", "exact": "first", "gpt-4-turbo": "second", "gpt-4o": "first",
             "mistral": "*", "CHAT": "*"}
    assert {name: route.name for name in asked if (route := settings.routing.find(name))} == asked
    assert settings.routing.find("x" * 300) is None
    assert loaded(tmp_path).routing.find("unknown") is None


WARNED = [
    ("usd_per_hour: 0.70, from: 2026-01-01", "usd_per_hour: 0.70", "backends.llama.gpu", "first start"),
    ("usd_per_hour: 0.70", "usd_per_hour: 0", "backends.llama.gpu.usd_per_hour", "0 USD"),
    ("type: L4,", "type: L4, watts: 70,", "backends.llama.gpu.watts", "no effect"),
    ("    url: http://10.0.0.5:8000", "    urls: [http://a:1, http://b:1]", "backends.llama.gpu.count", "2 replicas"),
    ("baseline: gpt-4o", "baseline: gpt-4o\n    thresholds: {gpu_util_max: 0.9}", "routes.chat.thresholds.gpu_util_max",
     "long before"),
    ("baseline: gpt-4o", "baseline: gpt-4o\n    thresholds: {utilization_max: 0.9}",
     "routes.chat.thresholds.utilization_max", "paid anyway"),
    ("[llama, gpt-4o]", "[gpt-4o]", "backends.llama", "no route"),
    ("[llama, gpt-4o]", "[llama]", "routes.chat.backends", "503"),
    ("kind: openai", "kind: openai\n    url: http://api.example.com", "backends.gpt-4o.url", "in clear"),
    ("kind: openai", "kind: openai\n    url: https://llm.example.com", "backends.gpt-4o", "list prices are assumed"),
    ("    api_key: env:KEY\n", "", "backends.gpt-4o", "no api_key"),
    ("server: {port: 8000}", "ledger: memory://", "ledger", "lost"),
    ("server: {port: 8000}", "sync: normal", "sync", "power cut"),
]


def test_the_ledger_is_synced_unless_it_is_said_otherwise(tmp_path):
    assert loaded(tmp_path).sync == "full"
    assert loaded(tmp_path, GOOD.replace("server: {port: 8000}", "sync: normal", 1)).sync == "normal"
    with pytest.raises(ConfigError, match=r"full.*normal"):
        loaded(tmp_path, GOOD.replace("server: {port: 8000}", "sync: off", 1))


def test_more_workers_than_cores_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    several = GOOD.replace("{port: 8000}", "{workers: 3}", 1)
    (told,) = warnings(loaded(tmp_path, several))
    assert told.field == "server.workers" and "3 workers share 2 cores" in told.message
    assert warnings(loaded(tmp_path, several.replace("3", "2", 1))) == []


@pytest.mark.parametrize(("old", "new", "field", "message"), WARNED)
def test_what_works_but_is_hardly_meant_is_a_warning(tmp_path, old, new, field, message):
    told = warnings(loaded(tmp_path, GOOD.replace(old, new, 1)))
    assert any(p.field == field and message in p.message and p.line for p in told), "\n".join(map(str, told))
