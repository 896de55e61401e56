"""The upstream client runs on uvloop where the gateway does, and on asyncio's own loop in most tests."""

import asyncio

import uvloop

BOTH = ("test_upstream_http.py", "test_upstream_tls.py")


def pytest_asyncio_loop_factories(config, item):
    loops = {"asyncio": asyncio.new_event_loop}
    return {**loops, "uvloop": uvloop.new_event_loop} if item.path.name in BOTH else loops
