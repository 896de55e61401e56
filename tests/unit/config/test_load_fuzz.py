"""Whatever is done to a configuration, `load` refuses it with ConfigError or takes it, and keeps a secret to itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from proxy.config import ConfigError, load, warnings

CANARY = "sk-canaryQ7x9Zp2LmW4vT8bN"
ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "config/minimal.yaml").read_text().replace("env:OPENAI_API_KEY", CANARY) + f"""\
  private: &p
    <<: {{backends: [llama-8b], baseline: gpt-4o}}
    thresholds: {{kv_cache_max: 0.9, utilization_max: 0.8, utilization_resume: 0.7}}
    aliases: ["a-*", b]
server: {{host: 0.0.0.0, port: 8000, drain_s: 1.5}}
electricity: {{usd_per_kwh: 0.1}}
overheads: [{{name: x, usd_per_month: 5, from: 2026-01-01, until: 2026-02-01}}]
# a forgotten {CANARY} in a comment
"""
PIECES = ["\t", "\n", "  ", ": ", "- ", "{", "}", "[", "]", "&a ", "*a", "<<: ", "!!x ", "'", '"', "#", "|", ">", "%",
 "@", "null",
          "-1", "1e999", ".nan", "2026-13-45", "\x00", "\ufeff", "é", "\u2028", "0x10", "yes", "~", "? ", "---\n",
           "${}", "{}",
          "{message}", CANARY, "env:", "file:", "http://u:" + CANARY + "@h", "api_key: ", "*", "sqlite:///"]
edits = st.lists(st.tuples(st.sampled_from(["insert", "delete", "replace", "swap", "repeat"]),
                           st.integers(0, len(TEXT)), st.integers(0, 40), st.sampled_from(PIECES)), min_size=1,
                            max_size=6)


def mutated(changes) -> str:
    text = TEXT
    for kind, at, length, piece in changes:
        before, middle, after = text[:at], text[at:at + length], text[at + length:]
        text = {"insert": before + piece + middle + after, "delete": before + after, "replace": before + piece + after,
                "swap": before + middle[::-1] + after, "repeat": before + middle * 3 + after}[kind]
    return text


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "c.yaml"


def refused_in_silence(file: Path, text: str) -> None:
    file.write_text(text, "utf-8", newline="")
    try:
        found = load(file, {"OPENAI_API_KEY": CANARY})
    except ConfigError as error:
        said = [f"{error!r}", str(error), *map(repr, error.problems)]
        assert error.problems
        chained = error.__cause__ or error.__context__
        assert chained is None or CANARY not in str(chained)
    else:
        said = [repr(found), *map(str, warnings(found))]
    assert not any(CANARY in line or CANARY[3:] in line for line in said)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(edits)
@example([("insert", 0, 0, "api_key: ")])
def test_a_mutated_configuration_is_refused_without_a_crash_or_a_leak(file, changes):
    refused_in_silence(file, mutated(changes))


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(CANARY),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                        st.sampled_from(["backends", "routes", "server", "gpu", "url", "urls", "kind", "from", CANARY,
                                         "name", "model", "usd_per_hour", "capacity", "api_key", "aliases", "slo"]),
                        inner, max_size=4), max_leaves=12))
def test_any_shape_of_values_is_refused_without_a_crash_or_a_leak(file, value):
    import yaml

    text = TEXT.split("routes:")[0].replace(CANARY, "env:OPENAI_API_KEY")
    refused_in_silence(file, text + yaml.safe_dump({"routes": value}, allow_unicode=True))
    refused_in_silence(file, yaml.safe_dump(value, allow_unicode=True))
