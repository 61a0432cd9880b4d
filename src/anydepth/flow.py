"""Guard one answer: the only copy of the guard's logic, without any input or output.

`guarded` is a generator. It yields commands and is sent the replies:

    Decode(n)        <- Decoded: up to n more tokens of the answer
    Check(depth)     <- Score, or the exception that the check raised
    Checked(check)   <- None: what the guard made of that score, for an observer
    Release(tokens)  <- None: the tokens leave; or the exception that kept them from being recorded: they do not
    Halt(verdict)    <- None: the answer ends here
    Calls()          <- whether the answer has tool calls that are kept until its end
    Gate(known)      <- the scores right after each of these calls, by depth; `known` has those that were read
    Finish(outcome)  <- None: the answer's record is stored; or the exception that kept it from being stored

and returns an `Outcome`. `step` sends one reply; drivers (library, server, vLLM, evaluations) carry the commands out.
"""

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from numbers import Real

from anydepth.errors import CheckError, ConfigError
from anydepth.policy import Policy, statistic_at
from anydepth.schedule import Schedule, next_check
from anydepth.stages import stages_of
from anydepth.types import Checked, CheckResult, Decoded, FinishReason, OnError, ReleaseMode, Score, Verdict, Window


@dataclass(frozen=True, slots=True)
class Decode:
    """Ask for up to `n` more tokens."""

    n: int


@dataclass(frozen=True, slots=True)
class Check:
    """Ask for the score at `depth`."""

    depth: int


@dataclass(frozen=True, slots=True)
class Release:
    """Record these tokens, then let them leave."""

    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Halt:
    """End the answer with a refusal; `withheld` tokens never leave."""

    verdict: Verdict
    withheld: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the flow of one answer ended."""

    finish_reason: FinishReason
    verdict: Verdict
    checks: tuple[CheckResult, ...]
    windows: tuple[Window, ...]
    generated: int


@dataclass(frozen=True, slots=True)
class Calls:
    """Ask whether the answer has tool calls that are kept until its end."""


@dataclass(frozen=True, slots=True)
class Gate:
    """Ask for the scores at the depths where the answer's tool calls end; `known` has the checks' scores by depth."""

    known: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Finish:
    """Store the record of an answer that has ended with `outcome`."""

    outcome: Outcome


Command = Decode | Check | Checked | Release | Halt | Calls | Gate | Finish
Reply = Decoded | Score | Exception | bool | Mapping[int, Score | Exception] | None
Flow = Generator[Command, Reply, Outcome]


def step(flow: Flow, reply: Reply = None) -> Command | Outcome:
    """Send a flow the reply to its last command (None begins it); its next command, or its outcome."""
    try:
        return flow.send(reply)
    except StopIteration as end:
        return end.value


def doubts_calls(errors: int, release: str) -> bool:
    """True if the tool calls of an answer must not leave: a failed check may have missed them, and the guard may halt.

    An agent runs a call as soon as it has it, so that even a guard that fails open halts the answer at its end instead.
    """
    return errors > 0 and release != "monitor"


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that decides the flow of one answer.

    Attributes:
        schedule: At which depths to check.
        policy: When to halt.
        max_new_tokens: Tokens to generate at most.
        prefill: Length in tokens of the client's prefill.
        inside: Depths inside the prefill and what their checks, made beforehand in one packed pass, replied.
        release: `hold`, `eager` or `monitor`.
        on_error: What a failed check does: `closed` halts, `open` goes on and counts it in the verdict.
        chunk: Tokens to decode at a time at most; None is the whole way to the next check.
        whole: Whether nothing leaves before the answer has ended without a halt, whatever `release` is.
        gated: Whether each tool call of the answer is judged by the check right after it alone.
    """

    schedule: Schedule
    policy: Policy
    max_new_tokens: int
    prefill: int = 0
    release: ReleaseMode = "hold"
    on_error: OnError = "closed"
    chunk: int | None = None
    inside: Mapping[int, Score | Exception] = field(default_factory=dict)
    whole: bool = False
    gated: bool = False

    def __post_init__(self) -> None:
        if self.inside and not 0 < min(self.inside) <= max(self.inside) < self.prefill:
            raise ConfigError(f"checks inside a prefill of {self.prefill} tokens are at {sorted(self.inside)}")
        if isinstance(self.max_new_tokens, bool) or not isinstance(self.max_new_tokens, int) or self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens!r}; give a whole number of at least 1")
        check_modes(self.release, self.on_error)


