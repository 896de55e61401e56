"""Connections to one of several workers. The kernel chooses who takes a connection; /proc says who has."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import socket
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from tests.support.patience import PATIENCE_S

CONNECTIONS = 200  # until each worker has taken one


class Line:
    """One connection that is kept, and so one worker. It is never made anew in secret."""

    def __init__(self, url: str) -> None:
        where = urlsplit(url)
        self._http = http.client.HTTPConnection(where.hostname or "", where.port, timeout=PATIENCE_S)
        self._http.connect()
        self._http.auto_open = 0
        self.ports = self._http.sock.getsockname()[1], where.port

    async def ask(self, method: str, path: str, body: bytes | None = None,
                  **headers: str) -> tuple[int, dict[str, str], str]:
        """(status, headers, body)."""
        return await asyncio.to_thread(self._ask, method, path, body, headers)

    async def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], str]:
        return await self.ask("GET", path, **headers)

    async def post(self, path: str, body: Any, **headers: str) -> tuple[int, dict[str, str], str]:
        return await self.ask("POST", path, json.dumps(body).encode(), content_type="application/json", **headers)

    async def form(self, path: str, fields: dict[str, str], **headers: str) -> tuple[int, dict[str, str], str]:
        return await self.ask("POST", path, urlencode(fields).encode(),
                              content_type="application/x-www-form-urlencoded", **headers)

    async def events(self, path: str, **headers: str) -> AsyncIterator[dict[str, Any]]:
        """The events of a stream, until it ends or nobody asks for more."""
        answer = await asyncio.to_thread(self._begun, "GET", path, None, headers)
        assert answer.status == 200, answer.read()
        while line := await asyncio.to_thread(answer.readline):
            if line.startswith(b"data: "):
                yield json.loads(line[6:])

    def close(self) -> None:
        if self._http.sock is not None:
            with contextlib.suppress(OSError):
                self._http.sock.shutdown(socket.SHUT_RDWR)  # whoever reads it in a thread reads no more
        self._http.close()

    def _ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, dict[str, str],
                                                                                                  str]:
        answer = self._begun(method, path, body, headers)
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read().decode()

    def _begun(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> http.client.HTTPResponse:
        self._http.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        return self._http.getresponse()


def taken_by(line: Line, pids: Iterable[int]) -> int | None:
    """Which process holds the other end of a connection."""
    port, server_port = line.ports
    for row in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = row.split()
        if [int(one.rpartition(":")[2], 16) for one in fields[1:3]] == [server_port, port]:
            wanted = f"socket:[{fields[9]}]"
            return next((pid for pid in pids if wanted in _open(pid)), None)
    return None


def _open(pid: int) -> set[str]:
    found = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(os.readlink(fd))
    return found


@contextlib.asynccontextmanager
async def a_line_to_each(url: str, pids: list[int]) -> AsyncIterator[list[Line]]:
    """A connection to each of these workers, in their order."""
    found: dict[int, Line] = {}
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(CONNECTIONS):
            line = Line(url)
            assert (await line.get("/healthz"))[0] == 200
            pid = taken_by(line, pids)
            if pid is None or pid in found:
                line.close()
                continue
            found[pid] = line
            stack.callback(line.close)
            if len(found) == len(pids):
                break
        assert len(found) == len(pids), f"of {pids} only {list(found)} took a connection"
        yield [found[pid] for pid in pids]
