"""What every figure rests on: a replay of bare answers ends as the live guard does, for every kind of detector."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from anydepth import Cusum, Every, Ewma, Guard, KofN, Rethink, Threshold
from anydepth.backends.batch import Continuation, write_batch
from anydepth.backends.transformers import TransformersBackend
from anydepth.config import GuardConfig
from anydepth.detectors import Detector
from anydepth.detectors.refusals import RefusalMatcher
from anydepth.evals.arms.replay import Detecting, replay
from anydepth.evals.transcript import Transcript
from anydepth.flow import Outcome
from anydepth.policy import Policy
from anydepth.schedule import Adaptive, Listed
from anydepth.types import Answer
from tests.conversations import words
from tests.evaluations import random_probe, tiny_backend

TOKENS = 40
MESSAGES = [words(17 * n, 3 + n % 5) for n in range(6)]
PREFILLS = [None, "w9", words(60, 12), None, words(90, 33), words(3, 5)]
POLICIES = [Threshold(0.62), KofN(2, 3, 0.55), Ewma(0.3, 0.58), Cusum(0.4, 0.5)]
SCHEDULES = [Every(7), Every(10, doubling=False), Adaptive(closest=3, widest=12), Listed((2, 20))]


def ending(backend: TransformersBackend) -> tuple[list[Continuation], list[Any]]:
    """The bare model's answers, some of which end by themselves: a token that they hold is made the end of turn."""
    prompts = [
        backend.template.prompt(message, prefill=prefill) for message, prefill in zip(MESSAGES, PREFILLS, strict=True)
    ]
    greedy = {"do_sample": False}
    whole = write_batch(backend, prompts, max_new_tokens=TOKENS, seed=0, sampling=greedy)
    backend.model.generation_config.eos_token_id = whole[0].token_ids[len(whole[0].token_ids) // 3]
    return write_batch(backend, prompts, max_new_tokens=TOKENS, seed=0, sampling=greedy), prompts


def transcripts_of(backend: TransformersBackend) -> list[Transcript]:
    written, prompts = ending(backend)
    assert {each.finish_reason for each in written} == {"stop", "length"}, "answers of both kinds are wanted"
    return [
        Transcript(f"t{row}", prompt, each.token_ids, each.finish_reason, each.end_tokens)
        for row, (prompt, each) in enumerate(zip(prompts, written, strict=True))
    ]


def assert_same(outcome: Outcome, answer: Answer) -> None:
    assert outcome.finish_reason == answer.finish_reason
    assert outcome.windows == answer.windows
    assert outcome.generated == answer.generated_tokens
    assert [check.depth for check in outcome.checks] == [check.depth for check in answer.checks]
    for ours, theirs in zip(outcome.checks, answer.checks, strict=True):
        assert ours.score == pytest.approx(theirs.score, abs=1e-4)
        assert ours.statistic == pytest.approx(theirs.statistic, abs=1e-4)
    assert (outcome.verdict.halt, outcome.verdict.depth) == (answer.verdict.halt, answer.verdict.depth)


def compare(backend: TransformersBackend, detector: Detector, configs: Sequence[GuardConfig]) -> set[bool]:
    """Assert that both agree under every configuration; says whether answers were halted, not halted, or both."""
    transcripts = transcripts_of(backend)
    seen = set()
    for config in configs:
        replayed = replay(Detecting("arm", backend, detector), transcripts, config)
        guard = Guard.from_backend(backend, detector, policy=config.policy, schedule=config.schedule)
        guard = guard.with_options(release=config.release, prefill=config.prefill)
        live = guard.generate(MESSAGES, prefill=PREFILLS, max_new_tokens=TOKENS, do_sample=False)
        for transcript, answer in zip(transcripts, live, strict=True):
            assert_same(replayed[transcript.id], answer)
            seen.add(answer.halted)
    return seen


def configs(policies: Sequence[Policy]) -> list[GuardConfig]:
    found = [GuardConfig(policy=policy, schedule=SCHEDULES[0]) for policy in policies]
    found += [GuardConfig(policy=policies[0], schedule=schedule) for schedule in SCHEDULES[1:]]
    changes: list[dict[str, Any]] = [{"release": "eager"}, {"release": "monitor"}, {"prefill": "end"}]
    return [*found, *(replace(found[0], **change) for change in changes)]


def saying() -> RefusalMatcher:
    """Takes some of the tiny vocabulary's words for refusals."""
    return RefusalMatcher({"window": 240, "en": {"start": ["w1\\d+", "w[4-6]\\d"], "anywhere": ["w77"]}})


@pytest.mark.parametrize("family", ["Llama", "Gemma-3"])
def test_probe(family: str) -> None:
    backend = tiny_backend(family)
    assert compare(backend, _unbound(backend), configs(POLICIES)) == {True, False}


def test_probe_of_a_model_that_cannot_be_packed() -> None:
    backend = tiny_backend("Falcon-H1 (hybrid)")
    assert not backend.packs
    assert compare(backend, _unbound(backend), configs(POLICIES)[:3]) == {True, False}


def test_probe_with_its_own_policy() -> None:
    backend = tiny_backend()
    probe = random_probe(backend, seed=4, policy=Ewma(0.5, 0.58))
    transcripts = transcripts_of(backend)
    replayed = replay(Detecting("probe", backend, probe), transcripts, GuardConfig(policy=Threshold(1.0)))
    live = Guard.from_backend(backend, probe).generate(
        MESSAGES, prefill=PREFILLS, max_new_tokens=TOKENS, do_sample=False
    )
    for transcript, answer in zip(transcripts, live, strict=True):
        assert_same(replayed[transcript.id], answer)
    assert {answer.halted for answer in live} == {True, False}


def test_probe_of_the_content_token() -> None:
    backend = tiny_backend()
    probe = random_probe(backend, content=True)
    probe.card = replace(probe.card, policy=None)
    assert compare(backend, probe, configs(POLICIES)[:4]) == {True, False}


def test_rethink() -> None:
    backend = tiny_backend()
    assert compare(backend, Rethink(matcher=saying()), configs([Threshold(0.5), KofN(2, 4, 0.5)])) == {True, False}


def test_rethink_by_probability() -> None:
    backend = tiny_backend()
    detector = Rethink("score", opener_ids=range(0, 256, 2))
    assert compare(backend, detector, configs(POLICIES)) == {True, False}


def test_checks_ahead_and_in_rounds_agree() -> None:
    backend = tiny_backend()
    transcripts = transcripts_of(backend)
    defence = Detecting("probe", backend, _unbound(backend))
    config = GuardConfig(policy=Threshold(0.62), schedule=Every(7))
    ahead, rounds = (replay(defence, transcripts, config, ahead=ahead) for ahead in (True, False))
    assert [o.windows for o in ahead.values()] == [o.windows for o in rounds.values()]
    for one, other in zip(ahead.values(), rounds.values(), strict=True):
        assert [c.depth for c in one.checks] == [c.depth for c in other.checks]
        assert [c.score for c in one.checks] == pytest.approx([c.score for c in other.checks], abs=1e-5)


def _unbound(backend: TransformersBackend) -> Any:
    """A probe without a policy of its own, so that the configuration's counts."""
    probe = random_probe(backend, seed=4)
    probe.card = replace(probe.card, policy=None)
    return probe
