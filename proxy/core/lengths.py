"""How long an answer will be: means by route, key and size of the prompt, each shrunk to the coarser one.

Prompt size explains two thirds of the variance of answer lengths in a production conversation trace and
nothing in others; shrinkage makes it free where it does not help. Nothing is tokenised for this.
"""

from __future__ import annotations

from collections import OrderedDict

from proxy.core.learning import RunningMean

LABELS_MAX = 4096
SHRINK = 3.0  # observations that the coarser mean counts for


class OutputLength:
    """Output tokens to expect, by label (route and key) and prompt size. Bounded: who is not seen is forgotten."""

    __slots__ = ("_means", "all")

    def __init__(self, prior: float) -> None:
        self.all = RunningMean(prior)
        self._means: OrderedDict[tuple[str, int], RunningMean] = OrderedDict()

    def expect(self, label: str, prompt_tokens: float) -> float:
        """Tokens; the prior before anything is known."""
        mean = self.all.mean
        for key in ((label, -1), (label, int(prompt_tokens).bit_length())):
            own = self._means.get(key)
            if own is not None:
                mean = (own.mean * own.count + mean * SHRINK) / (own.count + SHRINK)
        return mean

    def observe(self, label: str, prompt_tokens: float, tokens: float) -> None:
        """An answer ended by itself or at its limit."""
        self.all.add(tokens)
        for key in ((label, -1), (label, int(prompt_tokens).bit_length())):
            own = self._means.get(key)
            if own is None:
                own = self._means[key] = RunningMean(self.all.mean)
                if len(self._means) > LABELS_MAX:
                    self._means.popitem(last=False)
            else:
                self._means.move_to_end(key)
            own.add(tokens)
