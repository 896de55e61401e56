"""Nothing is called, fetched or paid for because a caller says so: a thousand bodies, no visit to the canary.

LiteLLM CVE-2024-6587, MLflow CVE-2026-71211, lollms CVE-2026-33340 (the key sent where the caller says); vLLM
GHSA-3f6c-7fw2-ppm4 and CVE-2026-24779, one-api #2388 (media fetched for the caller); vLLM CVE-2025-62426,
CVE-2026-5497, CVE-2026-22778 (engine parameters passed through).
"""

import asyncio
import itertools
import json
import random

import orjson
import pytest
import pytest_asyncio

from proxy.demo.serving import serve
from proxy.wire.fields import DANGEROUS_ENGINE_FIELDS, FORBIDDEN_FIELDS, FORBIDDEN_PREFIXES
from tests.support.canary import canary
from tests.support.world import world

pytestmark = pytest.mark.asyncio(loop_scope="module")

HELLO = [{"role": "user", "content": "hi"}]
CHAT = {"model": "gpt-4o", "messages": HELLO, "max_tokens": 2}
BODIES = 1000
MORE = ("endpoint", "api_url", "openai_api_base", "azure_endpoint", "server_url", "callback_url", "webhook",
        "webhook_url", "proxies", "http_proxy", "host", "url", "model_url", "provider_url", "redirect", "target",
        "origin")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def there(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        async with (canary() as bird,
                    world(tmp_path_factory.mktemp("world"), patch, engine={"capabilities": ["chat", "images", "audio"]},
                          route={"policy": "self-hosted-only"}) as one):
            one.gateway.bird = bird
            yield one


def spellings(name, chance):
    """As it is, in another case, with dashes: upstreams differ in what they take for the same."""
    return chance.choice((name, name.upper(), name.title(), name.replace("_", "-")))


def hostile_bodies(urls, chance):
    """Endless: one field that means trouble, at the top, deep inside or in a prompt; now and then several."""
    names = [*sorted(FORBIDDEN_FIELDS), *(prefix + "api_base" for prefix in FORBIDDEN_PREFIXES),
             *sorted(DANGEROUS_ENGINE_FIELDS), *MORE]
    for url in itertools.cycle(urls):
        value = chance.choice((url, {"url": url}, [url], {"base_url": url, "api_key": "sk-caller"}))
        field = {spellings(chance.choice(names), chance): value}
        yield chance.choice((
            {**CHAT, **field},
            {**CHAT, "model": url},
            {**CHAT, "model": f"openai/{url}"},
            {**CHAT, "metadata": field},
            {**CHAT, "extra_body": field},
            {**CHAT, "stream_options": field, "stream": True},
            {**CHAT, "tools": [{"type": "mcp", "server_url": url, **field}]},
            {**CHAT, "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": url}}}},
            {**CHAT, "messages": [{"role": "user", "content": url, **field}]},
            {"model": "gpt-4o", "input": url, **field},
        ))


def media(url):
    """Every shape in which some server has been seen to look for a picture."""
    yield from ({"type": "image_url", "image_url": {"url": url}}, {"type": "image_url", "image_url": url},
                {"type": "input_image", "image_url": url}, {"type": "image", "source": {"type": "url", "url": url}},
                {"type": "video_url", "video_url": {"url": url}}, {"type": "audio_url", "audio_url": {"url": url}},
                {"type": "input_audio", "input_audio": {"url": url}}, {"type": "file", "file": {"file_url": url}},
                {"type": "image", "image": url}, {"type": "image", "images": ["iVBOR"] * 1100 + [url]},
                {"type": "image_url", "image_url": {"url": [url]}},
                {"type": "new", "deep": {"er": [{"picture_url": url}]}}, {"image_url": {"url": url}},
                {"type": "text", "text": "x", "image_url": {"url": url}})


HEADERS = ("x-api-base", "x-base-url", "x-forwarded-host", "x-original-url", "x-rewrite-url", "forwarded",
           "x-target-url", "x-litellm-api-base", "openai-organization", "openai-base-url", "helicone-target-url",
           "x-portkey-custom-host", "x-upstream", "referer", "origin-url", "x-forwarded-proto")


