"""Decide whether a proposed tool call may be run, by a reading of the Safety Tokens right after it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from anydepth.backends.protocol import FinishedAnswer, Reader
from anydepth.config import GuardConfig
from anydepth.detectors import Detector, declares_reads, score_finished
from anydepth.driver import HandOut
from anydepth.errors import CapabilityError, ConfigError, PromptError, UnsupportedModel
from anydepth.flow import Command, Gate, Outcome, Reply, judge_alone, refused_score
from anydepth.policy import Policy
from anydepth.scan import scores_at
from anydepth.templates.prompt import Prompt
from anydepth.templates.proposed_call import CallPrompt
from anydepth.types import GateVerdict, Score
from anydepth.writer import AnswerWriter

CallEnds = Callable[[tuple[int, ...]], Sequence[int]]
"""Tells after how many of a whole answer's tokens each of its tool calls ends."""

Readings = list[Score | Exception]
Method = Literal["packed", "forks"]


def gate_calls(
    backend: Reader, detector: Detector, config: GuardConfig, calls: Sequence[CallPrompt], *, control: bool = True
) -> list[GateVerdict]:
    """Judge each proposed call by one check after it, and with `control` make one before it too, which decides nothing.

    A detector that declares its reads (a probe) makes both in one packed pass, all calls together; others, and models
    that cannot take the pass, replay the turn and fork.

    Raises:
        ConfigError: One reading can never halt under the policy.
        PromptError: A conversation does not fit the model's context with its call.
    """
    require_halting(config.policy)
    depths = [sorted({each.before, each.prompt.prefill} if control else {each.prompt.prefill}) for each in calls]
    found, method = read_depths(backend, detector, [each.prompt for each in calls], depths)
    return [
        _verdict(config, call, dict(zip(at, readings, strict=True)), method, control=control)
        for call, at, readings in zip(calls, depths, found, strict=True)
    ]


def read_depths(
    backend: Reader, detector: Detector, prompts: Sequence[Prompt], depths: Sequence[Sequence[int]]
) -> tuple[list[Readings], Method]:
    """Score the prefill of each prompt at its depths, and at no other.

    Args:
        backend: Reads.
        detector: Makes the checks.
        prompts: Prompts whose prefills are the answers.
        depths: For each prompt its depths, rising.

    Returns:
        For each prompt a score per depth, or the exception that its check raised; and how they were read.

    Raises:
        PromptError: A prompt does not fit the model's context.
        CapabilityError: The backend can read neither way.
    """
    if declares_reads(detector):
        answers = [
            FinishedAnswer(each.question, each.ids[each.start :], tuple(at))
            for each, at in zip(prompts, depths, strict=True)
        ]
        try:
            return score_finished(backend, detector, answers), "packed"
        except UnsupportedModel:  # the pass cannot be taken: forks can
            pass
        except (PromptError, CapabilityError):
            raise
        except Exception as error:  # a failed check is the guard's to judge
            return [[error] * len(at) for at in depths], "packed"
    return [_on_forks(backend, detector, each, at) for each, at in zip(prompts, depths, strict=True)], "forks"


def _on_forks(backend: Reader, detector: Detector, prompt: Prompt, depths: Sequence[int]) -> Readings:
    try:
        return scores_at(backend, detector, prompt, depths)
    except (PromptError, CapabilityError):
        raise
    except Exception as error:
        return [error] * len(depths)


def scores_after(
    backend: Reader,
    detector: Detector,
    prompt: Prompt,
    token_ids: tuple[int, ...],
    ends: Sequence[int],
    known: Mapping[int, float],
) -> dict[int, Score | Exception]:
    """The scores right after the tool calls of an answer that has ended, by depth.

    Args:
        backend: Reads.
        detector: Makes the checks.
        prompt: What was answered, the client's prefill included.
        token_ids: The answer, without the prefill.
        ends: After how many of these tokens each call ends.
        known: Scores by depth that need not be read again.

    Returns:
        For each depth at which a call ends its score, or the exception that its check raised.
    """
    depths = sorted({prompt.prefill + end for end in ends})
    found: dict[int, Score | Exception] = {depth: Score(known[depth]) for depth in depths if depth in known}
    if unread := [depth for depth in depths if depth not in known]:
        whole = replace(prompt, ids=prompt.ids + token_ids, prefill=prompt.prefill + len(token_ids))
        try:
            (scores,), _ = read_depths(backend, detector, [whole], [unread])
        except Exception as error:  # a failed check is the flow's to judge
            scores = [error] * len(unread)
        found |= zip(unread, scores, strict=True)
    return found


def handed_out(
    backend: Reader,
    detector: Detector,
    prompts: Sequence[Prompt],
    writers: Sequence[AnswerWriter],
    call_ends: CallEnds | None,
) -> HandOut:
    """What carries out the commands of answers: `Gate` by readings after their calls, the others by their writers."""

    def hand_out(row: int, command: Command | Outcome) -> Reply:
        if not isinstance(command, Gate):
            return writers[row].write(command)
        ids = writers[row].token_ids
        ends = call_ends(ids) if call_ends is not None else ()
        return scores_after(backend, detector, prompts[row], ids, ends, command.known)

    return hand_out


def require_halting(policy: Policy) -> None:
    """Raise ConfigError if the policy cannot halt on one reading: a gate makes one, and would let every call pass."""
    if not judge_alone(policy, 1, 1.0)[1]:
        raise ConfigError(
            f"the policy is {policy!r}, which one reading can never halt, and a gate makes one after the call; choose "
            'one that can, e.g. Threshold(0.5), {name = "threshold", threshold = 0.5} in guard.toml'
        )


def _verdict(
    config: GuardConfig, call: CallPrompt, readings: dict[int, Score | Exception], method: Method, *, control: bool
) -> GateVerdict:
    after, before = readings[call.prompt.prefill], readings.get(call.before) if control else None
    control_score = None if before is None else (before.value if isinstance(before, Score) else math.nan)
    facts = {"before": control_score, "depth": call.prompt.prefill, "tool": call.call.name, "method": method}
    threshold = config.policy.threshold
    if (failure := refused_score(after)) is not None:
        halt = config.on_error == "closed"
        reason = "error" if halt else "clear"
        return GateVerdict(
            halt, math.nan, reason=reason, statistic=math.nan, threshold=threshold, error=failure, **facts
        )
    assert isinstance(after, Score)
    statistic, halt = judge_alone(config.policy, call.prompt.prefill, after.value)
    reason = "policy" if halt else "clear"
    return GateVerdict(
        halt, after.value, reason=reason, statistic=statistic, threshold=threshold, detail=after.detail, **facts
    )
