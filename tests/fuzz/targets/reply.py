"""What comes on a connection to an upstream: `Connection` and `HttpAnswer`, from the first byte to how it ends.

- Any split of the bytes gives the same answer, whoever reads it by whichever means, eager or slow.
- Every step is in the connection's table, and nothing escapes; an error says nothing that the upstream said.
- An answer that ended cleanly has the length that was declared; a connection is used again only if nothing more came.
"""

from __future__ import annotations

import re

from tests.fuzz.draw import Draw
from tests.fuzz.watch import timed
from tests.support.upstream_wire import ENDINGS, HOWS, heard

WORDS = (
    b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 ", b"HTTP/1.1 100 Continue\r\n\r\n", b" 101 ", b" 204 ", b" 302 ", b" 429 ",
    b"\r\n\r\n", b"content-length: 3\r\n", b"transfer-encoding: chunked\r\n", b"content-encoding: gzip\r\n",
    b"connection: close\r\n", b"connection: keep-alive\r\n", b"connection: upgrade\r\nupgrade: x\r\n",
    b"content-type: text/event-stream\r\n", b"3\r\nabc\r\n", b"0\r\n\r\n", b"0\r\nx: y\r\n\r\n", b";a=b", b"ffffffff",
    b"\t", b"\0", b"data: {}\n\n")

SAID = re.compile(r"""one:\ (  # all that an error may say
    connection\ (closed|reset)\ before\ an\ answer | no\ (answer|first\ byte)\ in\ time
    | the\ answer\ broke\ off\ before\ its\ (end|first\ byte) | fell\ silent\ in\ the\ middle\ of\ its\ answer
    | answered\ (something\ that\ is\ not\ HTTP,\ or\ a\ head\ over\ the\ limit
    | \d{1,3};\ redirects\ are\ not\ followed
    | compressed,\ which\ was\ not\ asked\ for | in\ a\ transfer\ coding\ that\ was\ not\ asked\ for))""", re.VERBOSE)


def run(data: bytes) -> None:
    draw = Draw(data)
    how, ending = HOWS[draw.option(3)], ENDINGS[draw.option(4)]
    eager, body = bool(draw.option(2)) or ending == "silence", draw.body  # while nobody waits nothing is late

    told = timed(heard, body, how, (), ending)
    assert told.end in ("clean", "waiting", "UpstreamFailed", "UpstreamCut", "UpstreamTimeout")
    assert told.status == 0 or 200 <= told.status < 300 or told.status >= 400
    assert all(name == name.lower() for name in told.headers)
    assert SAID.fullmatch(told.error) if told.error else told.end in ("clean", "waiting"), told.error
    if told.end == "clean" and told.status != 204 and "content-length" in told.headers:
        assert len(told.body) == int(told.headers["content-length"])
    if told.kept:
        assert told.end == "clean" and ending in ("", "silence")
        more = heard(body + b"HTTP/1.1 200 OK\r\n", how)
        assert not more.kept and more.body == told.body, "what came behind an answer was taken for one"
    if draw.long:
        timed(heard, body, how, draw.cuts, ending, False, eager)
        return  # what is too long depends on what comes in one read
    cut = heard(body, how, draw.cuts, ending, True, eager)
    if body.endswith((b"\r", b"\n")):
        cut.kept = told.kept  # blank lines behind the end do no harm in the same read
    if body or ending not in ("close", "reset"):  # else a used connection is tried again elsewhere
        assert cut == told
