"""`alerts:` in the configuration: checked with its line, its addresses and keys never shown."""

import pytest

from proxy.config import ConfigError, load

BASE = ("backends: {api: {kind: openai, model: m, url: 'https://api.openai.com', provider: openai, api_key: env:K}}\n"
        "routes: {m: {backends: [api], baseline: api}}\nalerts:\n")


def settings(tmp_path, text, **env):
    path = tmp_path / "gateway.yaml"
    path.write_text(BASE + text)
    return load(path, {"K": "sk", **env})


def test_addresses_and_keys_come_from_the_configuration_and_are_kept_as_secrets(tmp_path):
    text = ("  webhooks:\n    - {name: a, url: 'https://x.example/hook', secret: env:SIGN}\n"
            "    - {name: b, url: env:SLACK, format: slack}\n    - {name: c, url: 'http://127.0.0.1:9/x'}\n")
    found = settings(tmp_path, text, SIGN="s3cret", SLACK="https://hooks.slack.com/services/T/B/X").alerts
    assert [one.url.reveal() for one in found.webhooks] == [
        "https://x.example/hook", "https://hooks.slack.com/services/T/B/X", "http://127.0.0.1:9/x"]
    assert "hooks.slack" not in repr(found) and "s3cret" not in repr(found) and "x.example" not in repr(found)
    assert found.budget_percent == (50, 80, 100)


@pytest.mark.parametrize(("text", "message"), [
    ("  webhooks: [{name: a, url: 'http://x.example/hook'}]\n", "must be https://, or of this machine"),
    ("  webhooks: [{name: a, url: 'ftp://x.example'}]\n", "must begin with http:// or https://"),
    ("  webhooks: [{name: a, url: 'https://me:pw@x.example'}]\n", "must not carry a user or password"),
    ("  webhooks: [{name: a, url: env:NOPE}]\n", "environment variable NOPE is not set"),
    ("  webhooks: [{name: a, url: 'https://x.example', secret: abc}]\n", "a secret must not be written in the file"),
    ("  webhooks: [{name: a, url: 'https://x.example'}, {name: a, url: 'https://y.example'}]\n", "two webhooks are"),
    ("  webhooks: [{name: a}]\n", "url"), ("  budget_percent: [0]\n", "budget_percent"),
    ("  savings_negative_hours: 0\n", "savings_negative_hours"), ("  budgets_percent: [50]\n", "budget_percent")])
def test_what_is_wrong_is_told_with_its_line(tmp_path, text, message):
    with pytest.raises(ConfigError) as caught:
        settings(tmp_path, text)
    said = str(caught.value)
    assert message in said and "gateway.yaml:4" in said and "pw@" not in said
