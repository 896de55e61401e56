"""Child processes that say where they listen, are watched, and never stay behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

TAIL_LINES = 20
LINE_BYTES_MAX = 65_536
_READY = re.compile(r"listening on (http://\S+)")


class DemoError(Exception):
    """The demo cannot start or go on. `code` is the command's exit code."""

    code = 1


class PortInUse(DemoError):
    """The gateway's port belongs to someone else."""

    code = 2


class ChildDied(DemoError):
    """A process of the demo ended by itself; the message holds its last lines."""


class Child:
    """One process in a group of its own, so that a Ctrl-C of the terminal reaches only its parent."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name, self.process = name, process
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._reader = asyncio.create_task(self._read(), name=f"output of {name}")

    @classmethod
    async def start(cls, name: str, module: str, arguments: Sequence[str],
                    environment: Mapping[str, str] | None) -> Child:
        """`python -m MODULE ARGUMENTS`, its output to us. Without `environment` it inherits ours."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "proxy.demo.child", str(os.getpid()), module, *arguments, env=environment,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            start_new_session=True, limit=LINE_BYTES_MAX)
        return cls(name, process)

    async def _read(self) -> None:
        output = self.process.stdout
        assert output is not None
        while True:
            try:
                line = await output.readline()
            except ValueError:  # longer than LINE_BYTES_MAX: the rest of it comes as lines of its own
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            self.tail.append(text)
            if (found := _READY.search(text)) and not self._url.done():
                self._url.set_result(found[1])

    async def url(self) -> str:
        """Where it listens, once it does. ChildDied if it ends before."""
        ended = asyncio.ensure_future(self.died())
        await asyncio.wait((ended, self._url), return_when=asyncio.FIRST_COMPLETED)
        if self._url.done():
            ended.cancel()
            return self._url.result()
        raise ended.result()

    async def died(self) -> ChildDied:
        """Waits until it ends, and says how."""
        code = await self.process.wait()
        await asyncio.wait((self._reader,), timeout=1)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        last = "\n".join(f"    {line}" for line in self.tail) or "    (it printed nothing)"
        return ChildDied(f"{self.name} {how}; its last lines:\n{last}")

    async def stop(self, patience_s: float) -> None:
        """Ask it to end, and make it."""
        self._signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.process.wait(), patience_s)
        self.kill()
        await self.process.wait()
        await asyncio.wait((self._reader,), timeout=1)

    def kill(self) -> None:
        """At once, with whatever it started. Awaits nothing, so it works in any `finally`."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)


async def first_death(children: Sequence[Child]) -> ChildDied:
    """Waits for as long as all live."""
    waits = [asyncio.ensure_future(child.died()) for child in children]
    try:
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        return done.pop().result()
    finally:
        for wait in waits:
            wait.cancel()


@contextlib.contextmanager
def reserved(wanted: Sequence[int]) -> Iterator[list[int]]:
    """Loopback ports for children that start at the same time: `wanted` ones, 0 for any. PortInUse.

    On Linux they stay bound, without listening, until the children that share them listen; elsewhere
    two sockets cannot share an address, so they are let go at once.
    """
    with contextlib.ExitStack() as held:
        ports = []
        for port in wanted:
            sock = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", port))
            except OSError as error:
                raise PortInUse(f"port {port} on 127.0.0.1 cannot be used ({error.strerror}); "
                                "choose another with --port, or --port 0 for any") from None
            ports.append(sock.getsockname()[1])
        if sys.platform != "linux":
            held.close()
        yield ports
