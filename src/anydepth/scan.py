"""Check a finished answer at every scheduled depth."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from anydepth.backends.protocol import Capability, CheckPoint, FinishedAnswer, Reader, require_sessions
from anydepth.config import GuardConfig
from anydepth.detectors import Detector, OutsideDetector, declares_reads, score_finished
from anydepth.driver import begin_checks, drive, settle, settled
from anydepth.errors import PromptError, UnsupportedModel
from anydepth.flow import Outcome, Plan, guarded, step
from anydepth.schedule import Listed, scheduled_depths
from anydepth.templates.template import Prompt
from anydepth.types import Decoded, ScanResult, Score

if TYPE_CHECKING:
    from concurrent.futures import Future


def scan_answer(
    backend: Reader, detector: Detector, config: GuardConfig, prompt: Prompt, *, packed: bool = True
) -> ScanResult:
    """Check the answer that is the prefill of `prompt`, as the guard would have while it was generated.

    A detector that declares its reads (a probe) scores all depths in one packed pass; where the model cannot take it,
    and for other detectors, the answer is replayed and forked at each depth, which the result's `method` and `notes`
    say. Every depth is scored, also after the one at which the answer would have halted. `packed=False` forks in any
    case.
    """
    return scan_answers(backend, detector, config, [prompt], packed=packed)[0]


def scan_answers(
    backend: Reader, detector: Detector, config: GuardConfig, prompts: Sequence[Prompt], *, packed: bool = True
) -> list[ScanResult]:
    """Scan several answers, each the prefill of its prompt, in one batch; see `scan_answer`.

    Raises:
        PromptError: An answer is empty, or does not fit the model's context with its prompt.
    """
    if not all(prompt.prefill for prompt in prompts):
        raise PromptError("the answer to scan is empty; give its text")
    if not declares_reads(detector):
        why = f"{detector.name} reads each depth on a fork"
    elif not packed:
        why = "forks were asked for"
    elif not getattr(config.schedule, "fixed", False):
        why = "the schedule looks at the scores"
    else:
        answers = [_finished(prompt, scheduled_depths(config.schedule, prompt.prefill)) for prompt in prompts]
        try:
            scores = score_finished(backend, detector, answers)
        except UnsupportedModel as reason:
            why = str(reason)
        else:
            return [_from_scores(config, *each) for each in zip(answers, scores, strict=True)]
    if isinstance(detector, OutsideDetector) and getattr(config.schedule, "fixed", False):
        return [_by_outside(backend, detector, config, prompt, why) for prompt in prompts]
    return [_by_forks(backend, detector, _plan(config, prompt.prefill), prompt, why) for prompt in prompts]


def _plan(config: GuardConfig, tokens: int) -> Plan:
    return Plan(config.schedule, config.policy, tokens, release="monitor", on_error=config.on_error)


def _finished(prompt: Prompt, depths: Sequence[int]) -> FinishedAnswer:
    """The prefill of a prompt as the answer to the rest of it."""
    return FinishedAnswer(prompt.question, prompt.ids[prompt.start :], tuple(depths))


def _by_outside(backend: Reader, detector: Detector, config: GuardConfig, prompt: Prompt, why: str) -> ScanResult:
    """Fork at each depth of the prefill of `prompt`, and wait for the replies from outside together."""
    depths = scheduled_depths(config.schedule, prompt.prefill)
    scores = scores_at(backend, detector, prompt, depths)
    return replace(_from_scores(config, _finished(prompt, depths), scores), method="forks", notes=(why,))


def _from_scores(config: GuardConfig, answer: FinishedAnswer, scores: Sequence[Score | Exception]) -> ScanResult:
    """What the guard makes of the scores at all scheduled depths."""
    fixed = replace(_plan(config, len(answer.answer_ids)), schedule=Listed(answer.depths[1:]))
    known, flow = dict(zip(answer.depths, scores, strict=True)), guarded(fixed)
    outcome = settle(flow, step(flow), lambda count: Decoded((0,) * count), known)
    assert isinstance(outcome, Outcome)  # every depth has its score
    return _result(outcome, "packed")


def reads_inside(detector: Detector) -> bool:
    """True if `detector` is read inside a client's prefill: it reads hidden states, which costs little per depth."""
    return declares_reads(detector) or Capability.HIDDEN_STATES in detector.needs


