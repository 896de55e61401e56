"""A listener that nobody should ever call, and the many ways to write its address."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator


class Canary:
    """Counts who connects to it, on 127.0.0.1."""

    def __init__(self, port: int) -> None:
        self.port, self.visits = port, 0
        self.heard: list[bytes] = []

    async def visit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.visits += 1
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(0.5):
                self.heard.append(await reader.read(65536))
        writer.close()

    def urls(self) -> list[str]:
        """Addresses of the canary, and of what is never to be called, as they get past a check."""
        port = self.port
        loopback = (
            "127.0.0.1", "localhost", "127.1", "127.0.1", "2130706433", "0x7f000001", "0177.0.0.1", "017700000001",
            "0x7f.1", "127.0.0.1.", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "0.0.0.0", "0", "LOCALHOST",
            "127。0。0。1", "①②⑦.0.0.1", "127.0.0.1.nip.io")
        here = f"127.0.0.1:{port}"
        return [
            *(f"http://{host}:{port}/x" for host in loopback),
            f"http://example.com\\@{here}/x", f"http://{here}\\@example.com/x", f"http://example.com@{here}/x",
            f"http://{here}#@example.com/x", f"http://{here}?@example.com/x", f"http:/\\{here}/x",
            f"http:\\\\{here}/x", f"http:{here}/x", f"//{here}/x", f"\\\\{here}/x", f"/\\{here}/x",
            f" http://{here}/x", f"\thttp://{here}/x", f"{' ' * 300}http://{here}/x",
            f"ht{chr(10) * 300}tp://{here}/x", f"\x00http://{here}/x", f"HTTP://{here}/x", f"https://{here}/x",
            f"ftp://{here}/x", f"gopher://{here}/x", f"s3://{here}/x", f"ws://{here}/x", f"http://[::]:{port}/x",
            "file:///etc/passwd", "file:/etc/passwd", "jar:http://127.0.0.1!/x", "http://169.254.169.254/latest/meta-data",
            "http://[fd00:ec2::254]/", "http://metadata.google.internal/", "http://10.0.0.1/", "http://172.16.0.1/",
            "http://192.168.0.1/", "http://100.64.0.1/", "http://[fe80::1%25eth0]/"]


@contextlib.asynccontextmanager
async def canary() -> AsyncIterator[Canary]:
    sock = socket.create_server(("127.0.0.1", 0))
    one = Canary(sock.getsockname()[1])
    server = await asyncio.start_server(one.visit, sock=sock)
    try:
        yield one
    finally:
        server.close()
