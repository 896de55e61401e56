"""Every route against its description, with thousands of requests that nobody thought of; with and without a key.

Nothing may be answered that is not described: no 500 ever, 502, 503 and 504 only where docs/http.md promises them, and
every error in OpenAI's envelope. SCHEMA_EXAMPLES=2000 makes it long.
"""

import asyncio
import contextlib
import json
import os
import threading

import hypothesis
import pytest
import schemathesis
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from proxy.ledger.keys import KeyStore
from tests.support.description import described
from tests.support.world import world

# schemathesis draws with `random` inside its strategies; derandomized runs stay the same all the same.
pytestmark = pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")
EXAMPLES = int(os.environ.get("SCHEMA_EXAMPLES", "8"))
MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
OPERATIONS = [
    ("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/v1/models"), ("GET", "/v1/models/{name}"),
    ("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("POST", "/v1/embeddings"),
    ("POST", "/v1/responses"), ("GET", "/metrics"), ("GET", "/admin/status"),
    ("GET", "/admin/decisions"), ("GET", "/admin/explain"), ("POST", "/admin/switch"),
    ("POST", "/admin/backends/{name}/drain")]
OPEN = OPERATIONS[:2]
CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
SETTINGS = hypothesis.settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, print_blob=False,
                               suppress_health_check=list(hypothesis.HealthCheck))


@contextlib.contextmanager
def served(folder, patch):
    """A world in a loop and thread of its own: schemathesis waits for its answers."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    whole = world(folder, patch, keys={"required": True}, server={"body_bytes_max": 20_000})
    try:
        yield asyncio.run_coroutine_threadsafe(whole.__aenter__(), loop).result(30)
    finally:
        asyncio.run_coroutine_threadsafe(whole.__aexit__(None, None, None), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, served(tmp_path_factory.mktemp("world"), patch) as one:
        one.keys = {"admin": KeyStore(one.ledger).create("admin", role="admin")[1]}
        one.gateway.keys.refresh()
        yield one


@pytest.fixture(scope="module")
def description(there):
    api = schemathesis.openapi.from_dict(described(there.gateway))
    api.config.update(base_url=there.url)
    return api


def tried(description, method, path, mode, judge):
    """`judge` sees as many requests to one operation as EXAMPLES says; how many it saw."""
    operation, seen = description[path][method], 0

    @SETTINGS
    @hypothesis.given(operation.as_strategy(generation_mode=mode))
    def each(case):
        nonlocal seen
        seen += 1
        judge(case)

    each()
    return seen


def test_the_description_leaves_nothing_out(description):
    operations = [found.ok() for found in description.get_all_operations()]
    assert {(operation.method.upper(), operation.path) for operation in operations} == set(OPERATIONS)


# Of a path that takes nothing, nothing can be wrong.
@pytest.mark.parametrize(("method", "path", "mode"), [
    (*one, mode) for one in OPERATIONS for mode in MODES if one not in OPEN or mode is GenerationMode.POSITIVE])
def test_with_a_key_every_answer_is_one_that_is_described(description, there, method, path, mode):
    def judge(case):
        answer = case.call(headers={"authorization": f"Bearer {there.keys['admin']}"})
        case.validate_response(answer, checks=CHECKS)
        assert answer.status_code != 500 and answer.headers["x-request-id"]
        there.gateway.switch("auto")
        there.gateway.drain("llama", False)

    assert tried(description, method, path, mode, judge) > 0


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
@pytest.mark.parametrize(("method", "path"), [one for one in OPERATIONS if one not in OPEN])
def test_without_a_key_every_answer_is_that_one_is_missing(description, there, method, path, mode):
    def judge(case):
        answer = case.call(headers={"authorization": ""})
        assert answer.status_code in (400, 401, 404, 405, 431), answer.text
        code = json.loads(answer.content)["error"]["code"]
        assert answer.status_code == 401 or code in ("malformed_request", "not_found", "method_not_allowed"), code

    sent = len(there.engines[0].log.since(0)) + len(there.api.log.since(0))
    assert tried(description, method, path, mode, judge) > 0
    assert len(there.engines[0].log.since(0)) + len(there.api.log.since(0)) == sent
