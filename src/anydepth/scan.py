"""Check a finished answer at every scheduled depth."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from anydepth.backends.base import Backend, Decoded, FinishedAnswer
from anydepth.config import GuardConfig
from anydepth.detectors import Detector, LinearProbe
from anydepth.driver import drive
from anydepth.errors import CheckError, PromptError, UnsupportedModel
from anydepth.flow import Check, Decode, Flow, Outcome, Plan, Reply, guarded
from anydepth.schedule import Listed, scheduled_depths
from anydepth.template import Prompt
from anydepth.types import CheckResult, ScanResult, Score


def scan_answer(
    backend: Backend, detector: Detector, config: GuardConfig, prompt: Prompt, *, packed: bool = True
) -> ScanResult:
    """Check the answer that is the prefill of `prompt`, as the guard would have while it was generated.

    A probe reads all depths in one packed pass; where the model cannot take it, and for look-ahead detectors, the
    answer is replayed and forked at each depth, which the result's `method` and `notes` say. Every depth is scored,
    also after the one at which the answer would have halted. `packed=False` forks in any case.
    """
    if not prompt.prefill:
        raise PromptError("the answer to scan is empty; give its text")
    question = Prompt(prompt.ids[: prompt.start])
    answer_ids = prompt.ids[prompt.start :]
    plan = Plan(config.schedule, config.policy, len(answer_ids), release="monitor", on_error=config.on_error)
    if not isinstance(detector, LinearProbe):
        return _by_forks(backend, detector, plan, question, answer_ids, f"{detector.name} reads each depth on a fork")
    if packed and getattr(config.schedule, "fixed", False):
        depths = scheduled_depths(config.schedule, len(answer_ids))
        try:
            scores = _packed_scores(backend, detector, question, answer_ids, depths)
        except UnsupportedModel as reason:
            return _by_forks(backend, detector, plan, question, answer_ids, str(reason))
        fixed = replace(plan, schedule=Listed(tuple(depths[1:])))
        return _result(_settle(guarded(fixed), dict(zip(depths, scores, strict=True))), "packed")
    why = "the schedule looks at the scores" if packed else "forks were asked for"
    return _by_forks(backend, detector, plan, question, answer_ids, why)


def inside_prefill(
    backend: Backend, detector: Detector, config: GuardConfig, prompt: Prompt
) -> dict[int, Score | Exception]:
    """Score the scheduled depths inside the prefill of `prompt`: neither depth 0 nor its end, which the flow checks.

    One packed pass to the probe's layer; where the model cannot take it, one fork a depth. Empty where there is nothing
    inside, where `config.prefill` is `end`, and for look-ahead detectors: they would have to write at every depth.
    """
    if config.prefill != "inside" or not isinstance(detector, LinearProbe):
        return {}
    depths = [depth for depth in scheduled_depths(config.schedule, prompt.prefill) if 0 < depth < prompt.prefill]
    if not depths:
        return {}
    question, answer_ids = Prompt(prompt.ids[: prompt.start]), prompt.ids[prompt.start :]
    try:
        try:
            scores = _packed_scores(backend, detector, question, answer_ids, depths)
        except UnsupportedModel as reason:
            plan = Plan(Listed(tuple(depths)), config.policy, len(answer_ids), release="monitor", on_error="open")
            checks = _by_forks(backend, detector, plan, question, answer_ids, str(reason)).checks
            by_depth = {check.depth: check for check in checks}
            scores = [_reply(by_depth[depth]) for depth in depths]
    except Exception as error:  # a failed check is the flow's to judge: it halts unless the operator chose otherwise
        scores = [error] * len(depths)
    return dict(zip(depths, scores, strict=True))


def _reply(check: CheckResult) -> Score | Exception:
    return Score(check.score, check.detail) if check.error is None else CheckError(check.error)


def _packed_scores(
    backend: Backend, probe: LinearProbe, prompt: Prompt, answer_ids: Sequence[int], depths: Sequence[int]
) -> list[Score | Exception]:
    answer = FinishedAnswer(prompt, tuple(answer_ids), tuple(depths))
    sites = list(dict.fromkeys(read.site for read in probe.reads))
    tokens = sorted({read.token for read in probe.reads})
    (states,) = backend.read_batch([answer], sites, tokens=tokens)
    picked = [states[read.site][:, tokens.index(read.token)] for read in probe.reads]
    return probe.score_each(np.stack(picked, axis=1))


def _settle(flow: Flow, scores: dict[int, Score | Exception]) -> Outcome:
    """Run the flow of an answer whose scores are known already."""
    reply: Reply = None
    while True:
        try:
            command = flow.send(reply)
        except StopIteration as end:
            return end.value
        reply = None
        if isinstance(command, Check):
            reply = scores[command.depth]
        elif isinstance(command, Decode):
            reply = Decoded((0,) * command.n)


def _by_forks(
    backend: Backend, detector: Detector, plan: Plan, prompt: Prompt, answer_ids: Sequence[int], why: str
) -> ScanResult:
    session = backend.replay(prompt, answer_ids)
    try:
        outcome = next(step for _, step in drive([guarded(plan)], session, detector) if isinstance(step, Outcome))
    finally:
        session.close()
    return _result(outcome, "forks", why)


def _result(outcome: Outcome, method: Literal["packed", "forks"], *notes: str) -> ScanResult:
    return ScanResult(outcome.checks, outcome.verdict, method, notes)
