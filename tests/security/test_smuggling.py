"""Requests that two readers could read differently, on raw sockets against the real server.

Each case stands for a sentence of RFC 9112 that somebody's parser got wrong. It is sent whole, head first, and byte by
byte, because a parser that has to wait takes other paths. Counted is what the gateway's own rooms saw: which requests
passed the guard, and which bodies reached an upstream. Behind most cases lies a second request that nobody meant.
"""

import contextlib
import json

import pytest
import pytest_asyncio

from proxy.server.connection import PIECE_BYTES_MIN, PIECES_MAX, PIPELINE_MAX, DataProtocol
from proxy.server.socket_exchange import SocketExchange
from tests.support.raw import spoken, statuses
from tests.support.world import world

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOST, JSON, CHUNKED = b"Host: x\r\n", b"Content-Type: application/json\r\n", b"Transfer-Encoding: chunked\r\n"
BODY = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "asked"}], "max_tokens": 2}).encode()
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
HIDDEN_BODY = BODY.replace(b"asked", b"hidden")
HIDDEN = (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Hidden: 1\r\n" + JSON +
          b"Content-Length: %d\r\n\r\n" % len(HIDDEN_BODY) + HIDDEN_BODY)
CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
MODELS = b"GET /v1/models HTTP/1.1\r\n"


def post(headers, body=BODY, line=b"POST /v1/chat/completions HTTP/1.1\r\n"):
    return line + headers + JSON + b"\r\n" + body


def chunked(*, size=b"%x" % len(BODY), after=b"", crlf=b"\r\n", end=b"\r\n", last=b"0\r\n\r\n", headers=b""):
    return post(HOST + headers + CHUNKED, size + after + crlf + BODY + end + last)


def models(headers, line=MODELS):
    return line + headers + b"\r\n"


