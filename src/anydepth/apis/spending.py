"""Count what an API was asked and what it says that this used."""

import threading
from dataclasses import dataclass, field
from typing import Any, Literal

from anydepth.prices import Prices, TokenCount

Purpose = Literal["answers", "checks", "trials"]
"""What a request is for: the answer itself, a check of it, or the trial before the first answer."""


@dataclass(slots=True)
class _Sum:
    """The requests for one purpose."""

    requests: int = 0
    told: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def record(self, prices: Prices | None) -> dict[str, Any]:
        """The JSON-ready sums."""
        return {
            "requests": self.requests,
            "requests_without_usage": self.requests - self.told,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "cost": None if prices is None else prices.cost(self.prompt_tokens, self.completion_tokens),
        }


@dataclass(slots=True)
class Spending:
    """Sums over requests, by purpose; several threads may add to them.

    A request of which the provider told no usage (its stream was closed at a halt, or it failed) is counted as such:
    tokens and cost are lower bounds then. Retries inside of the provider's client are not seen.

    Attributes:
        prices: What the provider charges.
        total: Sums that these are a part of; what is added here is added there.
    """

    prices: Prices | None = None
    total: "Spending | None" = None
    _sums: dict[Purpose, _Sum] = field(default_factory=lambda: {p: _Sum() for p in ("answers", "checks", "trials")})
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, purpose: Purpose) -> None:
        """Count a request that is about to be made."""
        with self._lock:
            self._sums[purpose].requests += 1
        if self.total is not None:
            self.total.begin(purpose)

    def told(self, purpose: Purpose, count: TokenCount | None) -> None:
        """Add what the provider says that one request used; None is no word of it."""
        if count is None:
            return
        with self._lock:
            each = self._sums[purpose]
            each.told += 1
            each.prompt_tokens += count.prompt
            each.completion_tokens += count.completion
        if self.total is not None:
            self.total.told(purpose, count)

    def of_an_answer(self) -> "Spending":
        """Sums of one answer, which are a part of these."""
        return Spending(self.prices, self)

    def record(self) -> dict[str, Any]:
        """The JSON-ready sums by purpose: requests, those without usage, tokens, and cost (null without prices)."""
        with self._lock:
            return {purpose: each.record(self.prices) for purpose, each in self._sums.items()}
