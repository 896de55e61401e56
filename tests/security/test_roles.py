"""Who may call what: every route of the application, every kind of caller, honest and hostile Hosts; every cell.

The table is the intention. A route that is not in it fails the first test, so that none comes in by the back door
(OWASP API5 and API9; LiteLLM CVE-2026-35029, Starlette CVE-2026-48710, vLLM CVE-2026-48746).
"""

import json

import pytest
import pytest_asyncio

from proxy.ledger.keys import KeyStore
from proxy.wire.endpoints import ENDPOINTS
from tests.support.raw import spoken, statuses
from tests.support.world import world

pytestmark = pytest.mark.asyncio(loop_scope="module")

CALLERS = ("no key", "wrong key", "revoked", "application", "reader", "admin")
CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
TEXT = {"model": "gpt-4o", "prompt": "hi", "max_tokens": 2}
ANYONE, OPERATIONS = (200,) * 6, (401, 401, 401, 403, 200, 200)
DATA, MODELS, ADMIN = (401, 401, 401, 200, 403, 200), (401, 401, 401, 200, 200, 200), (401, 401, 401, 403, 403, 200)
# (method, path as the application knows it): (status for each of CALLERS, a path and a body to ask with)
GOLDEN = {
    ("GET", "/healthz"): (ANYONE, "/healthz", None),
    ("GET", "/readyz"): (ANYONE, "/readyz", None),
    ("POST", "/v1/chat/completions"): (DATA, "/v1/chat/completions", CHAT),
    ("POST", "/v1/completions"): (DATA, "/v1/completions", TEXT),
    ("POST", "/v1/embeddings"): (DATA, "/v1/embeddings", {"model": "gpt-4o", "input": "hi"}),
    ("POST", "/v1/responses"): (DATA, "/v1/responses", {"model": "gpt-4o", "input": "hi", "max_output_tokens": 2}),
    ("GET", "/v1/models"): (MODELS, "/v1/models", None),
    ("GET", "/v1/models/{name:path}"): (MODELS, "/v1/models/gpt-4o", None),
    ("GET", "/metrics"): (OPERATIONS, "/metrics", None),
    ("GET", "/admin/status"): (OPERATIONS, "/admin/status", None),
    ("GET", "/admin/decisions"): (OPERATIONS, "/admin/decisions?limit=5", None),
    ("GET", "/admin/explain"): (OPERATIONS, "/admin/explain?model=gpt-4o&prompt_tokens=9&output_tokens=9", None),
    ("POST", "/admin/switch"): (ADMIN, "/admin/switch", {"to": "all-local"}),
    ("POST", "/admin/backends/{name}/drain"): (ADMIN, "/admin/backends/llama/drain", {"on": True}),
    ("GET", "/dashboard"): (OPERATIONS, "/dashboard", None),
    ("GET", "/dashboard/request/{request_id}"): ((401, 401, 401, 403, 404, 404), "/dashboard/request/req_none", None),
    ("GET", "/dashboard/csv"): (OPERATIONS, "/dashboard/csv?table=groups", None),
    ("GET", "/dashboard/live"): ((401, 401, 401, 403, 400, 400), "/dashboard/live?range=ever", None),
    ("GET", "/dashboard/static/{name}"): (ANYONE, "/dashboard/static/theme.js", None),
    ("POST", "/dashboard/login"): ((401,) * 6, "/dashboard/login", {}),  # a key counts in the form alone
    ("POST", "/dashboard/logout"): (OPERATIONS, "/dashboard/logout", {}),  # leads to /dashboard
}
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE")
HOSTILE = ("x/healthz?", "x/healthz#", "x\\healthz", "a@x", "x y", "x,localhost", "[::1", "x:y", "", "-x",
           "x/../healthz", "%2fhealthz", "x" * 300)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def there(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        async with world(tmp_path_factory.mktemp("world"), patch, keys={"required": True},
                         route={"policy": "self-hosted-only"}) as one:
            store = KeyStore(one.ledger)
            one.keys = {role: store.create(role, role=role)[1] for role in ("application", "reader", "admin")}
            gone, one.keys["revoked"] = store.create("gone", role="admin")
            store.revoke(gone)
            one.keys["wrong key"] = one.keys["admin"][:-1] + ("A" if one.keys["admin"][-1] != "A" else "B")
            one.gateway.keys.refresh()
            yield one


@pytest.fixture
def as_it_was(there):
    """What the operator's routes may have changed is put back."""
    yield
    there.gateway.switch("auto")
    there.gateway.drain("llama", False)


def authorization(there, caller):
    return {} if caller == "no key" else {"authorization": f"Bearer {there.keys[caller]}"}


async def ask(there, method, path, body, headers):
    async with there.session.request(method, there.url + path, json=body, headers=headers) as answer:
        return answer.status, await answer.read()


async def test_there_is_no_route_but_these(there):
    """The golden list: a new route has to be given its line above."""
    inner = there.gateway.app._app._app
    served = {(method, route.path) for route in inner.routes for method in route.methods}
    assert served | {("POST", path) for path in ENDPOINTS} == set(GOLDEN)
    assert not inner.user_middleware and inner.openapi_url is None


@pytest.mark.parametrize("route", GOLDEN, ids=" ".join)
async def test_each_caller_gets_what_is_meant_for_it(there, as_it_was, route):
    expected, path, body = GOLDEN[route]
    for caller, wanted in zip(CALLERS, expected, strict=True):
        there.gateway.switch("auto")
        there.gateway.drain("llama", False)
        sent = len(there.engines[0].log.since(0))
        status, answer = await ask(there, route[0], path, body, authorization(there, caller))
        assert status == wanted, (route, caller, answer)
        if wanted >= 400:
            code = json.loads(answer)["error"]["code"]
            assert code == {400: None, 401: "invalid_api_key", 403: "permission_denied", 404: "not_found"}[wanted]
            replica = there.gateway.board.replicas["llama"][0]
            assert (there.gateway.planner.switch, replica.draining) == ("auto", False), "refused, and yet it did it"
            assert len(there.engines[0].log.since(0)) == sent


@pytest.mark.parametrize("host", HOSTILE)
async def test_no_host_opens_a_door(there, as_it_was, host):
    """Where a path is read out of the Host, `x/healthz?` makes every route look open."""
    for method, route in GOLDEN:
        _, path, body = GOLDEN[method, route]
        data = b"" if body is None else json.dumps(body).encode()
        for caller in CALLERS:
            key = b"".join(f"{name}: {value}\r\n".encode() for name, value in authorization(there, caller).items())
            said, closed = await spoken(there.url, (
                f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n".encode()
                + key + b"Content-Length: %d\r\n\r\n" % len(data) + data))
            assert statuses(said) == [400] and closed, (route, caller, said)
    assert there.gateway.planner.switch == "auto"


async def test_no_other_method_does_anything(there, as_it_was):
    """405 says that the path is known, never that a key is wrong; 404 that it is not."""
    paths = {}
    for method, route in GOLDEN:
        paths.setdefault(GOLDEN[method, route][1], set()).add(method)
    for path, known in paths.items():
        for method in sorted(set(METHODS) - known):
            for caller in CALLERS:
                status, _ = await ask(there, method, path, None, authorization(there, caller))
                assert status == 405, (method, path, caller)
    for path in ("/v2/models", "/admin", "/admin/config", "/config/update", "/key/generate", "/v1/test",
                 "/openapi.json", "/docs", "/v1/chat/completions/x", "/metrics/", "//metrics", "/./metrics",
                 "/healthz/../metrics", "/metrics;x", "/METRICS", "/admin/status/", "/favicon.ico", "/.env"):
        for caller in ("no key", "admin"):
            said, _ = await spoken(there.url, f"GET {path} HTTP/1.1\r\nHost: x\r\n".encode() + b"".join(
                f"{name}: {value}\r\n".encode() for name, value in authorization(there, caller).items()) + b"\r\n", 1)
            assert statuses(said) == [404], (path, caller, said)


async def test_keys_are_read_from_their_headers_alone(there):
    """Not from the query, a cookie, the user of a URL, a trailer or the body: all of them end in somebody's log."""
    key = there.keys["admin"]
    for headers, path in (({}, f"/admin/status?key={key}"), ({}, f"/admin/status?api_key={key}&access_token={key}"),
                          ({"cookie": f"authorization=Bearer {key}; api_key={key}"}, "/admin/status"),
                          ({"authorization": f"Basic {key}"}, "/admin/status"),
                          ({"authorization": key}, "/admin/status"),
                          ({"proxy-authorization": f"Bearer {key}"}, "/admin/status"),
                          ({"x-auth-token": key, "x-goog-api-key": key}, "/admin/status"),
                          ({"x-forwarded-for": "127.0.0.1", "x-real-ip": "127.0.0.1"}, "/admin/status"),
                          ({"x-original-url": "/healthz", "x-rewrite-url": "/healthz"}, "/admin/status")):
        status, body = await ask(there, "GET", path, None, headers)
        assert status == 401 and key.encode() not in body, headers
    for headers in ({"x-api-key": key}, {"api-key": key}, {"authorization": f"bearer {key}"}):
        assert (await ask(there, "GET", "/admin/status", None, headers))[0] == 200


async def test_a_body_that_cannot_be_read_does_not_come_before_the_key(there):
    """Who has no key learns nothing, not even of his JSON."""
    for method, route in GOLDEN:
        expected, path, _ = GOLDEN[method, route]
        if method == "POST":
            async with there.session.post(there.url + path, data=b"{", headers={
                    "content-type": "application/json"}) as answer:
                assert answer.status == expected[0] == 401, (path, await answer.read())
