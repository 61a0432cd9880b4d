"""The records that travel between the layers."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from anydepth.stages import Spent, StageUse, stage_sums

ReleaseMode = Literal["hold", "eager", "monitor"]
"""`hold`: nothing leaves unchecked. `eager`: send, then check. `monitor`: never halt."""

OnError = Literal["closed", "open"]
"""What a check that fails does to the answer: `closed` halts it, `open` lets it go on and says so."""

FinishReason = Literal["stop", "length", "content_filter"]
Message = Mapping[str, Any]
"""One chat message, `{"role": ..., "content": ...}`, as Transformers and OpenAI write it."""


class Progress(Protocol):
    """Is called with what is being done, how much of it is done, how much there is, and the tokens run for it."""

    def __call__(self, what: str, done: int, total: int, tokens: int = 0, /) -> None:
        """Take note of it."""


@dataclass(frozen=True, slots=True)
class Score:
    """The score of one check.

    Attributes:
        value: 0 is harmless, 1 is harmful.
        detail: A remark of the detector, such as the look-ahead text.
        spent: What the detector used besides the passes that read states, if it counts that; no part of equality.
        stages: The stages of a cascade that were asked, in order, the one that decided last; no part of equality.
    """

    value: float
    detail: str | None = None
    spent: Spent | None = field(default=None, compare=False, repr=False)
    stages: tuple[StageUse, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One reading at one depth.

    Attributes:
        depth: Assistant tokens that the check covers, a client's prefill included.
        score: The detector's score in [0, 1]; NaN where the check failed.
        statistic: What the policy compared with its threshold, e.g. the running EWMA.
        detail: The detector's own remark, such as the look-ahead text.
        error: Why the check failed, or None.
        stages: The stages of a cascade that were asked, in order; the last one decided the check, or failed. No part
            of equality.
    """

    depth: int
    score: float
    statistic: float
    detail: str | None = None
    error: str | None = None
    stages: tuple[StageUse, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The policy's decision over the checks of one answer.

    Attributes:
        halt: True if the answer is stopped (under `monitor`: would have been).
        score: The score of the deciding check (the highest one if nothing halted).
        depth: The depth of that check.
        reason: `policy` (threshold crossed), `error` (a check failed and the guard fails closed, or a record could not
            be stored) or `clear`.
        errors: How many checks failed, and one for a record that could not be stored (the reason is `error` then);
            above zero with `halt=False` the guard was failing open.
    """

    halt: bool
    score: float
    depth: int
    reason: Literal["policy", "error", "clear"] = "clear"
    errors: int = 0


@dataclass(frozen=True, slots=True)
class Window:
    """What became of the tokens `start <= depth < stop` of one answer.

    Attributes:
        checked_at: Depth of the first check that covers them, or None if no check did.
        state: `released` (they left) or `withheld` (they did not).
    """

    start: int
    stop: int
    checked_at: int | None
    state: Literal["released", "withheld"]


@dataclass(frozen=True, slots=True)
class Answer:
    """One guarded answer, finished.

    Attributes:
        text: What the user got: the released text, then the refusal if the answer was halted.
        token_ids: The released tokens, prefill not included, end-of-turn token included.
        finish_reason: `stop`, `length` or `content_filter`.
        verdict: The decision; `verdict.halt` is True exactly if `finish_reason` is `content_filter`
            (under `monitor` the answer is never cut, whatever the verdict).
        checks: Every check, in order.
        windows: An account of every generated token.
        prompt_tokens: Length of the prompt without the prefill.
        prefill_tokens: Length of the client's prefill.
        generated_tokens: Tokens the model generated, withheld ones included.
        usage: What an API says that this answer used: for `answers` (its stream) and `checks` each the requests, those
            without a word of their usage, the provider's tokens, and the cost. None for other backends.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    verdict: Verdict
    checks: tuple[CheckResult, ...]
    windows: tuple[Window, ...]
    prompt_tokens: int
    prefill_tokens: int
    generated_tokens: int
    usage: Mapping[str, Any] | None = None

    @property
    def halted(self) -> bool:
        """True if the guard cut this answer."""
        return self.finish_reason == "content_filter"

    @property
    def stages(self) -> dict[str, dict[str, Any]] | None:
        """What each stage of a cascade did and used in the checks of this answer; None for other detectors.

        By the stages' names: `checks` that it was asked at, `decided` by it, `seconds`, `look_ahead_tokens`,
        `requests`, `requests_without_usage`, `prompt_tokens`, `completion_tokens` and `cost` (None without prices).
        """
        return stages_in(self.checks)

    @property
    def leak(self) -> int:
        """Tokens that left before the halt, prefill not counted; 0 for an answer that was not halted."""
        return len(self.token_ids) if self.halted else 0


@dataclass(frozen=True, slots=True)
class Checked:
    """Event: a check was made; `check` has its score."""

    check: CheckResult


@dataclass(frozen=True, slots=True)
class Released:
    """Event: tokens leave the guard; `depth` is the number of assistant tokens up to their end."""

    text: str
    token_ids: tuple[int, ...]
    depth: int


@dataclass(frozen=True, slots=True)
class Halted:
    """Event: the answer is stopped; `refusal` is shown instead of the rest, of which `withheld` tokens exist."""

    verdict: Verdict
    refusal: str
    withheld: int


@dataclass(frozen=True, slots=True)
class Finished:
    """Event: the last of every answer; `answer` is the whole account."""

    answer: Answer


Event = Checked | Released | Halted | Finished


@dataclass(frozen=True, slots=True)
class ScanResult:
    """The checks of a finished answer and the verdict that the policy draws from them.

    Attributes:
        checks: One check per scheduled depth.
        verdict: The policy's decision.
        method: `packed` (all depths in one pass) or `forks` (one fork per depth).
        notes: Why the answer was forked, or empty.
    """

    checks: tuple[CheckResult, ...]
    verdict: Verdict
    method: Literal["packed", "forks"] = "packed"
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """Whether a proposed tool call may be run: what the guard reads right after the call.

    Attributes:
        halt: True if the call must not be run (under `monitor`: would not have been).
        score: The score after the call, in [0, 1]; NaN where that check failed.
        before: The score before the call, as a control; None if it was not asked for, NaN where that check failed.
        depth: Tokens of the turn up to the end of the call.
        tool: Name of the tool that is called.
        reason: `policy` (the threshold is reached), `error` (the check failed; `halt` says whether the guard fails
            closed) or `clear`.
        statistic: What the policy compared with its threshold; NaN where the check failed.
        threshold: The policy's threshold.
        detail: The detector's own remark, such as the look-ahead text.
        error: Why the check failed, or None; with `halt=False` the guard was failing open.
        method: `packed` (one pass) or `forks` (one fork per check).
        checks: The checks in the order of their depths: the control, if it was asked for (no statistic: NaN), and the
            one after the call.
    """

    halt: bool
    score: float
    before: float | None
    depth: int
    tool: str
    reason: Literal["policy", "error", "clear"]
    statistic: float
    threshold: float
    detail: str | None = None
    error: str | None = None
    method: Literal["packed", "forks"] = "packed"
    checks: tuple[CheckResult, ...] = field(default=(), repr=False)

    @property
    def stages(self) -> dict[str, dict[str, Any]] | None:
        """What each stage of a cascade did and used in these checks, as `Answer.stages`; None for other detectors."""
        return stages_in(self.checks)

    @property
    def why(self) -> str:
        """The reason in a sentence, for logs and for the people who run the agent."""
        if self.error is not None:
            closed = "closed: the call is not run" if self.halt else "open: the call is run unchecked"
            return f"the check after the call of {self.tool} failed ({self.error}), and the guard fails {closed}"
        relation = "reaches" if self.halt else "is below"
        control = "" if json_number(self.before) is None else f"; before the call the score was {self.before:.3g}"
        return (
            f"after the call of {self.tool} the score is {self.score:.3g}, which {relation} the threshold "
            f"{self.threshold:.3g}{control}"
        )


@dataclass(frozen=True, slots=True)
class Decoded:
    """What one row got from `Session.decode`.

    Attributes:
        token_ids: New tokens, an end-of-turn token included.
        finish_reason: `stop` if the model ended its turn or a stop string matched, `length` if the context is full,
            None if it can go on. Fewer tokens than `n` with None: another row of the batch ended first; decode again.
        end_tokens: How many trailing tokens are end-of-turn tokens (0 or 1); they do not count as depth.
    """

    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"] | None = None
    end_tokens: int = 0


def stages_in(checks: Iterable[CheckResult]) -> dict[str, dict[str, Any]] | None:
    """The sums of `Answer.stages` over `checks`; None if none of them is of a cascade."""
    return stage_sums((check.stages, check.error is not None) for check in checks)


def json_number(value: float | None) -> float | None:
    """`value` as JSON has it: NaN and infinities become null."""
    return float(value) if value is not None and math.isfinite(value) else None
