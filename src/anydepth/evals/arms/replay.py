"""Find out what a guard would have done to answers that the bare model has written.

An un-halted guarded answer is, token for token, the unguarded one (docs/architecture.md, "The guarantee"). So one
unguarded answer serves every defence: the guard's own flow (`flow.guarded`) is run over it, its tokens are handed out
as if they were decoded, and only the checks need the model. Checks of many answers are made together.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, cast

from anydepth.backends.batch import batches
from anydepth.backends.protocol import Backend, CheckPoint, FinishedAnswer
from anydepth.config import GuardConfig, with_own_policy
from anydepth.detectors import Detector, StateDetector, declares_reads, score_finished
from anydepth.driver import drive, make_checks, settle
from anydepth.evals.transcript import Transcript
from anydepth.flow import Check, Command, Outcome, Plan, guarded, step
from anydepth.scan import inside_prefill, reads_inside
from anydepth.schedule import Every, scheduled_depths
from anydepth.templates.template import Prompt
from anydepth.types import Decoded, Score

if TYPE_CHECKING:
    from anydepth.backends.transformers import TransformersBackend


@dataclass(frozen=True, slots=True)
class Point:
    """One check to make: the answer `transcript` at `depth`."""

    transcript: Transcript
    depth: int

    @property
    def prompt(self) -> Prompt:
        """The conversation as it stands at that depth, all of the answer as its prefill."""
        return Prompt((*self.transcript.start.ids, *self.transcript.answer_ids[: self.depth]), self.depth)


class Defence(Protocol):
    """What an evaluation compares: anything that scores an answer at some of its depths."""

    @property
    def name(self) -> str:
        """The arm's name in records and figures."""
        ...

    def scores(self, points: Sequence[Point]) -> list[Score | Exception]:
        """Score each point, in order; what a failed check raised stands in its place."""
        ...

    def config(self, base: GuardConfig) -> GuardConfig:
        """`base` with the policy that belongs to this defence."""
        ...


@dataclass(frozen=True, slots=True)
class Detecting:
    """A detector of this package as a defence."""

    name: str
    backend: Backend
    detector: Detector

    def scores(self, points: Sequence[Point]) -> list[Score | Exception]:
        """Score each point; a detector that declares its reads scores all depths of an answer in one packed pass."""
        if declares_reads(self.detector):
            return packed_scores(self.backend, self.detector, points)
        return live_scores(self.backend, self.detector, points)

    @property
    def packs(self) -> bool:
        """Whether all depths of an answer are scored in one packed pass."""
        return declares_reads(self.detector)

    @property
    def reads_inside(self) -> bool:
        """Whether a prefill is read at the depths inside it as well; see `anydepth.scan.inside_prefill`."""
        return reads_inside(self.detector)

    @property
    def is_fed(self) -> bool:
        """Whether transcripts are fed through sessions of the backend, as a guard's own: all but packed passes are."""
        if not hasattr(self.backend, "replay_batch"):
            return False
        return not (self.packs and cast("TransformersBackend", self.backend).packs)

    def config(self, base: GuardConfig) -> GuardConfig:
        """`base` with the detector's calibrated policy, if it has one."""
        return with_own_policy(base, self.detector)


def reads_states(arm: Defence) -> bool:
    """True if the defence is a detector that scores all depths of an answer in one pass, as a probe does."""
    return isinstance(arm, Detecting) and arm.packs


def without_early_checks(base: GuardConfig) -> GuardConfig:
    """`base` with the paper's even schedule: for an arm that runs the model anew at every check."""
    schedule = base.schedule
    return replace(base, schedule=Every(schedule.interval, doubling=False)) if isinstance(schedule, Every) else base