# name: (request, status). Each is answered once, with an error, and the connection closed.
REFUSED = {
    # the length of the body
    "CL and TE": (post(HOST + b"Content-Length: 5\r\n" + CHUNKED, CHUNKS), 400),
    "TE and CL": (post(HOST + CHUNKED + b"Content-Length: 5\r\n", CHUNKS), 400),
    "CL list": (post(HOST + b"Content-Length: 3, 3\r\n"), 400),
    "CL twice": (post(HOST + LENGTH + LENGTH), 400),
    "CL twice, differing": (post(HOST + LENGTH + b"Content-Length: 0\r\n"), 400),
    "CL signed": (post(HOST + b"Content-Length: +3\r\n"), 400),
    "CL negative": (post(HOST + b"Content-Length: -1\r\n"), 400),
    "CL hexadecimal": (post(HOST + b"Content-Length: 0x3\r\n"), 400),
    "CL empty": (post(HOST + b"Content-Length: \r\n"), 400),
    "CL with a space inside": (post(HOST + b"Content-Length: 7 7\r\n"), 400),
    "CL over 64 bits": (post(HOST + b"Content-Length: 18446744073709551616\r\n"), 400),
    "TE identity, chunked": (post(HOST + b"Transfer-Encoding: identity, chunked\r\n", CHUNKS), 400),
    "TE identity": (post(HOST + b"Transfer-Encoding: identity\r\n"), 400),
    "TE gzip, chunked": (post(HOST + b"Transfer-Encoding: gzip, chunked\r\n", CHUNKS), 400),
    "TE chunked, gzip": (post(HOST + b"Transfer-Encoding: chunked, gzip\r\n", CHUNKS), 400),
    "TE chunked, chunked": (post(HOST + b"Transfer-Encoding: chunked, chunked\r\n", CHUNKS), 400),
    "TE xchunked": (post(HOST + b"Transfer-Encoding: xchunked\r\n", CHUNKS), 400),
    "TE quoted": (post(HOST + b'Transfer-Encoding: "chunked"\r\n', CHUNKS), 400),
    "TE with a parameter": (post(HOST + b"Transfer-Encoding: chunked;q=1\r\n", CHUNKS), 400),
    "TE after a vertical tab": (post(HOST + b"Transfer-Encoding: \x0bchunked\r\n", CHUNKS), 400),
    "TE empty": (post(HOST + LENGTH + b"Transfer-Encoding: \r\n"), 400),
    "TE twice": (post(HOST + CHUNKED + CHUNKED, CHUNKS), 400),
    "TE under HTTP/1.0": (post(HOST + CHUNKED, CHUNKS, b"POST /v1/chat/completions HTTP/1.0\r\n"), 400),
    "TE, folded": (post(HOST + b"Transfer-Encoding:\r\n chunked\r\n", CHUNKS), 400),
    # chunks
    "chunk size 0x": (chunked(size=b"0x%x" % len(BODY)), 400),
    "chunk size signed": (chunked(size=b"+%x" % len(BODY)), 400),
    "chunk size negative": (chunked(size=b"-%x" % len(BODY)), 400),
    "chunk size with an underscore": (chunked(size=b"_%x" % len(BODY)), 400),
    "chunk size over 64 bits": (chunked(size=b"1%016x" % len(BODY)), 400),
    "chunk size before a space": (chunked(after=b" "), 400),
    "chunk size before a bare LF": (chunked(crlf=b"\n"), 400),
    "chunk data before a bare LF": (chunked(end=b"\n"), 400),
    "chunk data without an end": (chunked(end=b""), 400),
    "chunk data longer than its size": (chunked(size=b"%x" % (len(BODY) - 1)), 400),
    "bare LF in a chunk extension": (chunked(after=b";a\n=b"), 400),
    "bare CR in a chunk extension": (chunked(after=b";a\rb"), 400),
    "last chunk without its end": (chunked(last=b"0\r\n"), 400),
    "last chunk before bare LFs": (chunked(last=b"0\n\n"), 400),
    # trailers: the parser gives them out as headers
    "a trailer": (chunked(last=b"0\r\nX-Trailer: y\r\n\r\n"), 400),
    "a trailer that is announced": (chunked(last=b"0\r\nX-Trailer: y\r\n\r\n", headers=b"Trailer: x-trailer\r\n"), 400),
    "a credential in a trailer": (chunked(last=b"0\r\nAuthorization: Bearer bk-x\r\nX: y\r\n\r\n"), 400),
    "framing in a trailer": (chunked(last=b"0\r\nContent-Length: 3\r\nX: y\r\n\r\n"), 400),
    # who is asked
    "two Hosts": (models(b"Host: x\r\nHost: y\r\n"), 400),
    "no Host": (models(b""), 400),
    "no Host under HTTP/1.0": (models(b"", b"GET /v1/models HTTP/1.0\r\n"), 400),
    "empty Host": (models(b"Host: \r\n"), 400),
    "Host with a path": (models(b"Host: x/health?\r\n"), 400),
    "Host with a user": (models(b"Host: a@b\r\n"), 400),
    "Host list": (models(b"Host: x,y\r\n"), 400),
    "Host with a space": (models(b"Host: x y\r\n"), 400),
    "Host with a tab": (models(b"Host: x\ty\r\n"), 400),
    "Host with a fragment": (models(b"Host: x#y\r\n"), 400),
    "Host with a bare colon": (models(b"Host: x:\r\n"), 400),
    "absolute form": (models(HOST, b"GET http://other.example/v1/models HTTP/1.1\r\n"), 400),
    "absolute form, same host": (models(HOST, b"GET http://x/v1/models HTTP/1.1\r\n"), 400),
    "absolute form, POST": (post(HOST + LENGTH, line=b"POST http://y/v1/chat/completions HTTP/1.1\r\n"), 400),
    "authority form": (models(HOST, b"CONNECT other.example:443 HTTP/1.1\r\n"), 400),
    "CONNECT to a path": (models(HOST, b"CONNECT /v1/models HTTP/1.1\r\n"), 400),
    "asterisk form": (models(HOST, b"OPTIONS * HTTP/1.1\r\n"), 400),
    # the request line
    "a fragment in the target": (models(HOST, b"GET /v1/models#x HTTP/1.1\r\n"), 400),
    "a backslash for a slash": (models(HOST, b"GET \\v1\\models HTTP/1.1\r\n"), 400),
    "bytes above ASCII in the target": (models(HOST, b"GET /v1/models\xff HTTP/1.1\r\n"), 400),
    "NUL in the target": (models(HOST, b"GET /v1/models\0 HTTP/1.1\r\n"), 400),
    "a space in the target": (models(HOST, b"GET /v1/models x HTTP/1.1\r\n"), 400),
    "an encoded slash": (models(HOST, b"GET /v1%2fmodels HTTP/1.1\r\n"), 400),
    "an encoded letter": (models(HOST, b"GET /%61dmin/status HTTP/1.1\r\n"), 400),
    "a tab for a space": (models(HOST, b"GET\t/v1/models\tHTTP/1.1\r\n"), 400),
    "a space after the version": (models(HOST, b"GET /v1/models HTTP/1.1 \r\n"), 400),
    "HTTP/0.9": (b"GET /v1/models\r\n\r\n", 400),
    "HTTP/1.2": (models(HOST, b"GET /v1/models HTTP/1.2\r\n"), 400),
    "HTTP/2.0 in words": (models(HOST, b"GET /v1/models HTTP/2.0\r\n"), 400),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "another protocol": (models(HOST, b"GET /v1/models ICE/1.0\r\n"), 400),
    "http in small letters": (models(HOST, b"GET /v1/models http/1.1\r\n"), 400),
    "a method of no standard": (models(HOST, b"SMUGGLE /v1/models HTTP/1.1\r\n"), 400),
    "a method in small letters": (models(HOST, b"get /v1/models HTTP/1.1\r\n"), 400),
    "TLS": (bytes.fromhex("16030100f8010000f40303") + bytes(100), 400),
    # lines and fields
    "bare LF line ends": (b"GET /v1/models HTTP/1.1\nHost: x\n\n", 400),
    "one bare LF": (models(b"Host: x\nX-A: b\r\n"), 400),
    "a bare LF before the end": (b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\n", 400),
    "obs-fold": (models(HOST + b"X-A: b\r\n c\r\n"), 400),
    "obs-fold first": (models(b" X-A: b\r\n" + HOST), 400),
    "bare CR": (models(HOST + b"X-A: b\rc\r\n"), 400),
    "CR before CRLF": (models(HOST + b"X-A: b\r\r\n"), 400),
    "NUL in a value": (models(HOST + b"X-A: b\0c\r\n"), 400),
    "an escape sequence": (models(HOST + b"X-A: \x1b[31m\r\n"), 400),
    "DEL": (models(HOST + b"X-A: b\x7f\r\n"), 400),
    "a space before the colon": (post(HOST + LENGTH + b"Transfer-Encoding : chunked\r\n"), 400),
    "NUL in a name": (post(HOST + LENGTH + b"Transfer-Encoding\0: chunked\r\n"), 400),
    "a bracket in a name": (models(HOST + b"X[a]: b\r\n"), 400),
    "an empty name": (models(HOST + b": b\r\n"), 400),
    "no colon": (models(HOST + b"X-A\r\n"), 400),
    "two keys": (models(HOST + b"Authorization: Bearer a\r\nAuthorization: Bearer b\r\n"), 400),
    "two content types": (post(HOST + LENGTH + b"Content-Type: text/plain\r\n"), 400),
    "two sets of tags": (post(HOST + LENGTH + b"X-Breakeven-Tags: a=b\r\nX-Breakeven-Tags: a=c\r\n"), 400),
    # sizes
    "100 KB of one header": (models(HOST + b"X-A: " + b"a" * 100_000 + b"\r\n"), 431),
    "2,000 headers": (models(HOST + b"X-A: b\r\n" * 2000), 431),
    "40 KB of target": (models(HOST, b"GET /v1/models?" + b"a" * 40_000 + b" HTTP/1.1\r\n"), 431),
    # bodies that would have to be unpacked
    "gzip": (post(HOST + LENGTH + b"Content-Encoding: gzip\r\n"), 415),
    "identity, gzip": (post(HOST + LENGTH + b"Content-Encoding: identity, gzip\r\n"), 415),
}
UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
# name: (requests, statuses, bodies that reach an upstream, whether it closes). Everybody reads these alike.
TAKEN = {
    "a length": (post(HOST + LENGTH), [200], 1, False),
    "a length with zeros before": (post(HOST + b"Content-Length: 000%d\r\n" % len(BODY)), [200], 1, False),
    "chunks": (chunked(), [200], 1, False),
    "chunks, in capitals": (post(HOST + b"Transfer-Encoding: CHUNKED\r\n", CHUNKS), [200], 1, False),
    "a chunk extension": (chunked(after=b";a=b"), [200], 1, False),
    "a long zero": (chunked(last=b"000\r\n\r\n"), [200], 1, False),
    "Host with a port": (models(b"Host: [::1]:8000\r\n"), [200], 0, False),
    "HTTP/1.0": (post(HOST + LENGTH, line=b"POST /v1/chat/completions HTTP/1.0\r\n"), [200], 1, True),
    "empty lines before": (b"\r\n\r\n" + post(HOST + LENGTH), [200], 1, False),
    "Expect": (post(HOST + LENGTH + b"Expect: 100-continue\r\n"), [100, 200], 1, False),
    "an encoded model": (models(HOST, b"GET /v1/models/meta%2Fllama HTTP/1.1\r\n"), [404], 0, False),
    "two in one write": (post(HOST + LENGTH) * 2, [200, 200], 2, False),
    "a body nobody asked for": (models(HOST + b"Content-Length: %d\r\n" % len(HIDDEN)) + HIDDEN, [200], 0, True),
    "after Connection: close": (models(HOST + b"Connection: close\r\n") + HIDDEN, [200], 0, True),
    "framing named in Connection": (post(HOST + LENGTH + b"Connection: content-length\r\n"), [200], 1, False),
    "a length in a field of another name": (post(HOST + LENGTH + b"Transfer_Encoding: chunked\r\n"), [200], 1, False),
    # The parser stops at an upgrade, and would read the body as the next request.
    "upgrade to h2c": (post(HOST + LENGTH + UPGRADE) + models(HOST), [200, 200], 1, False),
    "upgrade to h2c, chunks": (post(HOST + CHUNKED + UPGRADE, CHUNKS) + models(HOST), [200, 200], 1, False),
    "upgrade to WebSocket": (models(HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                                    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"), [200], 0, False),
    "a body that looks like a request, under an upgrade": (
        models(HOST + b"Connection: upgrade\r\nUpgrade: x\r\nContent-Length: %d\r\n" % len(HIDDEN)) + HIDDEN, [200], 0,
        True),
    "many upgrades": (models(HOST + b"Connection: upgrade\r\nUpgrade: x\r\n") * 30, [200] * 30, 0, False),
}
PIECES = {
    "whole": lambda raw: [raw],
    "head first": lambda raw: [raw[:raw.find(b"\r\n\r\n") + 4], raw[raw.find(b"\r\n\r\n") + 4:]],
    "byte by byte": lambda raw: [raw[at:at + 1] for at in range(min(len(raw), 2000))] + [raw[2000:]],
}


class Seen:
    """What passed the guard, and what reached an upstream."""

    def __init__(self):
        self.passed, self.bodies = [], []

    def clear(self):
        self.passed.clear()
        self.bodies.clear()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def there(tmp_path_factory):
    """One world for the module, and its memory."""
    with pytest.MonkeyPatch.context() as patch:
        async with world(tmp_path_factory.mktemp("world"), patch, route={"policy": "self-hosted-only"}) as one:
            seen = Seen()
            guard, upstream = one.gateway.app, one.gateway.upstreams["llama", 0]
            inner, started, begun = guard._app, DataProtocol._start_asgi_task, type(upstream).begin

            async def app(scope, receive, send):
                seen.passed.append((scope["method"], scope["path"], b"x-hidden" in dict(scope["headers"])))
                await inner(scope, receive, send)

            def start(self, cycle, wrong):
                if type(cycle) is SocketExchange and wrong is None:
                    seen.passed.append(("POST", cycle.path, b"x-hidden" in cycle.headers))
                started(self, cycle, wrong)

            def begin(self, outgoing):
                seen.bodies.append(outgoing.body)
                return begun(self, outgoing)

            patch.setattr(guard, "_app", app)
            patch.setattr(DataProtocol, "_start_asgi_task", start)
            patch.setattr(type(upstream), "begin", begin)
            yield one, seen


@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize("name", REFUSED)
async def test_refused_and_closed(there, name, pieces):
    one, seen = there
    seen.clear()
    raw, expected = REFUSED[name]
    said, closed = await spoken(one.url, PIECES[pieces](raw + HIDDEN))
    assert statuses(said) == [expected] and closed, said[:300]
    assert seen.bodies == [] and not any(hidden for _, _, hidden in seen.passed), "nothing hidden is ever served"
    error = json.loads(said.partition(b"\r\n\r\n")[2])["error"]
    assert error["type"] == "invalid_request_error" and error["code"] and b"x-request-id: req_" in said


@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize("name", TAKEN)
async def test_read_as_everybody_reads_it(there, name, pieces):
    one, seen = there
    seen.clear()
    raw, expected, sent, closes = TAKEN[name]
    said, closed = await spoken(one.url, PIECES[pieces](raw), len(expected))
    assert (statuses(said), closed) == (expected, closes), said[:300]
    assert [json.loads(body) for body in seen.bodies] == [{**json.loads(BODY), "model": "llama"}] * sent
    assert not any(hidden for _, _, hidden in seen.passed), "a body was taken for a request"


BEHIND = {"garbage": b"GARBAGE\r\n\r\n", "two Hosts": models(HOST + HOST), "a trailer": REFUSED["a trailer"][0],
          "a bare LF": REFUSED["one bare LF"][0], "an endless head": models(HOST + b"X: " + b"a" * 400_000)}


@pytest.mark.parametrize("stream", [False, True], ids=["whole answer", "stream"])
@pytest.mark.parametrize("name", BEHIND)
async def test_an_answer_that_is_due_comes_whole_before_what_is_wrong_behind_it(there, name, stream):
    """uvicorn would write its 400 into the stream, or in the place of the first answer."""
    one, seen = there
    seen.clear()
    asked = json.dumps({**json.loads(BODY), "stream": stream, "max_tokens": 40, "min_tokens": 40}).encode()
    first = post(HOST + b"Content-Length: %d\r\n" % len(asked), asked)
    said, closed = await spoken(one.url, [first + BEHIND[name] + HIDDEN])
    assert closed and len(seen.bodies) == 1 and not any(hidden for _, _, hidden in seen.passed)
    answer, _, rest = said.partition(b"HTTP/1.1 4")
    assert statuses(answer) == [200] and rest.count(b"HTTP/1.1 ") == 0
    if stream:
        assert answer.count(b"data: [DONE]") == 1 and answer.endswith(b"0\r\n\r\n")
    else:
        head, _, body = answer.partition(b"\r\n\r\n")
        assert json.loads(body)["usage"]["completion_tokens"] == 40, head


@pytest.mark.parametrize(("begin", "more", "status"), [
    (b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-A: ", b"a" * 8192, 431),
    (b"GET /v1/models?", b"a" * 8192, 431),
    (b"GET /v1/models HTTP/1.1\r\nHost: x\r\n", b"X: " + b"a" * 4096 + b"\r\n", 431),
    (post(HOST + CHUNKED, b"1\r\n{\r\n0\r\nX-Trailer: "), b"a" * 8192, 431),
    (post(HOST + CHUNKED, b"1;a="), b"a" * 8192, 431),
    (b"", b"\r\n" * 4096, 431),
], ids=["a field", "a target", "fields", "a trailer", "a chunk extension", "empty lines"])
async def test_what_never_ends_is_cut_off_while_it_grows(there, begin, more, status):
    one, _ = there
    sent = 0

    def pieces():
        nonlocal sent
        yield begin
        for _ in range(4096):
            sent += len(more)
            yield more

    with contextlib.suppress(ConnectionError):
        said, closed = await spoken(one.url, pieces())
        assert closed and statuses(said) in ([status], []), said[:300]  # a reset may overtake the answer
    assert sent < 8 << 20, "the rest of 32 MiB had nowhere to go"


async def test_what_one_read_can_make_us_do_is_bounded(there):
    """Thousands of requests fit into one read, and of pieces of a body: memory and time for few bytes."""
    one, seen = there
    for waiting, answered in ((PIPELINE_MAX, PIPELINE_MAX + 1), (5000, 1)):
        seen.clear()
        said, closed = await spoken(one.url, models(HOST) * (waiting + 1), answered)
        assert (statuses(said), closed) == ([200] * answered, waiting > PIPELINE_MAX), "what is due, and no more"
        assert len(seen.passed) == answered
    filled = json.dumps({**json.loads(BODY), "user": "x" * PIECES_MAX}).encode()
    for size, expected in ((1, 400), (PIECE_BYTES_MIN, 200)):
        seen.clear()
        pieces = b"".join(b"%x\r\n%s\r\n" % (len(filled[at:at + size]), filled[at:at + size])
                          for at in range(0, len(filled), size))
        said, closed = await spoken(one.url, post(HOST + CHUNKED, pieces + b"0\r\n\r\n"), 1)
        assert (statuses(said), closed, len(seen.bodies)) == ([expected], expected == 400, int(expected == 200))


async def test_behind_a_refusal_nothing_is_looked_at(there):
    """The answer that is due may take minutes; what comes meanwhile is neither kept nor refused again."""
    one, _ = there
    asked = json.dumps({**json.loads(BODY), "stream": True, "max_tokens": 300, "min_tokens": 300}).encode()
    first = post(HOST + b"Content-Length: %d\r\n" % len(asked), asked)

    def refusals():
        return sum(float(line.split()[-1]) for line in one.gateway.metrics().decode().splitlines()
                   if line.startswith("breakeven_refusals_total"))

    before = refusals()
    said, closed = await spoken(one.url, [first, MODELS + b"X: ", *[b"a" * 65_536] * 100])
    assert closed and statuses(said) == [200] and said.count(b"data: [DONE]") == 1
    assert refusals() == before + 1
