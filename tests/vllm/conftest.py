"""A real vLLM for the tests in this folder: `make test-vllm`. With REAL_VLLM_URL set, the one that answers there."""

from __future__ import annotations

import json
import os
import urllib.request
from pathlib import Path

import pytest
import start

HERE = Path(__file__).resolve().parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            # Starting vLLM takes a minute of importing and has a limit of its own: see Server.wait_healthy.
            item.add_marker(pytest.mark.timeout(300, func_only=True))


class RealVllm:
    """The server every test shares: `url`, `model` and `log` (None when it was started elsewhere)."""

    def __init__(self, server: start.Server) -> None:
        self.url, self.model, self.log = server.url, server.model, server.log
        self._servers = [server]

    def another(self, *flags: str, name: str = start.MODEL_NAME, embed: bool = False) -> start.Server:
        """One more, with flags of its own (`"--max-num-queued-reqs", "4"`). It takes a minute; `stop()` it early if
        nobody needs it any more, else it ends with the session."""
        server = start.launch(*flags, name=name, embed=embed)
        self._servers.append(server)
        return server.wait_healthy()

    def stop(self) -> None:
        for server in self._servers:
            server.stop()


def running_elsewhere(url: str) -> start.Server:
    with urllib.request.urlopen(f"{url}/v1/models", timeout=10) as answer:
        return start.Server(url, json.load(answer)["data"][0]["id"])


@pytest.fixture(scope="session")
def real_vllm():
    url = os.environ.get("REAL_VLLM_URL", "").rstrip("/")
    server = running_elsewhere(url) if url else start.launch()
    vllm = RealVllm(server.wait_healthy())
    try:
        yield vllm
    finally:
        vllm.stop()
