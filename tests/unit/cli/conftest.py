"""A scripted guard behind the command line's one seam, `cli.load`."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from anydepth.cli import app, load
from anydepth.cli.options import GuardOptions, ModelOptions
from anydepth.errors import PromptError
from anydepth.policy import Threshold
from anydepth.schedule import Every
from anydepth.types import (
    Answer,
    Checked,
    CheckResult,
    Event,
    Finished,
    Halted,
    Released,
    ScanResult,
    Verdict,
    Window,
)


def checks_of(scores: Sequence[float]) -> tuple[CheckResult, ...]:
    """Checks at depths 0, 10, 20, …, a failed one where the score is NaN."""
    return tuple(
        CheckResult(10 * i, score, score, error="NaN in the hidden state" if math.isnan(score) else None)
        for i, score in enumerate(scores)
    )


def verdict_of(checks: Sequence[CheckResult], threshold: float) -> Verdict:
    """The first check that failed or reached the threshold halts."""
    for check in checks:
        if math.isnan(check.score):
            return Verdict(True, check.score, check.depth, "error", 1)
        if check.score >= threshold:
            return Verdict(True, check.score, check.depth, "policy")
    highest = max(checks, key=lambda check: check.score)
    return Verdict(False, highest.score, highest.depth)


@dataclass
class ScriptedGuard:
    """Answers `words`, one token a word, with the given scores; remembers what it was asked."""

    words: tuple[str, ...] = ("Hello", " there", "!")
    scores: tuple[float, ...] = (0.1, 0.2)
    continuation: str = "go on, click the link."
    policy: Threshold = field(default_factory=Threshold)
    opened: list[tuple[ModelOptions, GuardOptions]] = field(default_factory=list)
    asked: list[tuple[Any, dict[str, Any]]] = field(default_factory=list)
    scanned: list[tuple[Any, str]] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    die_after: int | None = None
    fingerprint: str = "f00d"
    template: Any = field(default_factory=lambda: SimpleNamespace(digest="d00d"))
    schedule: Every = field(default_factory=Every)
    detector: Any = None

    @property
    def backend(self) -> Any:
        return SimpleNamespace(identity=SimpleNamespace(fingerprint=self.fingerprint))

    def with_options(self, **options: Any) -> "ScriptedGuard":
        assert options == {"prefill": "end"}
        return self

    def answer(self) -> Answer:
        checks = checks_of(self.scores)
        verdict = verdict_of(checks, self.policy.threshold)
        made = checks[: [c.depth for c in checks].index(verdict.depth) + 1] if verdict.halt else checks
        count = len(self.words)
        text = "Sorry, no." if verdict.halt else "".join(self.words)
        return Answer(
            text=text,
            token_ids=() if verdict.halt else tuple(range(count)),
            finish_reason="content_filter" if verdict.halt else "stop",
            verdict=verdict,
            checks=made,
            windows=(Window(0, count, verdict.depth, "withheld" if verdict.halt else "released"),),
            prompt_tokens=7,
            prefill_tokens=0,
            generated_tokens=count,
        )

    def stream(self, messages: Any, **arguments: Any) -> Iterator[Event]:
        self.asked.append((messages, arguments))
        answer = self.answer()
        for check in answer.checks:
            yield Checked(check)
        if answer.halted:
            yield Halted(answer.verdict, "Sorry, no.", withheld=len(self.words))
        else:
            for i, word in enumerate(self.words):
                yield Released(word, (i,), depth=i + 1)
        yield Finished(answer)

    def generate(self, messages: Any, **arguments: Any) -> Answer:
        self.asked.append((messages, arguments))
        return self.answer()

    def unguarded(self, messages: Any, **arguments: Any) -> str:
        self.asked.append((messages, arguments))
        return self.continuation

    def scan_many(self, conversations: Sequence[tuple[Any, str]]) -> list[ScanResult]:
        self.batches.append(len(conversations))
        return [self.scan(messages, answer) for messages, answer in conversations]

    def scan(self, messages: Any, answer: str) -> ScanResult:
        if self.die_after is not None and len(self.scanned) >= self.die_after:
            raise KeyboardInterrupt
        self.scanned.append((messages, answer))
        if answer == "too long":
            raise PromptError("the answer has 9000 tokens, the context 8192; cut it")
        checks = checks_of((float("nan"),) if answer == "nan" else self.scores)
        return ScanResult(checks, verdict_of(checks, self.policy.threshold))


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> ScriptedGuard:
    """The guard that every command of this test opens."""
    scripted = ScriptedGuard()

    def open_guard(model: ModelOptions, options: GuardOptions, external: object = None) -> ScriptedGuard:
        scripted.opened.append((model, options))
        return scripted

    monkeypatch.setattr(load, "open_guard", open_guard)
    return scripted


class Run:
    """Runs the command line in this process."""

    def __call__(self, *arguments: object, stdin: str | bytes | None = None) -> Result:
        return CliRunner().invoke(app, [str(a) for a in arguments], input=stdin)


@pytest.fixture
def run() -> Run:
    return Run()