def inside_prefill(
    backend: Reader, detector: Detector, config: GuardConfig, prompt: Prompt
) -> dict[int, Score | Exception]:
    """Score the scheduled depths inside the prefill of `prompt`: neither depth 0 nor its end, which the flow checks.

    One packed pass to the last site that is read; where the model or the detector cannot take it, one fork per depth.
    Empty where there is nothing inside, where `config.prefill` is `end`, and for detectors that need no hidden states:
    they would have to look ahead at every depth.
    """
    if config.prefill != "inside" or not reads_inside(detector):
        return {}
    depths = [depth for depth in scheduled_depths(config.schedule, prompt.prefill) if 0 < depth < prompt.prefill]
    if not depths:
        return {}
    try:
        if not declares_reads(detector):
            scores = scores_at(backend, detector, prompt, depths)
        else:
            try:
                (scores,) = score_finished(backend, detector, [_finished(prompt, depths)])
            except UnsupportedModel:
                scores = scores_at(backend, detector, prompt, depths)
    except Exception as error:  # a failed check is the flow's to judge: it halts unless the operator chose otherwise
        scores = [error] * len(depths)
    return dict(zip(depths, scores, strict=True))


def scores_at(backend: Reader, detector: Detector, prompt: Prompt, depths: Sequence[int]) -> list[Score | Exception]:
    """Score the prefill of `prompt`, replayed, at `depths`, each on a fork; no other depth is checked.

    Checks that are made outside (an `OutsideDetector`) are all begun before one is waited for. See `begin_at`.
    """
    begun = begin_at(backend, detector, prompt, depths)
    return [settled(each, depth) for each, depth in zip(begun, depths, strict=True)]


def begin_at(
    backend: Reader, detector: Detector, prompt: Prompt, depths: Sequence[int], *, resumes: bool = False
) -> "list[Score | Exception | Future[Score]]":
    """Begin the checks of `scores_at`; the model is free once this returns.

    Args:
        backend: Opens the session.
        detector: Makes the checks.
        prompt: A prompt whose prefill is the answer.
        depths: Rising, from 0 on, none beyond the end of the prefill.
        resumes: As in `FinishedAnswer`; a backend that can do so has a method `resume` beside `replay`.

    Returns:
        For each depth its score, the exception that its check raised, or what will become of it outside.

    Raises:
        RuntimeError: The backend did not go on with the answer.
    """
    sessions = require_sessions(backend)
    replay = getattr(sessions, "resume", sessions.replay) if resumes else sessions.replay
    session = replay(prompt.question, prompt.ids[prompt.start :])
    found: list[Score | Exception | Future[Score]] = []
    at = 0
    try:
        for depth in depths:
            while at < depth:
                given = session.decode(depth - at)[0].token_ids
                if not given:
                    raise RuntimeError(f"the backend decoded nothing at depth {at} of an answer of {prompt.prefill}")
                at += len(given)
            found += begin_checks(session, detector, [CheckPoint(0, depth)])
    finally:
        session.close()
    return found


def _by_forks(backend: Reader, detector: Detector, plan: Plan, prompt: Prompt, why: str) -> ScanResult:
    """Replay the prefill of `prompt` and read each depth on a fork."""
    session = require_sessions(backend).replay(prompt.question, prompt.ids[prompt.start :])
    try:
        commands = drive([guarded(plan)], session, detector)
        outcome = next(command for _, command in commands if isinstance(command, Outcome))
    finally:
        session.close()
    return _result(outcome, "forks", why)


def _result(outcome: Outcome, method: Literal["packed", "forks"], *notes: str) -> ScanResult:
    return ScanResult(outcome.checks, outcome.verdict, method, notes)
