"""Checks of one request on their way through the stages of a cascade, without an engine."""

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from anydepth import Cascade, Rethink
from anydepth.backends.protocol import Capability
from anydepth.errors import CheckError, ConfigError
from anydepth.stages import Spent, stages_of
from anydepth.templates.template import Prompt
from anydepth.types import Score
from anydepth.vllm.engine.outside_checks import ask_outside, come_from_outside
from anydepth.vllm.engine.staged_checks import StagedChecks
from anydepth.vllm.setup import Setup, _parts

SECOND, THIRD = (0.2, 0.8), (0.4, 0.6)


def named(name: str) -> Any:
    return SimpleNamespace(name=name)


SETUP: Any = SimpleNamespace(stages=((named("probe"), None), (named("rethink"), SECOND), (named("external"), THIRD)))
ALONE: Any = SimpleNamespace(stages=((named("probe"), None),))


def test_a_detector_alone_decides_every_check():
    staged, error = StagedChecks(), CheckError("no state")
    staged.take(ALONE, {0: Score(0.5), 4: error})
    assert not staged.unsure and staged.finish() == {0: Score(0.5), 4: error}
    assert staged.finish() == {} and staged.at == 0


def test_each_check_goes_as_far_as_the_stages_are_unsure():
    staged = StagedChecks()
    staged.take(SETUP, {0: Score(0.1), 1: Score(0.2), 2: Score(0.3), 4: Score(0.8), 8: CheckError("no state")})
    assert staged.at == 1 and sorted(staged.unsure) == [1, 2] and sorted(staged.results) == [0, 4, 8]
    staged.take(SETUP, {1: Score(0.0, "Sure", spent=Spent(look_ahead_tokens=3)), 2: Score(1.0, "Sorry")})
    assert staged.at == 2 and list(staged.unsure) == [2]
    staged.outside = {2: Score(1.0, spent=Spent(requests=1, requests_without_usage=1))}
    assert staged.take_outside(SETUP) and not staged.unsure and not staged.outside
    results = staged.finish()
    assert staged.at == 0
    scores = {depth: each.value for depth, each in results.items() if isinstance(each, Score)}
    assert scores == pytest.approx({0: 0.1, 1: (0.2 + 0.2) / 2, 2: ((0.3 + 0.8) / 2 + 0.6) / 2, 4: 0.8})
    asked = {depth: [stage.name for stage in stages_of(each)] for depth, each in results.items()}
    assert asked == {
        0: ["probe"], 1: ["probe", "rethink"], 2: ["probe", "rethink", "external"], 4: ["probe"], 8: ["probe"],
    }  # fmt: skip
    assert results[1].detail == "rethink 0.00 after probe 0.20: Sure"  # type: ignore[union-attr]
    assert [stage.spent for stage in stages_of(results[1])][1].look_ahead_tokens == 3
    assert stages_of(results[2])[0].seconds == 0.0 and stages_of(results[2])[2].spent.requests == 1
    assert isinstance(results[8], CheckError)


@pytest.mark.parametrize("reply", [Score(1.5), Score(float("nan")), CheckError("the request was not finished")])
def test_a_later_stage_without_a_usable_score_is_a_failed_check_of_its_own(reply):
    staged = StagedChecks()
    staged.take(SETUP, {1: Score(0.5), 2: Score(0.5)})
    staged.take(SETUP, {1: reply, 2: Score(0.0)})
    found = staged.finish()
    assert isinstance(found[1], CheckError) and [stage.name for stage in stages_of(found[1])] == ["probe", "rethink"]
    assert found[2].value == pytest.approx(0.35) and not staged.unsure  # type: ignore[union-attr]


class Asked:
    """A request whose check at depth 2 is to be made outside."""

    def __init__(self) -> None:
        self.prompt = Prompt((1, 2, 3, 65), prefill=1)
        self.request = SimpleNamespace(all_token_ids=[1, 2, 3, 65, 66, 67])
        self.staged = StagedChecks()
        self.staged.take(SETUP, {2: Score(0.5)})
        self.staged.take(SETUP, {2: Score(0.5)})
        self.results: dict[int, Any] = {}

    def conclude_outside(self, setup: Any) -> bool:
        ended = self.staged.take_outside(setup)
        self.results |= self.staged.finish() if ended else {}
        return ended


class Outside:
    """Keeps what it is asked, and replies when it is told to."""

    name, needs = "external", frozenset({Capability.CONVERSATION})

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.reply: Future[Score] = Future()

    def bind(self, backend):
        """Fits any model."""

    def check(self, session, points):
        raise NotImplementedError

    def begin(self, session, points):
        self.seen += session.conversations(points)
        return [self.reply for _ in points]


def setup_with(detector: Any) -> Any:
    model = SimpleNamespace(decode_text=lambda ids: ",".join(map(str, ids)))
    return SimpleNamespace(model=model, stages=(*SETUP.stages[:2], (detector, THIRD)))


def test_outside_the_prompt_is_one_message_and_the_answer_ends_at_the_depth():
    guarded, detector = Asked(), Outside()
    setup = setup_with(detector)
    ask_outside(setup, guarded)  # type: ignore[arg-type]
    (about,) = detector.seen
    assert about.messages == ({"role": "user", "content": "1,2,3"},) and about.answer == "65,66"
    assert come_from_outside(setup, [guarded], idle=True) == []  # type: ignore[list-item]
    detector.reply.set_result(Score(1.0))
    assert come_from_outside(setup, [guarded], idle=False) == [guarded]  # type: ignore[list-item]
    assert guarded.results[2].value == pytest.approx(0.55)
    assert come_from_outside(setup, [guarded], idle=True) == []  # type: ignore[list-item]


def test_an_endpoint_that_cannot_be_asked_or_fails_is_a_failed_check():
    class Broken(Outside):
        def begin(self, session, points):
            raise RuntimeError("no thread")

    for detector in (Broken(), Outside()):
        guarded, setup = Asked(), setup_with(detector)
        ask_outside(setup, guarded)  # type: ignore[arg-type]
        detector.reply.set_exception(CheckError("no verdict"))
        assert come_from_outside(setup, [guarded], idle=True) == [guarded]  # type: ignore[list-item]
        assert isinstance(guarded.results[2], RuntimeError | CheckError)
        assert [stage.name for stage in stages_of(guarded.results[2])] == ["probe", "rethink", "external"]


class Guess:
    """A detector that asks outside, with what it needs of a backend."""

    name = "guess"

    def __init__(self, *needs: Capability) -> None:
        self.needs = frozenset(needs)
        self.bound: list[Any] = []

    def bind(self, backend):
        self.bound.append(backend)

    def check(self, session, points):
        return []

    def begin(self, session, points):
        return []


def test_what_is_asked_outside_is_tried_by_the_engine_alone():
    outside: Any = Guess(Capability.CONVERSATION)
    setup = Setup(None, model=(model := object()))  # type: ignore[arg-type]
    setup.__dict__["detector"] = Cascade(Rethink(), outside, 0.2, 0.8)
    assert not outside.bound and [band for _, band in setup.stages] == [None, (0.2, 0.8)]
    setup.try_outside()
    assert outside.bound == [model]


def test_one_that_needs_more_than_the_conversation_is_refused():
    needy: Any = Guess(Capability.CONVERSATION, Capability.HIDDEN_STATES)
    with pytest.raises(ConfigError, match="detector 'guess' is asked by a cascade after 'rethink'"):
        _parts(Cascade(Rethink(), needy, 0.2, 0.8))
