"""A DNS name with several addresses is several replicas."""

from __future__ import annotations

import yaml

from proxy.config import load
from proxy.config.replicas import addresses, with_replicas
from tests.support.world import configuration


def settings(tmp_path, monkeypatch, url):
    monkeypatch.setenv("SIM_API_KEY", "sk-sim")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(configuration(f"sqlite:///{tmp_path}/l.db", [url], "http://127.0.0.1:2")))
    return load(path)


def test_each_address_of_a_name_becomes_a_replica(tmp_path, monkeypatch):
    asked = []

    def resolve(host, port):
        asked.append((host, port))
        return ["10.0.0.1", "10.0.0.2", "fd00::3"]

    many = with_replicas(settings(tmp_path, monkeypatch, "http://llama.internal:8000"), resolve)
    assert many.backends["llama"].urls == ("http://10.0.0.1:8000", "http://10.0.0.2:8000", "http://[fd00::3]:8000")
    assert asked == [("llama.internal", 8000)]
    assert many.backends["api"].urls == ("http://127.0.0.1:2",)


def test_addresses_tls_and_names_of_one_address_stay_as_written(tmp_path, monkeypatch):
    def resolve(host, port):
        return ["10.0.0.1", "10.0.0.2"] if host == "many.internal" else ["10.0.0.1"]

    for url in ("http://10.1.2.3:8000", "https://many.internal", "http://one.internal", "http://localhost:8000"):
        assert with_replicas(settings(tmp_path, monkeypatch, url), resolve).backends["llama"].urls == (url,)


def test_a_name_that_does_not_resolve_is_left_alone():
    assert addresses("no-such-name.invalid", 80) == []
