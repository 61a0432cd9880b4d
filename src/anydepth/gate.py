"""Decide whether a proposed tool call may be run, by a reading of the Safety Tokens right after it."""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Literal

from anydepth.backends.protocol import FinishedAnswer, Reader
from anydepth.config import GuardConfig
from anydepth.detectors import Detector, declares_reads, score_finished
from anydepth.detectors.outside import followed, together
from anydepth.driver import HandOut, settled
from anydepth.errors import CapabilityError, ConfigError, PromptError, UnsupportedModel
from anydepth.flow import Command, Gate, Outcome, Reply, judge_alone, refused_score
from anydepth.policy import Policy
from anydepth.scan import Begun, begin_at
from anydepth.stages import stages_of
from anydepth.templates.prompt import Prompt
from anydepth.templates.proposed_call import CallPrompt
from anydepth.types import CheckResult, GateVerdict, Score
from anydepth.writer import AnswerWriter

CallEnds = Callable[[tuple[int, ...]], Sequence[int]]
"""Tells after how many of a whole answer's tokens each of its tool calls ends."""

Scores = dict[int, Score | Exception]
Method = Literal["packed", "forks"]


@dataclass(frozen=True, slots=True)
class BegunGate:
    """Tool calls that are being judged: the model has been read, replies from outside may be awaited.

    Attributes:
        config: The guard's options.
        calls: The calls.
        depths: For each call the depths that are read, rising.
        begun: For each call its readings, in the order of its depths.
        method: How they were read.
        control: Whether the reading before each call is asked for.
    """

    config: GuardConfig
    calls: Sequence[CallPrompt]
    depths: Sequence[Sequence[int]]
    begun: Sequence[Sequence[Begun]]
    method: Method
    control: bool

    @property
    def outside(self) -> Future[None] | None:
        """What ends once all replies from outside are there; None if none is awaited."""
        awaited = [each for readings in self.begun for each in readings if isinstance(each, Future)]
        return together(awaited) if awaited else None

    def verdicts(self) -> list[GateVerdict]:
        """The verdict on each call; waits for the replies from outside."""
        return [self._verdict(*each) for each in zip(self.calls, self.depths, self.begun, strict=True)]

    def _verdict(self, call: CallPrompt, depths: Sequence[int], begun: Sequence[Begun]) -> GateVerdict:
        policy, end = self.config.policy, call.prompt.prefill
        readings = {depth: settled(each, depth) for depth, each in zip(depths, begun, strict=True)}
        judged = [_judged(self.config, depth, reading, decides=depth == end) for depth, reading in readings.items()]
        checks, (after, halt) = tuple(check for check, _ in judged), judged[-1]
        return GateVerdict(
            halt,
            after.score,
            before=checks[0].score if self.control else None,
            depth=end,
            tool=call.call.name,
            reason="error" if after.error is not None else "policy" if halt else "clear",
            statistic=after.statistic,
            threshold=policy.threshold,
            detail=after.detail,
            error=after.error,
            method=self.method,
            checks=checks,
        )


def gate_calls(
    backend: Reader, detector: Detector, config: GuardConfig, calls: Sequence[CallPrompt], *, control: bool = True
) -> list[GateVerdict]:
    """Judge each proposed call; see `begin_gate`, whose errors these are."""
    return begin_gate(backend, detector, config, calls, control=control).verdicts()


def begin_gate(
    backend: Reader, detector: Detector, config: GuardConfig, calls: Sequence[CallPrompt], *, control: bool = True
) -> BegunGate:
    """Judge each proposed call by one check after it, and with `control` make one before it too, which decides nothing.

    A detector that declares its reads (a probe) makes both in one packed pass, all calls together; others, and models
    that cannot take the pass, replay the turn and fork. The model is free once this returns.

    Raises:
        ConfigError: One reading can never halt under the policy.
        PromptError: A conversation does not fit the model's context with its call.
    """
    require_halting(config.policy)
    depths = [sorted({each.before, each.prompt.prefill} if control else {each.prompt.prefill}) for each in calls]
    begun, method = begin_depths(backend, detector, [each.prompt for each in calls], depths)
    return BegunGate(config, calls, depths, begun, method, control)


def begin_depths(
    backend: Reader, detector: Detector, prompts: Sequence[Prompt], depths: Sequence[Sequence[int]]
) -> tuple[Sequence[Sequence[Begun]], Method]:
    """Read the prefill of each prompt at its depths, and at no other.

    Args:
        backend: Reads.
        detector: Makes the checks.
        prompts: Prompts whose prefills are the answers.
        depths: For each prompt its depths, rising.

    Returns:
        For each prompt a reading per depth; and how they were read.

    Raises:
        PromptError: A prompt does not fit the model's context.
        CapabilityError: The backend can read neither way.
    """
    if declares_reads(detector):
        answers = [
            FinishedAnswer(each.question, each.ids[each.start :], tuple(at), resumes=True)
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


def _on_forks(backend: Reader, detector: Detector, prompt: Prompt, depths: Sequence[int]) -> Sequence[Begun]:
    try:
        return begin_at(backend, detector, prompt, depths, resumes=True)
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
) -> Scores | Future[Scores]:
    """The scores right after the tool calls of an answer that has ended, by depth.

    Args:
        backend: Reads.
        detector: Makes the checks.
        prompt: What was answered, the client's prefill included.
        token_ids: The answer, without the prefill.
        ends: After how many of these tokens each call ends.
        known: Scores by depth that need not be read again.

    Returns:
        For each depth at which a call ends its score, or the exception that its check raised; a future of that where
        replies from outside are awaited.
    """
    depths = sorted({prompt.prefill + end for end in ends})
    found: dict[int, Begun] = {depth: Score(known[depth]) for depth in depths if depth in known}
    if unread := [depth for depth in depths if depth not in known]:
        whole = replace(prompt, ids=prompt.ids + token_ids, prefill=prompt.prefill + len(token_ids))
        try:
            (begun,), _ = begin_depths(backend, detector, [whole], [unread])
        except Exception as error:  # a failed check is the flow's to judge
            begun = [error] * len(unread)
        found |= zip(unread, begun, strict=True)

    def scores(_: object = None) -> Scores:
        return {depth: settled(each, depth) for depth, each in found.items()}

    awaited = [each for each in found.values() if isinstance(each, Future)]
    return followed(together(awaited), scores) if awaited else scores()


def handed_out(
    backend: Reader,
    detector: Detector,
    prompts: Sequence[Prompt],
    writers: Sequence[AnswerWriter],
    call_ends: CallEnds | None,
) -> HandOut:
    """What carries out the commands of answers: `Gate` by readings after their calls, the others by their writers."""

    def hand_out(row: int, command: Command | Outcome) -> Reply | Future[Scores]:
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


def _judged(config: GuardConfig, depth: int, reading: Score | Exception, *, decides: bool) -> tuple[CheckResult, bool]:
    """The check at a depth, and whether it keeps the call from being run; one that decides nothing has no statistic."""
    if (failure := refused_score(reading)) is not None:
        check = CheckResult(depth, math.nan, math.nan, error=failure, stages=stages_of(reading))
        return check, config.on_error == "closed"
    assert isinstance(reading, Score)
    statistic, halt = judge_alone(config.policy, depth, reading.value) if decides else (math.nan, False)
    return CheckResult(depth, reading.value, statistic, reading.detail, stages=reading.stages), halt