def check_modes(release: str, on_error: str) -> None:
    """Raise ConfigError unless both words are known."""
    if release not in ("hold", "eager", "monitor"):
        raise ConfigError(f"release is {release!r}; choose hold, eager or monitor")
    if on_error not in ("closed", "open"):
        raise ConfigError(f"on_error is {on_error!r}; choose closed (halt) or open (go on and say so)")


@dataclass(slots=True)
class _Trail:
    """The checks of one answer so far, and what the policy makes of them."""

    plan: Plan
    checks: list[CheckResult] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    tripped: Verdict | None = None
    unrecorded: int = 0

    @property
    def errors(self) -> int:
        return sum(check.error is not None for check in self.checks) + self.unrecorded

    def check(self, depth: int) -> Generator[Command, Reply, None]:
        """Make one check and note the verdict if it is the first to trip."""
        yield from self.note(depth, (yield Check(depth)))

    def gate(self) -> Generator[Command, Reply, None]:
        """Judge the score right after each tool call by itself: harmless scores before it do not outweigh it."""
        known = dict(zip(self.depths, self.scores, strict=True))
        reply = yield Gate(known)
        assert isinstance(reply, Mapping)
        for depth, score in sorted(reply.items()):
            judged = self._judge(depth, score, alone=True)
            if depth not in known:
                self.checks.append(judged)
                yield Checked(judged)

    def note(self, depth: int, reply: Reply) -> Generator[Command, Reply, None]:
        """Take the reply to a check into account."""
        self.checks.append(self._judge(depth, reply))
        yield Checked(self.checks[-1])

    def _judge(self, depth: int, reply: Reply, *, alone: bool = False) -> CheckResult:
        failure = refused_score(reply)
        if failure is not None:
            if self.plan.on_error == "closed":
                self._trip(math.nan, depth, "error")
            return CheckResult(depth, math.nan, math.nan, error=failure, stages=stages_of(reply))
        assert isinstance(reply, Score)
        if alone:
            statistic, halts = judge_alone(self.plan.policy, depth, reply.value)
            if halts:
                self._trip(reply.value, depth, "policy")
            return CheckResult(depth, reply.value, statistic, detail=reply.detail, stages=reply.stages)
        # An end-of-turn token alone after a check is checked again at the same depth: the policy gets one reading.
        if self.checks and self.checks[-1].depth == depth and self.checks[-1].error is None:
            del self.depths[-1], self.scores[-1]
        self.depths.append(depth)
        self.scores.append(reply.value)
        statistic = statistic_at(self.plan.policy, self.depths, self.scores)[-1]
        if not statistic < self.plan.policy.threshold:  # so written that a statistic that is NaN halts
            self._trip(reply.value, depth, "policy")
        return CheckResult(depth, reply.value, statistic, detail=reply.detail, stages=reply.stages)

    def _trip(self, score: float, depth: int, reason: str) -> None:
        if self.tripped is None:
            self.tripped = Verdict(True, score, depth, reason, self.errors)  # pyright: ignore[reportArgumentType]

    def fail(self, depth: int) -> Verdict:
        """The verdict of an answer that must halt at `depth`, whatever its options and the verdict so far."""
        self.tripped = None
        self._trip(math.nan, depth, "error")
        return self.verdict()

    @property
    def halting(self) -> bool:
        return self.tripped is not None and self.plan.release != "monitor"

    def verdict(self) -> Verdict:
        """The first verdict that tripped, else a clear one that names the highest score."""
        if self.tripped is not None:
            first = self.tripped
            return Verdict(True, first.score, first.depth, first.reason, self.errors)
        good = [check for check in self.checks if check.error is None]
        if not good:
            return Verdict(False, math.nan, 0, "clear", self.errors)
        highest = max(good, key=lambda check: check.score)
        return Verdict(False, highest.score, highest.depth, "clear", self.errors)


def judge_alone(policy: Policy, depth: int, score: float) -> tuple[float, bool]:
    """The policy's statistic over one score, that of the check at `depth`, and whether it halts."""
    statistic = statistic_at(policy, [max(depth, 1)], [score])[-1]
    return statistic, not statistic < policy.threshold


