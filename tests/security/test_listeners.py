"""Who may be reached where: loopback without keys, and operators on a listener of their own."""

import asyncio
import json
import re
import signal
import sys

import aiohttp
import pytest
import yaml
from typer.testing import CliRunner

from proxy.cli import app
from proxy.config import ConfigError, load
from proxy.ledger.keys import KeyStore
from tests.support.patience import PATIENCE_S
from tests.support.world import configuration, world

CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
OPERATORS = [("GET", "/metrics"), ("GET", "/admin/status"), ("GET", "/admin/decisions"),
             ("GET", "/admin/explain?model=gpt-4o&prompt_tokens=10&output_tokens=10"), ("POST", "/admin/switch"),
             ("POST", "/admin/backends/llama/drain")]
APPLICATIONS = [("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("POST", "/v1/embeddings"),
                ("GET", "/v1/models"), ("GET", "/v1/models/gpt-4o")]
OPEN_TO_ALL = [("GET", "/healthz"), ("GET", "/readyz")]


async def status_of(session, url, method, path, key):
    body = {"to": "auto"} if path == "/admin/switch" else {"on": False} if path.endswith("/drain") else CHAT
    async with session.request(method, url + path, json=body if method == "POST" else None,
                               headers={"authorization": f"Bearer {key}"} if key else {}) as answer:
        document = await answer.read()
        return answer.status, json.loads(document)["error"]["code"] if answer.status >= 400 else None


async def test_each_listener_knows_its_own_paths_alone(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, keys={"required": True}, server={"admin": {"port": 9000}}) as there:
        assert there.url != there.admin_url
        admin, reader = (KeyStore(there.ledger).create(role, role=role)[1] for role in ("admin", "reader"))
        there.gateway.keys.refresh()
        for url, ours, theirs in ((there.url, APPLICATIONS, OPERATORS), (there.admin_url, OPERATORS, APPLICATIONS)):
            for method, path in OPEN_TO_ALL:
                assert await status_of(there.session, url, method, path, None) == (200, None)
            for method, path in ours:
                status, _ = await status_of(there.session, url, method, path, admin)
                assert status in (200, 400), (url, path)  # the API is a chat model: it has no completions
                assert await status_of(there.session, url, method, path, None) == (401, "invalid_api_key"), path
            for method, path in theirs:
                for key in (admin, None):
                    got = await status_of(there.session, url, method, path, key)
                    assert got == (404, "not_found"), (url, method, path, "is known where it should not be")
        assert await status_of(there.session, there.admin_url, "POST", "/admin/switch", reader) == (
            403, "permission_denied")


async def test_the_operators_listener_has_the_same_guard(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch, engines=0, server={"admin": {"port": 9000}}) as there:
        for headers, expected in (({"host": "x/metrics?"}, 400), ({"content-encoding": "gzip"}, 415),
                                  ({"x-a": "b" * 40_000}, 431)):
            async with there.session.get(there.admin_url + "/metrics", headers=headers) as answer:
                assert answer.status == expected, await answer.read()


async def test_without_the_setting_one_listener_serves_all(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch) as there:
        assert there.url == there.admin_url and there.gateway.admin_app is None
        for method, path in (*OPERATORS, *OPEN_TO_ALL):
            assert (await status_of(there.session, there.url, method, path, None))[0] == 200, path


def written(tmp_path, **top):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(configuration(f"sqlite:///{tmp_path}/ledger.db", [], "http://127.0.0.1:9", **top)))
    return path


