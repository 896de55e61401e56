"""Engines and APIs as upstreams: they queue, hold a KV cache, prefill and decode in virtual time, and misbehave.

Both keep the contract of `upstream.transport`, to the letter where it hurts: bytes that came are handed over before the
cut, an answer is ended exactly once, a cancelled `open` leaves nothing behind. What a request meets is drawn when it
comes: see FAULTS. An engine's metrics page may be missing, frozen, garbled or a lie.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from proxy.core.errors import UpstreamCut, UpstreamError, UpstreamFailed, UpstreamTimeout, UpstreamUnreachable
from proxy.upstream.pulled import Pulled
from proxy.upstream.transport import Outgoing, Target

# Before the head; as the answer; in the answer's middle; in its usage.
BEFORE = ("refused", "reset", "hang_head")
STATUSES = {"status_500": (500, b"oops"), "status_503": (503, b'{"error":{"message":"busy"}}'),
            "status_429": (429, b'{"error":{"message":"slow down","type":"rate_limit_error"}}'),
            "status_400": (400, b'{"error":{"message":"no","type":"invalid_request_error"}}'),
            "status_401": (401, b'{"error":{"message":"bad key"}}'),
            "context_400": (400, b'{"error":{"message":"too long","code":"context_length_exceeded"}}'),
            "stream_options_400": (400, b'{"error":{"message":"Unrecognized request argument: stream_options"}}')}
MIDDLE = ("cut_first", "cut_event", "cut_end", "hang_middle", "garbage", "error_event", "silent_end", "slow")
USAGES = ("usage_missing", "usage_twice", "usage_wrong", "usage_absurd")
FAULTS = (*BEFORE, *STATUSES, *MIDDLE, *USAGES)
PAGES = ("page_missing", "page_refused", "page_frozen", "page_lies", "page_garbled")
MOODS = ("engine_wedged", "engine_restarts", "api_down")
STEP_TOKENS = 4  # of each sequence, in one event of the simulation

Source = Callable[["Ask"], str]


@dataclass(slots=True)
class Ask:
    """One request at an upstream."""

    outgoing: Outgoing
    document: Mapping[str, Any]
    upstream: str
    fault: str
    prompt_tokens: int
    output_tokens: int
    left: int = 0  # tokens to come
    answer: SimAnswer | None = None
    on_end: Callable[[Ask], None] | None = None
    head: asyncio.Future[SimAnswer] | None = None
    timers: list[asyncio.TimerHandle] = field(default_factory=list)

    @property
    def chat(self) -> bool:
        return self.outgoing.path.endswith("chat/completions")

    def piece(self, count: int, usage: Mapping[str, int] | None) -> bytes:
        tail = b"" if usage is None else b',"usage":' + orjson.dumps(usage)
        start = (b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,'
                 b'"delta":{"content":"tok "},"finish_reason":null}]' if self.chat else
                 b'data: {"id":"c","object":"text_completion","created":1,"model":"m","choices":[{"index":0,'
                 b'"text":"tok ","finish_reason":null}]')
        return (start + tail + b"}\n\n") * count

    def finish(self) -> bytes:
        inner = b'"delta":{}' if self.chat else b'"text":""'
        return (b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,'
                + inner + b',"finish_reason":"stop"}]}\n\n')

    def usage(self, done: int) -> dict[str, int]:
        prompt, output = self.prompt_tokens, done
        if self.fault == "usage_wrong":
            prompt, output = max(1, prompt // 2), max(0, done - 1)
        elif self.fault == "usage_absurd":
            prompt, output = prompt * 50, done * 50
        return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}

    def ending(self) -> bytes:
        """Usage as asked, or as broken, and [DONE]."""
        options = self.document.get("stream_options") or {}
        usage = b'data: {"id":"c","choices":[],"usage":' + orjson.dumps(self.usage(self.output_tokens)) + b"}\n\n"
        times = {"usage_missing": 0, "usage_twice": 2}.get(self.fault, 1) if options.get("include_usage") else 0
        return usage * times + b"data: [DONE]\n\n"

    def whole(self) -> bytes:
        if self.outgoing.path.endswith("embeddings"):
            body: dict[str, Any] = {"object": "list", "data": [{"index": 0, "embedding": [0.1]}], "model": "m"}
        else:
            text = "tok " * self.output_tokens
            choice = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
            body = {"id": "c", "model": "m", "choices": [{"index": 0, "finish_reason": "stop", **choice}]}
        if self.fault != "usage_missing":
            body["usage"] = self.usage(self.output_tokens)
        return orjson.dumps(body)


class SimAnswer(Pulled):
    """See `transport.Answer`. Fed by its upstream with `push`, `end` and `fail`."""

    def __init__(self, ask: Ask, status: int, content_type: str, open_answers: set[SimAnswer]) -> None:
        super().__init__()
        self.status = status
        self.headers = {"content-type": content_type, "x-request-id": "up"}
        if status in (429, 503):
            self.headers["retry-after"] = "1"
        self.ask, self._open = ask, open_answers
        self._pieces: deque[bytes] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._error: UpstreamError | None = None
        self._ended = self._aborted = self.handed = self.clean = False
        open_answers.add(self)

    def push(self, data: bytes) -> None:
        self._pieces.append(data)
        self._wake()

    def end(self) -> None:
        self._ended = True
        self._wake()

    def fail(self, error: UpstreamError) -> None:
        if not self._ended and self._error is None:
            self._error = error
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def chunk(self) -> bytes:
        while True:
            if self._aborted:
                raise UpstreamCut(f"{self.ask.upstream}: broken off")
            if self._pieces:
                self.handed = True
                return self._pieces.popleft()
            if self._error is not None:
                error = self._error
                self.abort()
                if isinstance(error, UpstreamCut) and not self.handed:
                    raise UpstreamFailed(error.message)
                raise error
            if self._ended:
                if not self.clean:  # the connection is given back with the last byte
                    self.clean = True
                    self._over()
                return b""
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    async def read(self, bytes_max: int) -> bytes:
        pieces = []
        while piece := await self.chunk():
            pieces.append(piece)
        return b"".join(pieces)

    def abort(self) -> None:
        if not self._aborted and not self.clean:
            self._aborted = True
            self._over()
            self._wake()

    def release(self) -> None:
        self.abort()  # which does nothing to one that was read to its end

    def _over(self) -> None:
        self._open.discard(self)
        if self.ask.on_end is not None:
            self.ask.on_end(self.ask)


class SimUpstream:
    """What engines and APIs share: the fault a request meets, the head, and how a middle goes wrong."""

    def __init__(self, target: Target, sim: Any) -> None:
        self.target, self.sim, self.name = target, sim, target.name
        self.answers: set[SimAnswer] = set()
        self.mood = ""
        self.pick: random.Random = sim.pick

    def begin(self, outgoing: Outgoing) -> asyncio.Task[SimAnswer]:
        return asyncio.ensure_future(self.open(outgoing))

    async def open(self, outgoing: Outgoing) -> SimAnswer:
        document = orjson.loads(outgoing.body)
        probe = outgoing.request_id == "breakeven-probe"
        fault = "" if probe else self.sim.fault_for(self, outgoing)
        limit = document.get("max_tokens") or document.get("max_completion_tokens") or 40
        output = 0 if outgoing.path.endswith("embeddings") else min(limit, self.pick.randint(1, 24))
        ask = Ask(outgoing, document, self.name, fault, max(1, len(outgoing.body) // 5), output, output)
        if not probe:
            self.sim.rules.asked(self, ask)
        await asyncio.sleep(0.001)
        if self.mood in ("api_down", "engine_restarts") or fault == "refused":
            raise UpstreamUnreachable(f"{self.name}: connection refused")
        if fault == "reset":
            await asyncio.sleep(self.pick.random() * 0.2)
            raise UpstreamFailed(f"{self.name}: connection reset before an answer")
        if fault == "hang_head":
            await asyncio.sleep(self.target.head_s(outgoing.stream))
            raise UpstreamTimeout(f"{self.name}: no answer in time")
        if fault in STATUSES:
            status, body = STATUSES[fault]
            answer = SimAnswer(ask, status, "application/json", self.answers)
            answer.push(body)
            answer.end()
            return answer
        ask.head = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self.target.head_s(outgoing.stream)):
                self.serve(ask)
                return await ask.head
        except TimeoutError:
            self.forget(ask)
            raise UpstreamTimeout(f"{self.name}: no answer in time") from None
        except BaseException:
            self.forget(ask)
            raise

    def serve(self, ask: Ask) -> None:
        """Begin to work for it; `head_of` it, `tokens` for it, sooner or later."""
        raise NotImplementedError

    def forget(self, ask: Ask) -> None:
        """It is not wanted any more. Idempotent."""
        for timer in ask.timers:
            timer.cancel()
        if ask.answer is not None and (ask.head is None or not ask.head.done() or ask.head.cancelled()):
            self.answers.discard(ask.answer)

    def head_of(self, ask: Ask) -> None:
        if ask.answer is None and ask.head is not None and not ask.head.done():
            kind = "text/event-stream" if ask.outgoing.stream else "application/json"
            ask.answer = SimAnswer(ask, 200, kind, self.answers)
            ask.on_end = self.forget
            ask.head.set_result(ask.answer)

    def tokens(self, ask: Ask, count: int) -> bool:
        """So many more of its tokens are there. False once nothing more will come."""
        ask.left -= count
        if not ask.outgoing.stream:
            if ask.left <= 0:
                self.head_of(ask)
                return self._ends(ask, ask.whole())
            return True
        self.head_of(ask)
        answer = ask.answer
        if answer is None:
            return False
        done = ask.output_tokens - ask.left
        if ask.fault in ("cut_first", "cut_event", "hang_middle", "garbage", "error_event") and (
                ask.fault == "cut_first" or done > ask.output_tokens // 2):
            return self._breaks(ask, answer)
        options = ask.document.get("stream_options") or {}
        answer.push(ask.piece(count, ask.usage(done) if options.get("continuous_usage_stats") else None))
        if ask.left > 0:
            return True
        if ask.fault == "silent_end":
            answer.end()
            return False
        return self._ends(ask, ask.finish() + ask.ending())

    def _ends(self, ask: Ask, last: bytes) -> bool:
        answer = ask.answer
        if answer is not None:
            if ask.fault in ("cut_end", "cut_event", "cut_first"):
                answer.push(last[:len(last) - 9])
                answer.fail(UpstreamCut(f"{self.name}: the answer broke off before its end"))
            elif ask.fault in ("garbage", "error_event") and not ask.outgoing.stream:
                answer.push(b"<html>" if ask.fault == "garbage" else b'{"error":{"message":"cuda"}}')
                answer.end()
            else:
                answer.push(last)
                answer.end()
        return False

    def _breaks(self, ask: Ask, answer: SimAnswer) -> bool:
        if ask.fault == "cut_event":
            answer.push(ask.piece(1, None)[:60])
        if ask.fault == "garbage":
            answer.push(b"data: {\"choices\": [{]\n\n")
        elif ask.fault == "error_event":
            answer.push(b'data: {"error":{"message":"cuda out of memory"}}\n\n')
        elif ask.fault == "hang_middle":
            ask.timers.append(asyncio.get_running_loop().call_later(
                self.target.idle_s, answer.fail, UpstreamTimeout(f"{self.name}: fell silent")))
        else:
            answer.fail(UpstreamCut(f"{self.name}: the answer broke off before its end"))
        if ask.fault in ("garbage", "error_event"):
            answer.end()
        return False

    async def get(self, path: str, timeout_s: float, bytes_max: int) -> tuple[int, bytes]:
        return 404, b""

    async def close(self) -> None:
        for answer in list(self.answers):
            answer.fail(UpstreamCut(f"{self.name}: closed"))


class SimApi(SimUpstream):
    """A commercial API: no queue, a first token after a while, then one every few milliseconds."""

    def serve(self, ask: Ask) -> None:
        first = 0.05 + self.pick.random() * (8.0 if ask.fault == "slow" else 0.5)
        self._later(ask, first)

    def _later(self, ask: Ask, seconds: float) -> None:
        ask.timers[:] = [asyncio.get_running_loop().call_later(seconds, self._more, ask)]

    def _more(self, ask: Ask) -> None:
        count = min(max(1, ask.left), 6) if ask.outgoing.stream else ask.left
        if self.tokens(ask, count if ask.left else 0):
            self._later(ask, 0.1)


class SimEngine(SimUpstream):
    """An engine of our own: a queue, so many slots, a KV cache, steps that last as long as the batch makes them."""

    SLOTS, KV_TOKENS, PREFILL_PER_S, ALPHA_S, BETA_S = 12, 16_384, 20_000.0, 0.02, 0.001

    def __init__(self, target: Target, sim: Any) -> None:
        super().__init__(target, sim)
        self.waiting: deque[Ask] = deque()
        self.running: list[Ask] = []
        self._prefill = 0.0
        self._stepping = False
        self.prompt_total = self.output_total = self.steps = 0
        self._page = b""

    def serve(self, ask: Ask) -> None:
        self.waiting.append(ask)
        if not self._stepping:
            self._step()

    def forget(self, ask: Ask) -> None:
        super().forget(ask)
        if ask in self.running:
            self.running.remove(ask)
        elif ask in self.waiting:
            self.waiting.remove(ask)

    @property
    def kv(self) -> int:
        return sum(ask.prompt_tokens + ask.output_tokens for ask in self.running)

    def _step(self) -> None:
        prefill, used = 0, self.kv
        while self.waiting and len(self.running) < self.SLOTS:
            need = self.waiting[0].prompt_tokens + self.waiting[0].output_tokens
            if self.running and used + need > self.KV_TOKENS:
                break
            ask = self.waiting.popleft()
            used, prefill = used + need, prefill + ask.prompt_tokens
            self.running.append(ask)
            self.prompt_total += ask.prompt_tokens
        self._stepping = bool(self.running)
        if self._stepping:
            slow = 6.0 if any(ask.fault == "slow" for ask in self.running) else 1.0
            lasts = prefill / self.PREFILL_PER_S + slow * STEP_TOKENS * (self.ALPHA_S + self.BETA_S * len(self.running))
            asyncio.get_running_loop().call_later(lasts, self._stepped)

    def _stepped(self) -> None:
        if self.mood == "engine_wedged":
            asyncio.get_running_loop().call_later(0.5, self._stepped)
            return
        self.steps += STEP_TOKENS
        for ask in list(self.running):
            count = min(STEP_TOKENS, ask.left)
            self.output_total += count
            if not self.tokens(ask, count) and ask in self.running:
                self.running.remove(ask)
        self._step()

    def restart(self) -> None:
        """Everything it held is cut, its counters begin anew."""
        for ask in [*self.running, *self.waiting]:
            if ask.answer is not None:
                ask.answer.fail(UpstreamCut(f"{self.name}: the answer broke off before its end"))
            elif ask.head is not None and not ask.head.done():
                ask.head.set_exception(UpstreamFailed(f"{self.name}: connection reset before an answer"))
        self.running.clear()
        self.waiting.clear()
        self.prompt_total = self.output_total = self.steps = 0

    async def get(self, path: str, timeout_s: float, bytes_max: int) -> tuple[int, bytes]:
        if self.mood == "engine_restarts":
            raise UpstreamUnreachable(f"{self.name}: connection refused")
        if path != "/metrics":
            return 404, b""
        fault = self.sim.page_fault()
        await asyncio.sleep(0.002)
        if fault == "page_refused":
            raise UpstreamUnreachable(f"{self.name}: connection refused")
        if fault == "page_missing":
            raise UpstreamTimeout(f"{self.name}: no answer in time")
        if fault == "page_garbled":
            return 200, self._page[:len(self._page) // 2] + b"\xff NaN {{{"
        if fault != "page_frozen" or not self._page:
            self._page = self._render(lies=fault == "page_lies")
        return 200, self._page

    def _render(self, lies: bool) -> bytes:
        running, waiting, kv = (0, 0, 0.0) if lies else (
            len(self.running), len(self.waiting), min(1.0, self.kv / self.KV_TOKENS))
        return (f"vllm:num_requests_running {running}\nvllm:num_requests_waiting {waiting}\n"
                f"vllm:kv_cache_usage_perc {kv}\nvllm:prompt_tokens_total {self.prompt_total}\n"
                f"vllm:generation_tokens_total {self.output_total}\n"
                f"vllm:iteration_tokens_total_count {self.steps}\nvllm:num_preemptions_total 0\n").encode()
