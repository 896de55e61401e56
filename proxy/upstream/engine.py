"""Any upstream that speaks OpenAI's protocol over HTTP: our engines, and OpenAI's own API.

Bytes go out and come back unparsed.
"""

from __future__ import annotations

from proxy.upstream.answer import HttpAnswer
from proxy.upstream.connections import whole
from proxy.upstream.heads import fixed_part, passed_on
from proxy.upstream.origin import fixed_origin, joined
from proxy.upstream.pool import Pool
from proxy.upstream.transport import Outgoing, Target

PATHS_MAX = 64  # distinct paths of which the fixed part of a head is kept


class HttpUpstream:
    """One origin, many connections. See `transport.Upstream` for what it promises."""

    __slots__ = ("_fixed", "_origin", "_pool", "_prefix", "_target", "_waits_s")

    def __init__(self, target: Target) -> None:
        self._target = target
        self._origin, self._prefix = fixed_origin(target)
        self._pool = Pool(target, self._origin)
        self._waits_s = (target.head_s(False), target.head_s(True))
        self._fixed: dict[tuple[str, str], bytes] = {}

    def __repr__(self) -> str:
        return f"HttpUpstream({self._target.name})"

    def begin(self, outgoing: Outgoing) -> HttpAnswer:
        body = outgoing.body
        if not outgoing.request_id.isprintable():
            raise ValueError("not a header")
        head = b"%b%bx-request-id: %b\r\ncontent-length: %d\r\n\r\n" % (
            self._fixed.get(("POST", outgoing.path)) or self._fixed_part("POST", outgoing.path),
            passed_on(outgoing.headers) if outgoing.headers else b"", outgoing.request_id.encode("ascii"), len(body))
        return self._pool.send((head, body), self._waits_s[outgoing.stream])

    async def open(self, outgoing: Outgoing) -> HttpAnswer:
        return await self.begin(outgoing)

    async def get(self, path: str, timeout_s: float, bytes_max: int) -> tuple[int, bytes]:
        head = self._fixed.get(("GET", path)) or self._fixed_part("GET", path)
        return await whole(self._target, self._pool, head + b"\r\n", timeout_s, bytes_max)

    async def close(self) -> None:
        self._pool.close()

    def _fixed_part(self, method: str, path: str) -> bytes:
        headers = {"content-type": "application/json"}
        if self._target.api_key is not None:
            headers["authorization"] = f"Bearer {self._target.api_key.reveal()}"
        fixed = fixed_part(method, self._origin, joined(self._target, self._prefix, path), headers.items())
        if len(self._fixed) < PATHS_MAX:
            self._fixed[method, path] = fixed
        return fixed