async def test_a_stop_drains_both_listeners_and_the_process_says_where_they_are(tmp_path):
    config = written(tmp_path, server={"admin": {"port": 0}})
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "proxy.cli", "serve", "--config", str(config), "--port", "0",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={"SIM_API_KEY": "sk-sim", "PATH": ""})
    try:
        said = (await asyncio.wait_for(process.stdout.readline(), PATIENCE_S)).decode()
        data, _, operators = re.findall(r"http://127\.0\.0\.1:\d+", said)
        async with aiohttp.ClientSession() as session:
            assert (await session.get(operators + "/metrics")).status == 200
            assert (await session.get(data + "/metrics")).status == 404
            process.send_signal(signal.SIGTERM)
            _, errors = await asyncio.wait_for(process.communicate(), PATIENCE_S)
            assert process.returncode == 0, errors.decode()
            for url in (data, operators):
                with pytest.raises(aiohttp.ClientConnectionError):
                    await session.get(url + "/healthz")
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@pytest.mark.parametrize(("top", "named"), [
    ({"server": {"admin": {"port": 8000}}}, "server.admin.port"),
    ({"server": {"port": 9000, "admin": {}}}, "server.admin.port"),
    ({"server": {"admin": {"host": "0.0.0.0"}}}, "keys.required"),
    ({"server": {"admin": {"host": "a b"}}}, "server.admin.host"),
    ({"server": {"admin": {"prot": 1}}}, "server.admin.prot"),
    ({"server": {"host": "0.0.0.0"}}, "keys.required"),
    ({"server": {"host": "::"}}, "keys.required"),
    ({"server": {"host": "gateway.example.com"}}, "keys.required"),
])
def test_listeners_that_cannot_be_meant_are_refused(tmp_path, monkeypatch, top, named):
    monkeypatch.setenv("SIM_API_KEY", "sk-sim")
    path = written(tmp_path, **top)
    with pytest.raises(ConfigError) as refused:
        load(path)
    assert [problem.field for problem in refused.value.problems] == [named]
    checked = CliRunner().invoke(app, ["check", str(path)])
    assert checked.exit_code == 2 and named in checked.output


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "0", "127.1.example.com", "2130706433"])
def test_without_keys_no_option_leads_off_the_loopback(tmp_path, monkeypatch, host):
    monkeypatch.setenv("SIM_API_KEY", "sk-sim")
    done = CliRunner().invoke(app, ["serve", "--config", str(written(tmp_path)), "--host", host, "--port", "0"])
    assert done.exit_code == 2 and "keys are not required" in done.output, done.output
    assert "listens on loopback only" in done.output, "and it says so at every such start"


PAGES = {
    "a script of another site": ({"origin": "https://evil.example"}, 403),
    "a form of another site, in a file": ({"origin": "null"}, 403),
    "an image of another site": ({"sec-fetch-site": "cross-site"}, 403),
    "a name that resolves to 127.0.0.1": ({"origin": "http://evil.example:8000", "host": "evil.example:8000"}, 403),
    "the same, reading": ({"sec-fetch-site": "same-origin", "host": "evil.example:8000"}, 403),
    "a name that only begins like ours": ({"origin": "http://localhost.evil.example"}, 403),
    "a page of this machine": ({"origin": "http://localhost:3000", "sec-fetch-site": "same-site"}, 200),
    "an address typed in": ({"sec-fetch-site": "none"}, 200),
    "no browser": ({}, 200),
    "no browser, behind a proxy": ({"host": "llm.example.com"}, 403),
    "a page that rebinds its name, reading": ({"host": "evil.example:8000"}, 403),
}


async def test_without_keys_no_page_of_another_site_gets_in(tmp_path, monkeypatch):
    async with world(tmp_path, monkeypatch) as there:
        for name, (headers, expected) in PAGES.items():
            for method, path, body in (("POST", "/v1/chat/completions", CHAT), ("GET", "/admin/status", None),
                                       ("POST", "/admin/switch", {"to": "auto"})):
                async with there.session.request(method, there.url + path, json=body, headers=headers) as answer:
                    assert answer.status == expected, (name, path, await answer.read())
        assert len(await there.settled(3)) == 3
        for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
            async with there.session.post(there.url + "/admin/switch", data=b'{"to": "all-api"}',
                                          headers={"content-type": kind}) as answer:
                assert answer.status == 415 and there.gateway.planner.switch == "auto", "what a form can send"
    (tmp_path / "keys").mkdir()
    async with world(tmp_path / "keys", monkeypatch, engines=0, keys={"required": True}) as there:
        assert (await there.post(CHAT, origin="https://app.example"))[0] == 401, "with keys, the key decides"