async def test_a_thousand_hostile_bodies_and_no_visit(there):
    chance, bird = random.Random(4), there.gateway.bird
    bodies = itertools.islice(hostile_bodies(bird.urls(), chance), BODIES)
    statuses = {}
    for batch in iter(lambda: list(itertools.islice(bodies, 50)), []):
        paths = ["/v1/embeddings" if "input" in body else "/v1/chat/completions" for body in batch]
        headers = [{chance.choice(HEADERS): chance.choice(bird.urls()).encode("ascii", "ignore").decode().strip().strip(
            "\x00").replace("\n", "")} for _ in batch]
        for body, (status, _, answer) in zip(batch, await asyncio.gather(*(
                there.post(body, path, **sent) for body, path, sent in zip(batch, paths, headers, strict=True))),
                strict=True):
            assert status < 500, (body, answer)
            statuses[status] = statuses.get(status, 0) + 1
    print(f"{sum(statuses.values())} bodies: {statuses}; {bird.visits} visits")
    assert sum(statuses.values()) == BODIES and bird.visits == 0, bird.heard
    assert there.api.log.since(0) == [], "the route is self-hosted only"


@pytest.mark.parametrize("name", [*sorted(FORBIDDEN_FIELDS), *(prefix + "x" for prefix in FORBIDDEN_PREFIXES),
                                  *sorted(DANGEROUS_ENGINE_FIELDS)])
async def test_each_field_is_refused_by_name(there, name):
    """CVE-2024-6587, CVE-2026-71211 and CVE-2025-62426: whatever its value, in any spelling."""
    sent = len(there.engines[0].log.since(0))
    for spelling in (name, name.upper(), name.replace("_", "-")):
        for value in ("http://127.0.0.1", None, {}, 1):
            status, _, body = await there.post({**CHAT, spelling: value})
            error = json.loads(body)["error"]
            assert (status, error["code"], error["param"]) == (400, "forbidden_field", spelling)
    assert len(there.engines[0].log.since(0)) == sent


async def test_no_media_url_in_any_spelling_is_fetched_or_passed_on(there):
    """CVE-2026-24779, GHSA-3f6c-7fw2-ppm4: private ranges, other bases, backslashes, blanks, another parser's luck."""
    bird, sent = there.gateway.bird, len(there.engines[0].log.since(0))
    messages = [{"role": "user", "content": [part]} for url in bird.urls() for part in media(url)]
    messages += [{"role": "user", "content": "x", "image_url": {"url": url}} for url in bird.urls()]
    asked = [{**CHAT, "messages": [message]} for message in messages]
    for batch in (asked[at:at + 50] for at in range(0, len(asked), 50)):
        for body, (status, _, answer) in zip(batch, await asyncio.gather(*map(there.post, batch)), strict=True):
            assert status == 400 and json.loads(answer)["error"]["code"] == "remote_media_refused", body
    status, _, answer = await there.post({"model": "gpt-4o", "input": "x", "messages": messages[:1]}, "/v1/embeddings")
    assert status == 400 and json.loads(answer)["error"]["code"] == "remote_media_refused"
    assert bird.visits == 0 and len(there.engines[0].log.since(0)) == sent
    data = {**CHAT, "messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}]}]}
    assert b"remote_media_refused" not in (await there.post(data))[2], "and data goes through"


class Elsewhere:
    """An upstream that sends whoever asks somewhere else."""

    def __init__(self, status):
        self.status, self.location, self.keys = status, "", []

    async def __call__(self, scope, receive, send):
        self.keys.append(dict(scope["headers"]).get(b"authorization"))
        await send({"type": "http.response.start", "status": self.status,
                    "headers": [(b"location", self.location.encode()), (b"content-length", b"0"),
                                (b"refresh", f"0; url={self.location}".encode()), (b"alt-svc", b'h2="127.0.0.1:1"')]})
        await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
async def test_no_redirect_is_followed_and_no_credential_travels(tmp_path, monkeypatch, status):
    """CVE-2026-33340 and kin: a credential belongs to one origin, whatever its owner answers."""
    async with canary() as bird:
        elsewhere = Elsewhere(status)
        elsewhere.location = f"http://127.0.0.1:{bird.port}/v1/chat/completions"
        async with (serve(elsewhere) as url,
                    world(tmp_path, monkeypatch, engines=0, api={"url": url}) as there):
            answer, _, body = await there.post(CHAT)
            assert answer == 502 and orjson.loads(body)["error"]["code"] == "upstream_error"
            assert elsewhere.keys == [b"Bearer sk-sim"] * len(elsewhere.keys) and elsewhere.keys
            assert bird.visits == 0 and bird.heard == []


async def test_the_environment_names_no_proxy(tmp_path, monkeypatch):
    """What passes through HTTP_PROXY can be read there, key included."""
    async with canary() as bird:
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{bird.port}")
        async with world(tmp_path, monkeypatch) as there:
            assert (await there.post(CHAT))[0] == 200
        assert bird.visits == 0
