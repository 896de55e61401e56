"""The upstream client runs on uvloop where the gateway does, and on asyncio's own loop in most tests. A new ledger."""

import asyncio

import pytest
import uvloop

from proxy.ledger.journal import Journal

BOTH = ("test_upstream_http.py", "test_upstream_tls.py")


def pytest_asyncio_loop_factories(config, item):
    loops = {"asyncio": asyncio.new_event_loop}
    return {**loops, "uvloop": uvloop.new_event_loop} if item.path.name in BOTH else loops


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture
async def journal(url):
    async with Journal(url) as journal:
        yield journal
