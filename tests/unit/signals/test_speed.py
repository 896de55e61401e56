"""What a replica learns of its engine's speed: from our streams, from its histograms, from both. A fake clock.

The engine is the arithmetic behind the simulated one; it is twice as slow as the replica was told.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from proxy.core.capacity import Capacity
from proxy.demo.engine_metrics import Gauges, Recorder, page
from proxy.demo.engine_model import EngineModel, EngineProfile
from proxy.signals.replica import Replica
from proxy.wire.engine_metrics import EngineGauges, read_metrics

TRUE = EngineProfile(model="sim", alpha_ms=24.0, beta_ms=0.8, kappa_ms_per_1k=0.02, prefill_tokens_per_s=4000.0,
                     max_num_seqs=32, kv_tokens=131_072, max_model_len=8192)
TOLD = Capacity(1 / (0.5 / 4000 + 0.012 / 2048), 0.012, 0.0004, 1e-8, 131_072, 32, "prior")


class Life:
    """Minutes of one engine and its replica in a moment. `ours`: streamed by us, `whole`: by us in one piece; else
    somebody else's."""

    def __init__(self, kind: str, per_s: float, seed: int = 1, histograms: bool = True) -> None:
        self.kind, self.per_s, self.chance, self.histograms = kind, per_s, random.Random(seed), histograms
        self.model, self.recorder = EngineModel(TRUE), Recorder(TRUE)
        self.replica = Replica("llama", 0, "http://x", TOLD, auto=True)
        self.now, self.arrives, self.scraped = 0.0, 0.0, -1.0
        self.claims: dict = {}
        self.ended = 0

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            if self.now - self.scraped >= 1.0:
                self._scrape()
            took = self.model.begin_step(self.now)
            ends = self.now + (0.01 if took is None else took)
            while self.arrives <= ends:  # while it computes
                self.now = max(self.now, self.arrives)
                self._arrive()
                self.arrives += self.chance.expovariate(self.per_s)
            self.now = ends
            if took is not None:
                self._step()

    def _arrive(self) -> None:
        prompt, output = self.chance.randint(200, 2500), self.chance.randint(20, 120)
        seq = self.model.submit(self.chance.randbytes(4 * prompt), bytes(4 * output), self.now)
        if self.kind != "others":
            predicted = self.replica.state(self.now).capacity.ttft_s(
                self.replica.load.backlog_tokens, prompt, self.replica.load.sequences, self.replica.load.kv_tokens)
            self.claims[seq] = self.replica.load.claim(prompt, prompt, output, 1, self.now)
            self.claims[seq].told_s = predicted

    def _step(self) -> None:
        report = self.model.end_step(self.now)
        self.recorder.step(report, self.model)
        for seq in report.tokens:
            if self.kind == "ours":
                self.claims[seq].tokens(1, self.now)
        for seq in report.finished:
            self.recorder.end(seq, "length")
            self.ended += 1
            if self.kind == "others":
                continue
            claim = self.claims.pop(seq)
            claim.release(self.now)
            if self.kind == "ours":
                self.replica.learn(claim, (seq.last_token - seq.first_token) / (seq.generated - 1))

    def _scrape(self) -> None:
        self.scraped = self.now
        gauges = Gauges(len(self.model.running), len(self.model.waiting), self.model.kv_usage)
        read = read_metrics(page(TRUE, self.recorder, gauges), "vllm")
        self.replica.take(read if self.histograms else replace(read, itl=None, ttft=None), self.now)


@pytest.mark.parametrize("kind", ["ours", "others", "whole"])
def test_an_engine_twice_as_slow_as_told_is_known_for_it_after_two_minutes(kind):
    life = Life(kind, per_s=1.2)
    life.run(120)
    load = 0.25
    assert life.replica.step.at(load) == pytest.approx(2.0, rel=0.15)
    assert life.replica.prefill.at(load) == pytest.approx(2.0, rel=0.25)
    assert life.replica.step.observations > 40
    found = life.replica.estimates(life.now)
    assert found["alpha_s"].value == pytest.approx(0.024, rel=0.15)
    assert found["alpha_s"].confidence > 0.5 and found["alpha_s"].age_s < 10
    assert found["kv_tokens"].value == 131_072 and found["kv_tokens"].confidence > 0.9
    assert set(found) == {"prefill_tokens_per_s", "alpha_s", "beta_s", "kappa_s", "kv_tokens", "max_running"}


def test_what_our_streams_have_taught_is_not_counted_again_from_the_page():
    seen, unseen = Life("ours", per_s=1.2), Life("ours", per_s=1.2, histograms=False)
    seen.run(200)
    unseen.run(200)
    assert seen.replica.step.observations < unseen.replica.step.observations + 50  # readings alone would add 200
    assert seen.replica.prefill.observations < unseen.replica.prefill.observations + 50


def test_an_engine_that_idles_between_readings_teaches_nothing_from_them():
    life = Life("others", per_s=0.05)
    life.run(120)
    idle = Replica("llama", 0, "http://x", TOLD, auto=True)
    for second in range(60):
        idle.take(EngineGauges(running=0, itl=(second * 9.0, second * 100), ttft=(second, second),
                               queue_time=(0, second), iterations=second), float(second))
    assert idle.step.observations == idle.prefill.observations == 0


def test_a_histogram_of_requests_is_not_taken_for_one_of_tokens():
    one = Replica("llama", 0, "http://x", TOLD, auto=True)
    for second in range(60):
        one.take(EngineGauges(running=9, generation_tokens=second * 500, itl=(second * 0.9, second * 20),
                              iterations=second), float(second))
    assert one.step.observations == 0


def test_a_restart_of_the_engine_and_a_page_without_histograms_teach_nothing_wrong():
    one = Replica("llama", 0, "http://x", TOLD, auto=True)
    one.take(EngineGauges(running=4, itl=(500.0, 9000), generation_tokens=9000, iterations=1), 0.0)
    one.take(EngineGauges(running=4, itl=(0.1, 40), generation_tokens=40, iterations=2), 1.0)
    one.take(EngineGauges(running=4, generation_tokens=80, iterations=3), 2.0)
    assert one.step.observations == 0 and one.step.at(0.1) == 1.0


def test_what_an_operator_measured_is_believed_within_a_factor_of_three():
    one = Replica("llama", 0, "http://x", TOLD, auto=False)
    for second in range(600):
        one.take(EngineGauges(running=4, itl=(second * 4.0, second * 20), generation_tokens=second * 20,
                              iterations=second), float(second))
    assert one.step.at(0.1) == pytest.approx(3.0)


def test_what_nothing_confirms_fades():
    life = Life("ours", per_s=1.2)
    life.run(60)
    before = life.replica.step.at(0.2)
    for second in range(1, 1200):
        life.replica.state(life.now + second)
    assert before > 1.7 and life.replica.step.at(0.2) < 1.05
    assert life.replica.estimates(life.now + 1200)["alpha_s"].confidence < 0.4
