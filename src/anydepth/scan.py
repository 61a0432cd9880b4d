"""Check a finished answer at every scheduled depth."""

import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing, suppress
from dataclasses import replace
from typing import Literal

from anydepth.backends.protocol import Capability, CheckPoint, FinishedAnswer, Reader, require_sessions
from anydepth.config import GuardConfig
from anydepth.detectors import Detector, OutsideDetector, declares_reads, score_finished
from anydepth.detectors.outside import awaited
from anydepth.driver import Driver, Waiting, begin_checks, settle, settled
from anydepth.errors import PromptError, UnsupportedModel
from anydepth.flow import Command, Outcome, Plan, guarded, step
from anydepth.schedule import Listed, scheduled_depths
from anydepth.templates.template import Prompt
from anydepth.types import Decoded, ScanResult, Score

Begun = Score | Exception | Future[Score]
"""A check: its score, the exception that it raised, or what will become of it outside."""

ScanTurns = Generator[list[tuple[int, ScanResult | Waiting]], None, None]
"""A scan in pieces: each item has what came of one, by row."""

AT_ONCE = 8
"""Replies from outside that are awaited at a time, of one answer. More would spend their time limit in the queue of
whoever replies, and so would the checks of other answers behind them."""


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

    While replies from outside about one answer are awaited, the next one is read.

    Raises:
        PromptError: An answer is empty, or does not fit the model's context with its prompt.
    """
    turns = scan_turns(backend, detector, config, prompts, packed=packed)
    found = {row: each for turn in turns for row, each in turn if isinstance(each, ScanResult)}
    return [found[row] for row in range(len(prompts))]


def scan_turns(
    backend: Reader, detector: Detector, config: GuardConfig, prompts: Sequence[Prompt], *, packed: bool = True
) -> ScanTurns:
    """`scan_answers` for those who share the model: between two items others may use it.

    Yields:
        What came of one use of the model: `(row, result)` of the answers that are done, or nothing; or, alone, a
        `Waiting` where the next item would wait for what it names.
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
            yield [(row, _from_scores(config, *each)) for row, each in enumerate(zip(answers, scores, strict=True))]
            return
    if isinstance(detector, OutsideDetector) and getattr(config.schedule, "fixed", False):
        yield from _by_outside(backend, detector, config, prompts, why)
        return
    for row, prompt in enumerate(prompts):
        yield from _by_forks(backend, detector, _plan(config, prompt.prefill), row, prompt, why)


def _plan(config: GuardConfig, tokens: int) -> Plan:
    return Plan(config.schedule, config.policy, tokens, release="monitor", on_error=config.on_error)


def _finished(prompt: Prompt, depths: Sequence[int]) -> FinishedAnswer:
    """The prefill of a prompt as the answer to the rest of it."""
    return FinishedAnswer(prompt.question, prompt.ids[prompt.start :], tuple(depths))


def _by_outside(
    backend: Reader, detector: Detector, config: GuardConfig, prompts: Sequence[Prompt], why: str
) -> ScanTurns:
    """Fork at each depth of each prefill. All replies about one are awaited together, once the next has been read."""
    last: ScanTurns | None = None
    for row, prompt in enumerate(prompts):
        begun: dict[int, Begun] = {}
        with closing(_begin_each(backend, detector, prompt, scheduled_depths(config.schedule, prompt.prefill))) as each:
            for depth, found in each:
                begun[depth] = found
                yield []
                for waiting in _room(begun.values()):
                    yield [(row, waiting)]
        if last is not None:
            yield from last
        last = _replies(config, row, prompt, begun, why)
    if last is not None:
        yield from last


def _replies(config: GuardConfig, row: int, prompt: Prompt, begun: Mapping[int, Begun], why: str) -> ScanTurns:
    """Wait for the replies from outside about one answer, by depth."""
    if (outside := awaited(begun.values())) is not None:
        yield [(row, Waiting(outside))]
    scores = settled_each(begun)
    result = _from_scores(config, _finished(prompt, tuple(scores)), tuple(scores.values()))
    yield [(row, replace(result, method="forks", notes=(why,)))]


def _room(begun: Iterable[Begun]) -> Generator[Waiting, None, None]:
    """Wait until fewer than `AT_ONCE` of these checks are under way outside; yields what is waited for, if it is."""
    pending = [each for each in begun if isinstance(each, Future) and not each.done()]
    if len(pending) >= AT_ONCE:
        yield Waiting(pending[0])
        wait(pending, return_when=FIRST_COMPLETED)


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
    reading = InsideReading(backend, detector, config, prompt)
    for _ in reading.turns():
        pass
    return reading.scores