def packed_scores(backend: Backend, detector: StateDetector, points: Sequence[Point]) -> list[Score | Exception]:
    """Score points with a detector that declares its reads, all depths of an answer in one packed pass."""
    wanted: dict[str, list[int]] = {}
    answers: dict[str, Transcript] = {}
    for point in points:
        wanted.setdefault(point.transcript.id, []).append(point.depth)
        answers[point.transcript.id] = point.transcript
    finished = {
        key: FinishedAnswer(answers[key].start, answers[key].answer_ids, tuple(sorted(set(depths))))
        for key, depths in wanted.items()
    }
    found: dict[tuple[str, int], Score | Exception] = {}
    order = list(finished)
    for batch in batches(order, lambda key: _whole(finished[key]), 0, str, rows=8):
        each = score_finished(backend, detector, [finished[key] for key in batch])
        for key, scores in zip(batch, each, strict=True):
            found.update({(key, depth): score for depth, score in zip(finished[key].depths, scores, strict=True)})
    return [found[point.transcript.id, point.depth] for point in points]


def live_scores(backend: Backend, detector: Detector, points: Sequence[Point]) -> list[Score | Exception]:
    """Score points with any detector, as a guard does: a session is opened at the depth, and a fork of it checked."""
    found: list[Score | Exception | None] = [None] * len(points)
    numbered = list(enumerate(points))
    for batch in batches(numbered, lambda item: item[1].prompt, 32, lambda item: f"{item[1].transcript.id}:{item[0]}"):
        session = backend.open([point.prompt for _, point in batch], max_new_tokens=1)
        try:
            checks = [CheckPoint(row, point.depth) for row, (_, point) in enumerate(batch)]
            for (place, _), score in zip(batch, make_checks(session, detector, checks), strict=True):
                found[place] = score
        finally:
            session.close()
    return [score for score in found if score is not None]


def replay(
    defence: Defence, transcripts: Sequence[Transcript], base: GuardConfig, *, ahead: bool = True
) -> dict[str, Outcome]:
    """What `defence` would have done to each transcript, by its id.

    Args:
        defence: What scores the checks.
        transcripts: Answers of the bare model.
        base: Schedule and release mode; the policy is the defence's own where it has one.
        ahead: Score every depth of a fixed schedule in one go, also those behind a halt; right for a probe, whose
            packed pass reads them for nothing. Otherwise checks are made in rounds, and none after a halt.
    """
    config = defence.config(base)
    plans = {each.id: _plan(config, each) for each in transcripts}
    if isinstance(defence, Detecting) and defence.is_fed:
        return _fed(defence, transcripts, plans, config)
    inside = {each.id: _depths_inside(defence, config, each) for each in transcripts}
    ahead = ahead and getattr(config.schedule, "fixed", False)
    points = [
        Point(each, depth)
        for each in transcripts
        for depth in (*inside[each.id], *(check_depths(plans[each.id], each) if ahead else ()))
    ]
    known = {each.id: dict[int, Score | Exception]() for each in transcripts}
    _score(defence, points, known)
    plans = {
        key: replace(plan, inside={depth: known[key][depth] for depth in inside[key]}) for key, plan in plans.items()
    }
    return _rounds(defence, transcripts, plans, known)


def _depths_inside(defence: Defence, config: GuardConfig, transcript: Transcript) -> list[int]:
    """Where the guard reads inside the prefill."""
    if config.prefill != "inside" or not getattr(defence, "reads_inside", False):
        return []
    length = transcript.prompt.prefill
    return [depth for depth in scheduled_depths(config.schedule, length) if 0 < depth < length]