def refused_score(reply: Reply) -> str | None:
    """Why this reply to a check is no score, or None."""
    if isinstance(reply, Exception):
        return f"{type(reply).__name__}: {reply}"
    if not isinstance(reply, Score):
        return f"the detector gave {reply!r}, not a Score"
    if not isinstance(reply.value, Real) or not 0 <= reply.value <= 1:  # no comparison with NaN holds
        return f"{CheckError.__name__}: the score is {reply.value!r}, not a number in [0, 1]"
    return None


@dataclass(slots=True)
class _Ledger:
    """An account of every generated token of one answer."""

    position: int
    windows: list[Window] = field(default_factory=list)

    def close(self, count: int, checked_at: int | None, state: str) -> None:
        """Write down what became of the next `count` tokens."""
        if count:
            stop = self.position + count
            self.windows.append(Window(self.position, stop, checked_at, state))  # pyright: ignore[reportArgumentType]
            self.position = stop


def guarded(plan: Plan) -> Flow:
    """Run the guard over one answer; see the module's docstring for the commands.

    Depth 0 and the end of the prefill are checked before the first token is asked for, and what was read inside the
    prefill is judged between them; then every scheduled depth, and always the last window, however short, the end of
    turn included.
    """
    trail, ledger = _Trail(plan), _Ledger(plan.prefill)
    finish: FinishReason = yield from _answer(plan, trail, ledger)
    if finish != "content_filter" and plan.gated:
        yield from trail.gate()
        if trail.halting:
            yield Halt(trail.verdict(), 0)
            finish = "content_filter"
    if finish != "content_filter" and doubts_calls(trail.errors, plan.release) and (yield Calls()):
        yield Halt(trail.fail(trail.verdict().depth), 0)
        finish = "content_filter"

    def outcome() -> Outcome:
        generated = ledger.position - plan.prefill
        return Outcome(finish, trail.verdict(), tuple(trail.checks), tuple(ledger.windows), generated)

    if (yield Finish(outcome())) is not None and not trail.unrecorded:
        trail.unrecorded = 1
        verdict = trail.fail(ledger.position)
        if finish != "content_filter":
            yield Halt(verdict, 0)
        finish = "content_filter"
    return outcome()


def _answer(plan: Plan, trail: _Trail, ledger: _Ledger) -> Generator[Command, Reply, FinishReason]:
    """Check the prefill, then decode, check and release window by window; returns why the answer ended."""
    for depth in sorted({0, *plan.inside, plan.prefill}):
        yield from trail.note(depth, plan.inside[depth]) if depth in plan.inside else trail.check(depth)
        if trail.halting:
            yield Halt(trail.verdict(), 0)
            return "content_filter"
    generated, end_tokens, finish = 0, 0, None
    held, window = plan.whole or plan.release == "hold", tuple[int, ...]()
    while finish is None:
        goal = min(next_check(plan.schedule, generated, trail.scores), plan.max_new_tokens)
        while generated < goal and finish is None:
            room = goal - generated
            reply = yield Decode(min(room, plan.chunk or room))
            assert isinstance(reply, Decoded)
            if not reply.token_ids and reply.finish_reason is None:
                raise RuntimeError(
                    f"the backend decoded nothing at depth {plan.prefill + generated} and did not finish"
                )
            generated += len(reply.token_ids)
            finish, end_tokens = reply.finish_reason, reply.end_tokens
            if not held and reply.token_ids and (yield Release(reply.token_ids)) is not None:
                ledger.close(len(window), None, "released")
                return (yield from _unrecorded(trail, ledger, len(reply.token_ids), None))
            window += reply.token_ids
        if generated >= plan.max_new_tokens:
            finish = finish or "length"
        depth = plan.prefill + generated - end_tokens
        yield from trail.check(depth)
        if trail.halting:
            ledger.close(len(window), depth, "withheld" if held else "released")
            yield Halt(trail.verdict(), len(window) if held else 0)
            return "content_filter"
        if plan.whole and finish is None:
            continue
        if held and window and (yield Release(window)) is not None:
            return (yield from _unrecorded(trail, ledger, len(window), depth))
        ledger.close(len(window), depth, "released")
        window = ()
    return finish


def _unrecorded(
    trail: _Trail, ledger: _Ledger, count: int, checked_at: int | None
) -> Generator[Command, Reply, FinishReason]:
    """Halt because the next `count` tokens could not be recorded, whatever release mode and `on_error` say."""
    trail.unrecorded = 1
    verdict = trail.fail(ledger.position)
    ledger.close(count, checked_at, "withheld")
    yield Halt(verdict, count)
    return "content_filter"
