"""An answer in one piece, or an error: `read_usage`, `tier_of`, `relay_error`, `scrub`.

- The quick look at the end of a body finds the usage that parsing it whole finds.
- Whatever an upstream's error looks like, the client gets one whole envelope, bounded, without the secret
  planted in it.
"""

from __future__ import annotations

import orjson

from proxy.wire.endpoints import Endpoint
from proxy.wire.envelope import MESSAGE_BYTES_MAX, is_context_overflow, mentions_stream_options, relay_error
from proxy.wire.scrub import scrub
from proxy.wire.usage import read_usage, tier_of, usage_from_dict
from tests.fuzz.draw import Draw
from tests.fuzz.watch import timed

STATUSES = (400, 401, 403, 404, 413, 422, 429, 500, 503)
CANARY = "sk-canaryQ7x9Zp2LmW4vT8bN"
TEXT_CHARS_MAX = 16_384  # what `relay_error` gives to `scrub`

WORDS = (b'"usage":', b',"usage":{"prompt_tokens":1,"completion_tokens":2}}', b'"error":', b'"message":', b'"code":',
         b'"type":',
         b'"param":', b'"detail":', b'"service_tier":', b"http://", b"https://a:b@", b"10.0.0.1", b":8000",
         b"sk-abcdefgh",
         b"Bearer ", b"api_key=", b"eyJ", b".internal", b"Valid aliases:", b"<html>", b"maximum context length",
         b"model")


def run(data: bytes) -> None:
    draw = Draw(data)
    endpoint, status = list(Endpoint)[draw.option(3)], STATUSES[draw.option(len(STATUSES))]
    body = draw.body

    usage = timed(read_usage, endpoint, body)
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        document = None
    if isinstance(document, dict):
        assert (tier := tier_of(document)) is None or 0 < len(tier) <= 32
        assert usage == usage_from_dict(document.get("usage"), endpoint), "the quick look sees another usage"

    is_whole(timed(relay_error, status, body), status)
    timed(is_context_overflow, status, body)
    timed(mentions_stream_options, status, body)

    text = body.decode("utf-8", "replace")[:TEXT_CHARS_MAX]
    at = draw.cuts[0] if draw.cuts else 0
    leaky = f"{text[:at]} {CANARY} {text[at:]}"
    for said in ({"error": {"message": leaky}}, {"detail": [{"msg": leaky}]},
                 {"error": {"message": "x", "param": leaky}}):
        told = relay_error(status, orjson.dumps(said))
        is_whole(told, status)
        assert CANARY.encode() not in told, "a secret was relayed"
    assert not set(timed(scrub, text)) & set("\0\r\x1b\x7f\u2028"), "a control character was relayed"


def is_whole(envelope: bytes, status: int) -> None:
    error = orjson.loads(envelope)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and len(error["message"].encode()) <= MESSAGE_BYTES_MAX
    assert error["type"] and all(error[name] != "None" for name in ("param", "code"))
    assert error["param"] is None or len(error["param"]) <= 1024
    assert error["code"] is None or len(error["code"]) <= 64
