"""A cascade with a third stage: who is asked, what comes of it, and what it is said to have cost."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from anydepth import Guard
from anydepth.backends.protocol import CheckPoint
from anydepth.detectors import Cascade, ExternalGuard, Rethink
from anydepth.errors import CheckError, ConfigError
from anydepth.policy import KofN, Threshold
from anydepth.prices import Prices
from anydepth.schedule import Every
from anydepth.server.engine.engine import Job, ShuttingDown
from anydepth.server.engine.transformers_engine import TransformersEngine
from anydepth.server.telemetry.stage_metrics import StageMetrics
from anydepth.stages import Spent, stages_of
from anydepth.testing import END, ScriptedBackend, ScriptedDetector
from anydepth.types import Score
from tests.fake_guard import FakeGuard

NO = "I'm sorry, but I can't help with that."
MakeGuard = Callable[..., FakeGuard]


class Named(ScriptedDetector):
    """Scores by depth, under a name."""

    def __init__(self, name: str, scores: Any) -> None:
        super().__init__(scores)
        self.name = name


def answer_in(text: str) -> str:
    """The answer that a question is about."""
    return text.rpartition(" answer]\n")[2].partition("\n[")[0]


def external(endpoint: FakeGuard, **options: Any) -> ExternalGuard:
    return ExternalGuard(endpoint.url, "g", **{"retries": 0, **options})


def three(third: Any, scores: Any, second: Any, **options: Any) -> Cascade:
    return Cascade(Named("probe", scores), Named("rethink", second), 0.2, 0.8, third=third, **options)


def scored(cascade: Cascade, depths: Sequence[int]) -> list[Score]:
    """The scores at some depths of an answer of 20 tokens."""
    backend = ScriptedBackend([list(range(97, 117))])
    session, at, found = backend.open([backend.template.prompt("hi")], max_new_tokens=20), 0, []
    for depth in depths:
        if depth > at:
            session.decode(depth - at)
        found += cascade.check(session, [CheckPoint(0, depth)])
        at = depth
    return found


def test_the_third_is_asked_where_the_first_two_contradict_each_other() -> None:
    asked = Named("external", {0: 0.0, 4: 1.0})
    cascade = three(asked, {0: 0.1, 1: 0.7, 2: 0.3, 3: 0.7, 4: 0.3, 5: 0.9}, {0: 0.0, 2: 0.0, 3: 1.0, 4: 1.0})
    assert cascade.third_band == pytest.approx((0.35, 0.65))
    scores = scored(cascade, range(6))
    assert [[stage.name for stage in score.stages] for score in scores] == [
        ["probe"],
        ["probe", "rethink", "external"],  # 0.7 and no refusal: 0.45
        ["probe", "rethink"],
        ["probe", "rethink"],
        ["probe", "rethink", "external"],  # 0.3 and a refusal: 0.55
        ["probe"],
    ]
    # the third says 0: (0.45 + 0.35) / 2, under the threshold; it says 1: (0.55 + 0.65) / 2, above
    assert [round(score.value, 6) for score in scores] == [0.1, 0.4, 0.25, 0.75, 0.6, 0.9]
    assert scores[4].detail == "external 1.00 after rethink 0.55"
    assert cascade.policy == Threshold(0.5)
    assert [part.name for part in cascade.parts] == ["probe", "rethink", "external"]


def test_its_band_is_around_the_threshold_or_ones_own() -> None:
    never = Named("external", {})
    assert three(never, {}, {}, policy=Threshold(0.7)).third_band == pytest.approx((0.65, 0.75))
    assert three(never, {}, {}, unsure=(0.2, 0.8)).third_band == (0.2, 0.8)
    assert three(never, {}, {}, policy=KofN(2, 3, 0.9), unsure=(0.3, 0.5)).third_band == (0.3, 0.5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"unsure": (0.1, 0.5)}, r"unsure is \[0.1, 0.5\], and the band of the cascade is \[0.2, 0.8\]"),
        ({"unsure": (0.5, 0.5)}, "must keep 0 <= low < high <= 1"),
        ({"policy": Threshold(0.9)}, r"threshold of the policy is 0.9, outside of the band .* say with unsure"),
    ],
)
def test_a_band_that_cannot_be_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        three(Named("external", {}), {}, {}, **options)
    with pytest.raises(ConfigError, match="there is no third detector"):
        Cascade(Named("a", {}), Named("b", {}), 0.2, 0.8, unsure=(0.3, 0.4))


def test_an_answer_says_what_each_stage_did_and_used(serve: MakeGuard) -> None:
    endpoint = serve(verdict=lambda text: "unsafe" if "d" in answer_in(text) else "safe")
    backend = ScriptedBackend(["abcdefgh"], look_aheads={0: "Sure thing", 2: NO, 6: "Sure"})
    guard = Guard.from_backend(
        backend,
        Cascade(
            Named("probe", {0: 0.1, 2: 0.3, 4: 0.35}),
            Rethink(),
            0.2,
            0.8,
            third=external(endpoint, prices=Prices(10, 0)),
        ),
        schedule=Every(2, doubling=False),
    )
    answer = guard.generate("hi")
    assert [(check.depth, len(check.stages)) for check in answer.checks] == [(0, 1), (2, 3), (4, 3)]
    assert answer.halted and answer.text.startswith("ab") and answer.verdict.depth == 4
    stages = answer.stages
    assert stages is not None
    counts = {name: (sums["checks"], sums["decided"]) for name, sums in stages.items()}
    assert counts == {"probe": (3, 1), "rethink": (2, 0), "external": (2, 2)}
    assert stages["rethink"]["look_ahead_tokens"] == 2 * len(NO.split(" "))
    told = ("requests", "requests_without_usage", "prompt_tokens", "completion_tokens", "cost")
    assert [stages["external"][name] for name in told] == [2, 0, 200, 4, pytest.approx(0.002)]
    assert all(sums["seconds"] >= 0 for sums in stages.values())
    assert "user: hi" in endpoint.asked[0]["messages"][0]["content"]


def test_an_endpoint_that_fails_halts_the_answer_and_is_counted(serve: MakeGuard) -> None:
    endpoint = serve()
    backend = ScriptedBackend(["abcdef"], look_aheads={0: NO})
    guard = Guard.from_backend(
        backend, Cascade(Named("probe", {0: 0.1, 2: 0.3}), Rethink(), 0.2, 0.8, third=external(endpoint))
    )
    endpoint.verdict = lambda text: (500, {"error": {"message": "out of order"}})
    answer = guard.generate("hi")
    assert answer.halted and (answer.verdict.reason, answer.verdict.depth, answer.token_ids) == ("error", 2, (97,))
    assert answer.checks[-1].error is not None and answer.checks[-1].error.startswith("ProviderError: g at 127.0.0.1")
    stages = answer.stages
    assert stages is not None and (stages["external"]["checks"], stages["external"]["decided"]) == (1, 0)
    assert stages["external"]["requests"] == stages["external"]["requests_without_usage"] == 1
    assert guard.with_options(on_error="open").generate("hi").finish_reason == "stop"


def test_a_stage_that_fails_tells_what_was_asked_before() -> None:
    cascade = three(Named("external", {0: CheckError("no")}), {0: 0.3}, {0: 1.0})
    with pytest.raises(CheckError) as raised:
        scored(cascade, [0])
    assert [(stage.name, stage.spent) for stage in stages_of(raised.value)] == [
        (name, Spent()) for name in ("probe", "rethink", "external")
    ]


def test_a_batch_goes_on_where_one_row_waits_outside(serve: MakeGuard) -> None:
    """Only the row whose check fails is halted, and no row decodes while one waits."""
    endpoint = serve(verdict=lambda text: "unsafe" if "bb" in answer_in(text) else "safe")
    scores = {0: 0.1, 2: 0.3}
    backend = ScriptedBackend(["aaaa", "bbbb"], look_aheads={0: NO})
    guard = Guard.from_backend(
        backend,
        Cascade(Named("probe", scores), Rethink(), 0.2, 0.8, third=external(endpoint)),
        schedule=Every(2, doubling=False),
    )
    first, second = guard.generate([[{"role": "user", "content": "one"}], [{"role": "user", "content": "two"}]])
    assert (first.text, first.halted) == ("aaaa", False)
    assert (second.text, second.halted, second.verdict.depth) == ("I can't help with that.", True, 2)


def test_scans_and_prefills_ask_about_all_depths_at_once(serve: MakeGuard) -> None:
    """With one reply after the other the barrier would never be passed."""
    barrier = threading.Barrier(3, timeout=20)
    endpoint = serve()
    detector = Cascade(Named("probe", {0: 0.1, 2: 0.3}), Rethink(), 0.2, 0.8, third=external(endpoint))
    backend = ScriptedBackend(["abcdef"], look_aheads={0: NO})
    guard = Guard.from_backend(backend, detector, schedule=Every(2, doubling=False))
    endpoint.before = barrier.wait
    scan = guard.scan("hi", "abcdef")
    assert [check.depth for check in scan.checks] == [0, 2, 4, 6] and scan.method == "forks"
    assert [len(check.stages) for check in scan.checks] == [1, 3, 3, 3] and not scan.verdict.halt
    assert len(endpoint.asked) == 3
    assert scan.checks == guard.with_options().scan("hi", "abcdef").checks, "their verdicts are known"


async def test_the_servers_model_is_free_while_one_answer_waits_outside(serve: MakeGuard) -> None:
    """The endpoint replies only once another answer, begun later, has ended."""
    release = threading.Event()
    endpoint = serve()
    backend = ScriptedBackend(["abcd"], look_aheads={0: NO})
    scores = {0: 0.1, 2: 0.3}
    detector = Cascade(Named("probe", scores), Rethink(), 0.2, 0.8, third=external(endpoint, timeout=30))
    guard = Guard.from_backend(backend, detector, schedule=Every(2, doubling=False))
    endpoint.before = lambda: release.wait(30)
    engine = TransformersEngine(guard, model="m", end_token_ids=frozenset({END}))
    seconds: list[float] = []
    engine.on_check = seconds.append

    async def answer(job: Job) -> Any:
        return [event async for event in engine.submit(job)][-1].answer

    job = Job(guard.template.prompt("hi"), guard.config, 4)
    slow = asyncio.create_task(answer(job))
    while not endpoint.asked:
        await asyncio.sleep(0.01)
    scores[2] = 0.0  # the other answer is sure
    fast = await answer(job)
    assert not slow.done() and fast.stages["probe"]["checks"] == 3
    release.set()
    scores[2] = 0.3
    waited = await slow
    assert (fast.text, waited.text) == ("abcd", "abcd") and waited.stages["external"]["requests"] == 2
    assert len(seconds) == 6
    await engine.stop()


async def test_an_answer_that_waits_outside_ends_with_the_server(serve: MakeGuard) -> None:
    release = threading.Event()
    endpoint = serve()
    backend = ScriptedBackend(["abcd"], look_aheads={0: NO})
    detector = Cascade(Named("probe", {0: 0.3}), Rethink(), 0.2, 0.8, third=external(endpoint, timeout=30))
    guard = Guard.from_backend(backend, detector)
    endpoint.before = lambda: release.wait(30)
    engine = TransformersEngine(guard, model="m", end_token_ids=frozenset({END}))

    async def answer() -> list[Any]:
        return [event async for event in engine.submit(Job(guard.template.prompt("hi"), guard.config, 4))]

    task = asyncio.create_task(answer())
    while not endpoint.asked:
        await asyncio.sleep(0.01)
    await engine.stop()
    with pytest.raises(ShuttingDown):
        await task
    assert backend.sessions[-1].closed
    release.set()


def test_stages_of_one_name_are_told_apart_wherever_a_name_is_a_key() -> None:
    """In the sums of an answer, of vLLM's report and in the audit record, and as the label of the metrics."""
    first, second, third = {0: 0.1, 2: 0.3}, {0: 1.0, 4: 0.0}, Named("rethink", {0: 1.0})
    cascade = Cascade(Named("rethink", first), Named("rethink", second), 0.2, 0.8, third=third)
    guard = Guard.from_backend(ScriptedBackend(["abcdefgh"]), cascade, schedule=Every(2, doubling=False))
    answer = guard.with_options(release="monitor").generate("hi")
    names = [[stage.name for stage in check.stages] for check in answer.checks]
    assert names[:2] == [["rethink"], ["rethink", "rethink_2", "rethink_3"]]
    assert answer.checks[1].detail == "rethink_3 1.00 after rethink_2 0.55"
    assert answer.stages is not None
    sums = {name: (each["checks"], each["decided"]) for name, each in answer.stages.items()}
    assert sums == {"rethink": (6, 1), "rethink_2": (5, 4), "rethink_3": (1, 1)}
    each_check, each_answer = StageMetrics(CollectorRegistry()), StageMetrics(CollectorRegistry())
    for check in answer.checks:
        each_check.count(check)
    each_answer.count_sums(answer.stages, None)
    for outcome, name, count in (
        ("decided", "rethink", 1),
        ("passed_on", "rethink", 5),
        ("decided", "rethink_2", 4),
        ("passed_on", "rethink_2", 1),
        ("decided", "rethink_3", 1),
    ):
        for metrics in (each_check, each_answer):
            assert metrics.checks.labels(name, outcome)._value.get() == count, (outcome, name)


def test_a_stage_that_fails_is_told_apart_from_one_of_its_name() -> None:
    cascade = three(Named("probe", {0: CheckError("no")}), {0: 0.3}, {0: 1.0})
    with pytest.raises(CheckError) as raised:
        scored(cascade, [0])
    assert [stage.name for stage in stages_of(raised.value)] == ["probe", "rethink", "probe_3"]


def test_a_name_with_a_place_of_its_own_is_left_to_its_detector() -> None:
    cascade = Cascade(Named("a_3", {0: 0.5}), Named("a", {0: 0.5}), 0.2, 0.8, third=Named("a", {0: 1.0}))
    (score,) = scored(cascade, [0])
    assert [stage.name for stage in score.stages] == ["a_3", "a", "a_3_3"]