def _fed(
    defence: Detecting, transcripts: Sequence[Transcript], plans: Mapping[str, Plan], config: GuardConfig
) -> dict[str, Outcome]:
    """Run the flows over sessions that are fed the transcripts: one forward pass a window, forks for the checks."""
    backend, detector = cast("TransformersBackend", defence.backend), defence.detector
    plans = {
        each.id: replace(plans[each.id], inside=inside_prefill(backend, detector, config, each.prompt))
        for each in transcripts
    }
    eos = min(backend.end_tokens({}), default=backend.pad_id)  # which one it was does not matter: nothing follows
    answers = {each.id: (*each.token_ids, *(eos,) * each.end_tokens) for each in transcripts}
    unwritten = [each for each in transcripts if not answers[each.id]]
    outcomes = _rounds(defence, unwritten, plans, {each.id: {} for each in unwritten})
    written = [each for each in transcripts if answers[each.id]]
    longest = max(map(len, answers.values()), default=0)
    for batch in batches(written, lambda each: each.prompt, longest, lambda each: each.id):
        session = backend.replay_batch(
            [each.prompt for each in batch],
            [answers[each.id] for each in batch],
            [each.finish_reason == "stop" for each in batch],
            eos=eos,
        )
        try:
            for row, command in drive([guarded(plans[each.id]) for each in batch], session, detector):
                if isinstance(command, Outcome):
                    outcomes[batch[row].id] = command
        finally:
            session.close()
    return {each.id: outcomes[each.id] for each in transcripts}


def check_depths(plan: Plan, transcript: Transcript) -> list[int]:
    """Depths at which the flow checks a transcript that it does not halt; for schedules that ignore the scores."""
    flow, hand = guarded(replace(plan, release="monitor")), _Hand(transcript)
    command, scores = step(flow), dict[int, Score | Exception]()
    while isinstance(command := settle(flow, command, hand.out, scores), Check):
        scores[command.depth] = Score(0.0)
    return list(scores)


class _Hand:
    """Hands out the tokens of a transcript as if they were decoded."""

    def __init__(self, transcript: Transcript) -> None:
        self._left = transcript.token_ids
        self._transcript = transcript

    def out(self, n: int) -> Decoded:
        end = self._transcript.end_tokens
        given, self._left = self._left[:n], self._left[n:]
        if self._left or (end and len(given) == n):
            return Decoded(given)
        closing = (-1,) * end  # the id does not matter to the flow
        reason = self._transcript.finish_reason
        return Decoded((*given, *closing), reason, end)  # pyright: ignore[reportArgumentType] no guard was there


def _rounds(
    defence: Defence,
    transcripts: Sequence[Transcript],
    plans: Mapping[str, Plan],
    known: Mapping[str, dict[int, Score | Exception]],
) -> dict[str, Outcome]:
    flows = {each.id: guarded(plans[each.id]) for each in transcripts}
    hands = {each.id: _Hand(each) for each in transcripts}
    by_id = {each.id: each for each in transcripts}
    waiting: dict[str, Command | Outcome] = {key: step(flow) for key, flow in flows.items()}
    outcomes: dict[str, Outcome] = {}
    while waiting:
        points: list[Point] = []
        for key in list(waiting):
            waiting[key] = command = settle(flows[key], waiting[key], hands[key].out, known[key])
            if isinstance(command, Check):
                points.append(Point(by_id[key], command.depth))
            else:
                outcomes[key] = command
                del waiting[key]
        _score(defence, points, known)
    return {each.id: outcomes[each.id] for each in transcripts}


def _score(defence: Defence, points: Sequence[Point], known: Mapping[str, dict[int, Score | Exception]]) -> None:
    """Add the scores of `points` to those that are known."""
    scores = defence.scores(points) if points else []
    for point, score in zip(points, scores, strict=True):
        known[point.transcript.id][point.depth] = score


def _plan(config: GuardConfig, transcript: Transcript) -> Plan:
    tokens = len(transcript.token_ids) + transcript.end_tokens
    return config.plan(max_new_tokens=max(1, tokens), prefill=transcript.prompt.prefill)


def _whole(answer: FinishedAnswer) -> Prompt:
    return Prompt((*answer.prompt.ids, *answer.answer_ids[: answer.deepest]))


def leaked(outcome: Outcome) -> int:
    """Tokens that left before the halt, prefill not counted."""
    return sum(window.stop - window.start for window in outcome.windows if window.state == "released")


def halted(outcomes: Mapping[str, Outcome]) -> Iterator[bool]:
    """Whether each answer was halted, in order."""
    return (outcome.finish_reason == "content_filter" for outcome in outcomes.values())
