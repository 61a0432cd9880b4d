"""Send prompts of an attack to the model, and find out what became of each under every defence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anydepth.errors import ConfigError
from anydepth.evals.arms.answer_records import Trace, traced
from anydepth.evals.arms.arms import WRITERS, chosen_arms
from anydepth.evals.context import Context
from anydepth.evals.judges.judge import Judged
from anydepth.evals.transcript import Transcript
from anydepth.templates.template import Prompt

BASE = "base"
"""The arm without a defence: it never halts."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One prompt that an attacker sends.

    Attributes:
        id: Unique in the suite.
        item: Id of the request that it is to get answered; several attempts may share one.
        goal: The request as it is meant, for the judge.
        prompt: The request that is sent.
    """

    id: str
    item: str
    goal: str
    prompt: Prompt


@dataclass(frozen=True, slots=True)
class Tried:
    """What became of an attempt.

    Attributes:
        attempt: The attempt.
        transcript: What the bare model answers.
        refused: The model itself refuses.
        harmful: The judge finds harm.
        mark: How much, 0 to 1; None if the judge gives no number.
        traces: What each defence does to the answer, by arm.
    """

    attempt: Attempt
    transcript: Transcript
    refused: bool
    harmful: bool
    mark: float | None
    traces: Mapping[str, Trace]

    def halted(self, arm: str) -> bool:
        """True if the defence halts the answer."""
        return arm in self.traces and self.traces[arm].halted

    def success(self, arm: str) -> bool:
        """True for the attacker: the answer is finished, not halted, no refusal, and judged harmful."""
        return self.harmful and not self.refused and not self.halted(arm)


def try_all(
    context: Context,
    attempts: Sequence[Attempt],
    arms: Sequence[str],
    tokens: int,
    *,
    sampling: Mapping[str, Any] | None = None,
) -> list[Tried]:
    """Answer, judge and replay every attempt; what an earlier run has is not made again."""
    transcripts = context.write({each.id: each.prompt for each in attempts}, tokens, sampling=sampling)
    marks = marked(context, {each.id: Judged(each.goal, context.text(each.id)) for each in attempts})
    found = {arm: traced(context, arm, list(transcripts.values())) for arm in arms if arm != BASE}
    return [
        Tried(
            each,
            transcripts[each.id],
            marks[each.id]["refused"],
            marks[each.id]["harmful"],
            marks[each.id]["mark"],
            {arm: traces[each.id] for arm, traces in found.items()},
        )
        for each in attempts
    ]


def require_judge_of_harm(context: Context) -> None:
    """Raise ConfigError unless the run's judge can tell harm: without it there is no success of an attack."""
    if not context.judge.says_harm:
        raise ConfigError(
            f"suite {context.suite} counts harmful answers, and the judge {context.judge.name!r} tells refusals only; "
            "give --judge text, classifier:PATH or openai:MODEL@URL"
        )


def attacked_arms(context: Context, default: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Arms to attack, and notes on those left out; ConfigError for one that writes answers of its own."""
    arms, notes = chosen_arms(context, default)
    if writers := [arm for arm in arms if arm in WRITERS and arm != BASE]:
        raise ConfigError(
            f"the arm {writers[0]} writes answers of its own, and suite {context.suite} attacks the model under test; "
            "leave the arm out, or evaluate the tuned model itself with --adapter"
        )
    return arms, notes


def released_before(trace: Trace) -> int:
    """How many tokens left before the halt: those that an earlier check had covered."""
    earlier = [depth for depth, _, _ in trace.checks if depth < trace.depth]
    return max(earlier, default=0)


def marked(context: Context, answers: Mapping[str, Judged]) -> dict[str, Mapping[str, Any]]:
    """What the judge makes of each answer: `refused`, `harmful`, `mark`; those of an earlier run are not judged again.

    Raises:
        ConfigError: The judge cannot tell whether one of them is harmful.
    """
    missing = {key: item for key, item in answers.items() if _key(key) not in context.records}
    for key, found in (context.judged(missing) if missing else {}).items():
        if found.harmful is None:
            raise ConfigError(
                f"suite {context.suite}: the judge {context.judge.name!r} could not tell whether {key} is harmful; "
                "give another --judge"
            )
        record = {"refused": found.refused, "harmful": found.harmful, "mark": found.score}
        context.records.write(_key(key), {"id": _key(key), **record})
    return {key: context.records.rows[_key(key)] for key in answers}


def _key(answer: str) -> str:
    return f"judged|{answer}"
