"""The options of a guard, and what it refuses to be built from."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from anydepth import Guard, GuardConfig
from anydepth.backends.protocol import Capability, Read, Site
from anydepth.config import EAGER_CHUNK
from anydepth.detectors import Cascade, LinearProbe, ProbeCard, Rethink
from anydepth.errors import CapabilityError, ConfigError, ProbeMismatch
from anydepth.flow import Plan
from anydepth.policy import Cusum, Ewma, KofN, Threshold
from anydepth.schedule import Adaptive, Every
from anydepth.testing import ScriptedBackend, ScriptedDetector


def guard_of(**options: Any) -> Guard:
    return Guard.from_backend(ScriptedBackend(["abc"]), ScriptedDetector({}), **options)


def test_defaults_are_the_papers_interval_and_threshold_and_hold() -> None:
    config = GuardConfig()
    assert (config.policy, config.schedule) == (Threshold(0.5), Every(25))
    assert (config.release, config.on_error) == ("hold", "closed")
    assert config.refusal.strip()


@pytest.mark.parametrize(("release", "chunk"), [("hold", None), ("eager", EAGER_CHUNK), ("monitor", EAGER_CHUNK)])
def test_a_plan_carries_every_option(release: Any, chunk: int | None) -> None:
    config = GuardConfig(Cusum(0.2, 0.9), Adaptive(), release=release, on_error="open")
    plan = config.plan(max_new_tokens=9, prefill=4)
    assert plan == Plan(Adaptive(), Cusum(0.2, 0.9), 9, 4, release, "open", chunk)


def test_none_is_an_option_that_was_not_given() -> None:
    assert guard_of(policy=None, schedule=None, release=None, on_error=None, refusal=None).config == GuardConfig()


@dataclass(frozen=True)
class Own:
    """A policy and schedule of a user: no base class is asked for."""

    threshold: float = 2.0

    def statistic(self, scores: Sequence[float]) -> list[float]:
        return [float(len(scores[: end + 1])) for end in range(len(scores))]

    def next_after(self, generated: int, scores: Sequence[float]) -> int:
        return generated + 2


def test_a_users_own_policy_and_schedule() -> None:
    answer = guard_of(policy=Own(), schedule=Own()).generate("hi")
    assert (answer.verdict.depth, [check.statistic for check in answer.checks]) == (2, [1.0, 2.0])


BAD_OPTIONS = [
    ({"polcy": Threshold()}, "polcy"),
    ({"release": "late"}, "release"),
    ({"on_error": "shut"}, "on_error"),
    ({"refusal": " "}, "refusal"),
    ({"refusal": ""}, "refusal"),
    ({"policy": Threshold}, "policy"),
    ({"schedule": Every}, "schedule"),
    ({"policy": Every()}, "policy"),
    ({"policy": 0.5}, "policy"),
    ({"policy": "threshold"}, "policy"),
    ({"schedule": 25}, "schedule"),
    ({"refusal": 5}, "refusal"),
]


@pytest.mark.parametrize(("options", "name"), BAD_OPTIONS)
def test_bad_options_are_named_at_construction(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        guard_of(**options)
    with pytest.raises(ConfigError, match=name):
        guard_of().with_options(**options)


def test_with_options_changes_a_copy() -> None:
    guard = guard_of(refusal="No.", policy=Ewma(0.5, 0.9))
    other = guard.with_options(release="monitor", policy=None)
    assert guard.config == GuardConfig(refusal="No.", policy=Ewma(0.5, 0.9))
    assert other.config == GuardConfig(refusal="No.", policy=Ewma(0.5, 0.9), release="monitor")
    assert (other.backend, other.detector, other.template) == (guard.backend, guard.detector, guard.template)
    assert isinstance(other.stream("hi"), Iterator)


@pytest.mark.parametrize("value", [0, -1, True, 2.0, "9", None])
def test_max_new_tokens_is_a_positive_whole_number(value: Any) -> None:
    with pytest.raises(ConfigError, match="max_new_tokens"):
        Plan(Every(), Threshold(), value)


@pytest.mark.parametrize("bad", [{"release": "later"}, {"on_error": "shut"}, {"release": ""}, {"on_error": None}])
def test_modes_are_named_when_they_are_unknown(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(bad))}.*choose"):
        Plan(Every(), Threshold(), 9, **bad)


# -- detector and backend ----------------------------------------------------------------------------------------------


def card_for(backend: ScriptedBackend, **changes: Any) -> ProbeCard:
    header, reads = backend.header, (Read(Site(2), backend.header.read_index),)
    card = ProbeCard(backend.identity, header.ids, reads, template_digest=backend.template.digest)
    return dataclasses.replace(card, **changes)


def probe_for(backend: ScriptedBackend, **changes: Any) -> LinearProbe:
    return LinearProbe(np.array([4.0, 0, 0, 0]), -2.0, card_for(backend, **changes))


def test_a_probe_guards_and_its_calibrated_policy_is_the_default() -> None:
    backend = ScriptedBackend(["abcdefgh"], states={0: [0.0] * 4, 4: [2.0, 0, 0, 0]})
    probe = probe_for(backend, policy={"name": "k_of_n", "k": 2, "n": 2, "threshold": 0.75})
    guard = Guard.from_backend(backend, probe)
    assert guard.policy == KofN(2, 2, 0.75)
    assert guard.schedule == Every()
    answer = guard.generate("hi")
    assert (answer.verdict.depth, answer.text) == (8, "abcd\n\nI can't help with that.")
    own = Guard.from_backend(backend, probe, policy=Threshold(0.75)).generate("hi")
    assert (own.verdict.depth, own.text) == (4, "ab\n\nI can't help with that.")
    assert Guard.from_backend(backend, probe_for(backend)).policy == Threshold()


@pytest.mark.parametrize(
    ("capabilities", "detector"),
    [
        (frozenset({Capability.HIDDEN_STATES}), lambda backend: Rethink()),
        (frozenset({Capability.LOOK_AHEAD}), lambda backend: Rethink("score")),
        (frozenset({Capability.LOOK_AHEAD}), probe_for),
        (frozenset({Capability.LOOK_AHEAD}), lambda backend: Cascade(probe_for(backend), Rethink(), 0.2, 0.8)),
        (frozenset[Capability](), lambda backend: ScriptedDetector({}, needs=frozenset({Capability.NEXT_TOKEN}))),
    ],
)
def test_what_the_backend_cannot_do_is_found_at_construction(
    capabilities: frozenset[Capability], detector: Callable[[ScriptedBackend], Any]
) -> None:
    backend = ScriptedBackend(["abc"], capabilities=capabilities)
    with pytest.raises(CapabilityError, match="needs"):
        Guard.from_backend(backend, detector(backend))
    Guard.from_backend(ScriptedBackend(["abc"]), detector(backend))


def test_a_probe_of_another_model_is_found_at_construction() -> None:
    backend = ScriptedBackend(["abc"])
    for change in ({"template_digest": "0" * 64}, {"reads": (Read(Site(9), 1),)}, {"header_ids": (1, 2)}):
        with pytest.raises(ProbeMismatch):
            Guard.from_backend(backend, probe_for(backend, **change))


def test_rethink_and_cascade_guard_a_scripted_answer() -> None:
    backend = ScriptedBackend(
        ["abcdefgh"], look_aheads={0: "Sure, here it is", 2: "I'm sorry, but I can't help with that"}
    )
    answer = Guard.from_backend(backend, Rethink()).generate("hi")
    assert (answer.verdict.depth, answer.text) == (2, "a\n\nI can't help with that.")
    cascade = Cascade(ScriptedDetector({0: 0.1, 4: 0.5}), Rethink(), 0.2, 0.8)
    assert Guard.from_backend(backend, cascade).generate("hi").verdict.depth == 4


def test_probe_and_detector_together_are_refused_before_anything_is_loaded() -> None:
    with pytest.raises(ConfigError, match="both probe and detector"):
        Guard.from_pretrained("no/such-model", probe="no-such-file", detector=ScriptedDetector({}))
