"""How fast one replica really is: its capacity as configured or guessed, corrected by what is observed.

Three witnesses teach it: our own streams, by each first token, each answer that ends, and the iterations that
only decoded; the engine's histograms of inter-token time and of first tokens, one observation between two
readings, in which others' requests and answers in one piece are seen too; and silence, in which what was
learned fades. What a stream of ours has taught is taken off the next readings (`_taught`), so that nothing
counts twice in full.

Like is compared with like: what took so long, with what the same iterations were predicted to take, by the
prompt tokens that were really computed in them and the factors of now. What is off is shared between the
two factors by their parts of the prediction.
"""

from __future__ import annotations

from proxy.core.capacity import Capacity
from proxy.core.learning import Correction, Estimate, Margin
from proxy.signals.iterations import Found, Steps
from proxy.wire.engine_metrics import EngineGauges

LEARN_TTFT_S = 0.05  # shorter predictions are noise of the network and the scheduler
LEARN_TOKENS_MIN = 8  # of one answer
WINDOW_TOKENS_MIN = 16  # between two readings, for their mean to say anything
RELAX_EVERY_S = 5.0
KNOWN_FOR = 2.0  # times as long as an iteration should last, we know when the running one began


class Speed:
    """What was learned of one replica. Only the event loop touches it; times are monotonic seconds."""

    __slots__ = ("_base", "_largest", "_taught", "learned_at", "margin", "prefill", "relaxed_at", "step")

    def __init__(self, base: Capacity, auto: bool, tpot_s: float) -> None:
        bounds = (0.2, 20.0) if auto else (0.7, 3.0)  # an operator who measured is believed within a factor of three
        self.prefill, self.step, self.margin = Correction(*bounds), Correction(*bounds), Margin()
        self.learned_at = -1e9
        self._base, self._largest = base, base.batch_at(tpot_s)
        self.relaxed_at = 0.0
        self._taught = (0.0, 0.0)  # tokens and first tokens learned from that no reading has counted yet

    def share(self, batch: float, slots: int | None) -> float:
        """Of the largest batch that meets the target and was seen to run: the load that factors are learned for."""
        return batch / min(self._largest, slots or self._largest)

    def capacity(self, share: float) -> Capacity:
        """As corrected for this load."""
        return self._base.scaled(self.prefill.at(share), self.step.at(share))

    # ---- our own streams

    def first_token(self, told_s: float, observed_s: float, found: Found, foreign: float, computed: float, share: float,
                    now: float) -> None:
        """A first token came after so long, `told_s` as the decision expected, in which so many tokens were computed
        beyond the iteration that it found running."""
        self.learned_at = now
        if told_s > LEARN_TTFT_S:
            self.margin.observe(told_s, observed_s)
        batch = found.sequences + foreign
        capacity, lag_s, lag_prefill_s = self.capacity(share), 0.0, 0.0
        step_s, token_s = capacity.step_s(batch, found.kv_tokens), capacity.prefill_token_s
        if batch:
            prefill_s = found.tokens * token_s
            left = 1 - found.age_s / (step_s + prefill_s)  # of that iteration
            left = 0.5 if left < 1 - KNOWN_FOR else max(0.0, left)
            lag_s, lag_prefill_s = left * step_s, left * prefill_s
        steps = 1 + computed // max(1.0, capacity.chunk_tokens - batch)
        if self._both(lag_s + steps * step_s, lag_prefill_s + computed * token_s, observed_s, share, now):
            self._taught = self._taught[0], self._taught[1] + 1

    def answer(self, tokens: int, took_s: float, steps: float, computed: float, batch: float, kv_tokens: float,
               share: float, now: float) -> None:
        """An answer's later tokens came in `steps` iterations, that also computed so many tokens of other prompts."""
        capacity = self.capacity(share)
        steps_s, prefill_s = steps * capacity.step_s(batch, kv_tokens), computed * capacity.prefill_token_s
        if self._both(steps_s, prefill_s, took_s, share, now):
            self._taught = self._taught[0] + tokens, self._taught[1]

    def steps(self, seen: Steps, share: float, now: float) -> None:
        """Iterations that only decoded took so long."""
        self.learned_at = now
        self.step.observe(self.capacity(share).step_s(seen.batch, seen.kv_tokens), seen.token_s, share, now=now)

    def _both(self, steps_s: float, prefill_s: float, observed_s: float, share: float, now: float,
              weight: float = 1.0) -> bool:
        """What was predicted to take `steps_s` of steps and `prefill_s` of prefill took `observed_s`."""
        predicted_s = steps_s + prefill_s
        if predicted_s <= LEARN_TTFT_S:
            return False
        part = prefill_s / predicted_s
        self.prefill.observe(predicted_s, observed_s, share, weight * part, now)
        self.step.observe(predicted_s, observed_s, share, weight * (1 - part), now)
        return True

    # ---- the engine's own word

    def between(self, before: EngineGauges, after: EngineGauges, prompt: float, kv_tokens: float, slots: int | None,
                elapsed: float, now: float) -> None:
        """What happened between two readings in which `prompt` uncached tokens were computed.

        By Little's law the inter-token times add up to the sequences that were decoding, times the time.
        """
        (seconds, count), (first_seconds, firsts) = rise(before.itl, after.itl), rise(before.ttft, after.ttft)
        taught_tokens, taught_firsts = self._taught
        self._taught = (max(0.0, taught_tokens - count) if after.itl else 0.0,
                        max(0.0, taught_firsts - firsts) if after.ttft else 0.0)
        generated = (after.generation_tokens or 0.0) - (before.generation_tokens or 0.0)
        if not before.running or not after.running or count < max(WINDOW_TOKENS_MIN, generated / 2):
            return  # it idled between, or its histogram is of requests: the law does not hold
        batch = max(1.0, seconds / elapsed)
        share = self.share(batch, slots)
        capacity, steps = self.capacity(share), count / batch
        if self._both(steps * capacity.step_s(batch, kv_tokens), prompt * capacity.prefill_token_s, elapsed, share, now,
                      1 - min(taught_tokens, count) / count):
            self.learned_at = now
        queued_seconds, queued = rise(before.queue_time, after.queue_time)
        if not firsts or not queued or queued_seconds / queued > first_seconds / firsts / 2:
            return
        alone = first_seconds / firsts - queued_seconds / queued
        step_s = capacity.step_s(batch, kv_tokens)
        predicted = capacity.ttft_s(0.0, prompt / firsts, batch, kv_tokens) - step_s / 2
        if predicted > LEARN_TTFT_S and alone * firsts <= elapsed:  # one at a time, or they shared iterations
            self.prefill.observe(predicted, alone, share, 1 - min(taught_firsts, firsts) / firsts, now)

    # ---- silence

    def relax(self, now: float) -> None:
        """What nothing confirms fades."""
        idle = now - self.relaxed_at
        if idle <= RELAX_EVERY_S:
            return
        self.relaxed_at = now
        for correction in (self.prefill, self.step):
            if correction.idle_s(now) > RELAX_EVERY_S:
                correction.relax(min(idle, correction.idle_s(now)))
        if now - self.learned_at > RELAX_EVERY_S:
            self.margin.relax(min(idle, now - self.learned_at))

    def estimates(self, capacity: Capacity, now: float) -> dict[str, Estimate]:
        """The figures of `capacity`, which carries the factors: how old, how sure, from how many observations."""
        source = self._base.source
        untaught = Correction()
        learned = {"prefill_tokens_per_s": self.prefill, "alpha_s": self.step, "beta_s": self.step,
                   "kappa_s": self.step, "kv_tokens": untaught, "max_running": untaught}
        return {name: by.estimate(getattr(capacity, name), source, now) for name, by in learned.items()}


def rise(before: tuple[float, float] | None, after: tuple[float, float] | None) -> tuple[float, float]:
    """(sum, count) that a histogram gained; nothing where it is unknown or began anew."""
    if before is None or after is None or after[0] < before[0] or after[1] < before[1]:
        return 0.0, 0.0
    return after[0] - before[0], after[1] - before[1]