class InsideReading:
    """The checks of `inside_prefill` for those who share the model.

    Attributes:
        scores: The score of each depth, or the exception that its check raised; whole once `turns` has ended.
        seconds: How long the checks took, the wait for replies from outside included.
    """

    def __init__(self, backend: Reader, detector: Detector, config: GuardConfig, prompt: Prompt) -> None:
        self.scores: dict[int, Score | Exception] = {}
        self.seconds = 0.0
        self._uses = _begin_inside(backend, detector, config, prompt)

    def turns(self) -> Generator[list[tuple[int, Waiting]], None, None]:
        """Make the checks; between two items others may use the model.

        Yields:
            Nothing after a use of the model; a `Waiting` where the next item would wait for what it names.
        """
        found: dict[int, Begun] = {}
        with closing(self._uses):
            begin = time.perf_counter()
            for use in self._uses:
                found |= use
                self.seconds += time.perf_counter() - begin
                yield []
                begin = time.perf_counter()
                for waiting in _room(found.values()):
                    yield [(0, waiting)]
        if (outside := awaited(found.values())) is not None:
            yield [(0, Waiting(outside))]
        self.scores = settled_each(found)
        self.seconds += time.perf_counter() - begin


def _begin_inside(
    backend: Reader, detector: Detector, config: GuardConfig, prompt: Prompt
) -> Generator[dict[int, Begun], None, None]:
    """Begin the checks of `inside_prefill`; an item has those of one use of the model, by depth."""
    if config.prefill != "inside" or not reads_inside(detector):
        return
    depths = [depth for depth in scheduled_depths(config.schedule, prompt.prefill) if 0 < depth < prompt.prefill]
    if not depths:
        return
    left = list(depths)
    try:
        if declares_reads(detector):
            with suppress(UnsupportedModel):
                (scores,) = score_finished(backend, detector, [_finished(prompt, depths)])
                left = []
                yield dict(zip(depths, scores, strict=True))
                return
        with closing(_begin_each(backend, detector, prompt, depths)) as each:
            for depth, begun in each:
                left.remove(depth)
                yield {depth: begun}
    except Exception as error:  # a failed check is the flow's to judge: it halts unless the operator chose otherwise
        yield dict.fromkeys(left, error)


def settled_each(begun: Mapping[int, Begun]) -> dict[int, Score | Exception]:
    """The score of each check, or the exception that stands for it, by depth; waits for replies from outside."""
    return {depth: settled(each, depth) for depth, each in begun.items()}


def scores_at(backend: Reader, detector: Detector, prompt: Prompt, depths: Sequence[int]) -> list[Score | Exception]:
    """Score the prefill of `prompt`, replayed, at `depths`, each on a fork; no other depth is checked.

    Of checks that are made outside (an `OutsideDetector`), up to `AT_ONCE` are begun before one is waited for.
    """
    begun: list[Begun] = []
    for _, each in _begin_each(backend, detector, prompt, depths):
        begun.append(each)
        for _ in _room(begun):
            pass
    return [settled(each, depth) for each, depth in zip(begun, depths, strict=True)]


def begin_at(
    backend: Reader, detector: Detector, prompt: Prompt, depths: Sequence[int], *, resumes: bool = False
) -> list[Begun]:
    """Begin the checks of `scores_at`, all of them; the model is free once this returns.

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
    return [each for _, each in _begin_each(backend, detector, prompt, depths, resumes=resumes)]


def _begin_each(
    backend: Reader, detector: Detector, prompt: Prompt, depths: Sequence[int], *, resumes: bool = False
) -> Generator[tuple[int, Begun], None, None]:
    """`begin_at`, one depth at a time: between two items others may use the model."""
    sessions = require_sessions(backend)
    replay = getattr(sessions, "resume", sessions.replay) if resumes else sessions.replay
    session = replay(prompt.question, prompt.ids[prompt.start :])
    at = 0
    try:
        for depth in depths:
            while at < depth:
                given = session.decode(depth - at)[0].token_ids
                if not given:
                    raise RuntimeError(f"the backend decoded nothing at depth {at} of an answer of {prompt.prefill}")
                at += len(given)
            (begun,) = begin_checks(session, detector, [CheckPoint(0, depth)])
            yield depth, begun
    finally:
        session.close()


def _by_forks(backend: Reader, detector: Detector, plan: Plan, row: int, prompt: Prompt, why: str) -> ScanTurns:
    """Replay the prefill of `prompt` and read each depth on a fork."""
    session = require_sessions(backend).replay(prompt.question, prompt.ids[prompt.start :])
    outcomes: list[Outcome] = []

    def hand_out(_: int, command: Command | Outcome) -> None:
        if isinstance(command, Outcome):
            outcomes.append(command)

    try:
        driver = Driver([guarded(plan)], session, detector, hand_out)
        while not driver.over:
            driver.turn()
            yield [] if (waits := driver.waits) is None else [(row, waits)]
    finally:
        session.close()
    yield [(row, _result(outcomes[0], "forks", why))]


def _result(outcome: Outcome, method: Literal["packed", "forks"], *notes: str) -> ScanResult:
    return ScanResult(outcome.checks, outcome.verdict, method, notes)
