"""A client's prefill is read inside, on real models: the same states as if the depth had been the end."""

from typing import Any

import numpy as np
import pytest

from anydepth import Every, Guard, Threshold
from anydepth.backends.protocol import Capability, Read
from anydepth.backends.transformers import TransformersBackend
from anydepth.backends.transformers.blocks import default_site
from anydepth.detectors import LinearProbe, ProbeCard, Rethink
from anydepth.scan import inside_prefill, scores_at
from anydepth.templates.template import Prompt
from anydepth.types import Checked, Score
from tests.contract.contract import backend_of

PREFILL = " ".join(f"w{n}" for n in range(20, 50))


def probe_of(backend: TransformersBackend, seed: int = 1) -> LinearProbe:
    """A probe with a random direction."""
    header = backend.header
    card = ProbeCard(
        model=backend.identity,
        header_ids=header.ids,
        reads=(Read(default_site(backend.model), header.read_index),),
        template_digest=backend.template.digest,
        dtype="float32",
    )
    weight = np.random.default_rng(seed).standard_normal((1, backend.identity.hidden_size)).astype(np.float32)
    return LinearProbe(weight, 0.0, card)


def guard_of(family: str, **options: Any) -> Guard:
    backend = backend_of(family)
    return Guard.from_backend(backend, probe_of(backend), schedule=Every(5), **options)


def sees_the_middle() -> tuple[Guard, float, float]:
    """A guard whose probe scores a depth inside the prefill higher than both ends, and these scores."""
    backend = backend_of("Llama")
    for seed in range(40):
        guard = Guard.from_backend(backend, probe_of(backend, seed), schedule=Every(5), policy=Threshold(1.0))
        prompt = guard.template.prompt("w1 w2 w3", prefill=PREFILL)
        inside = inside_prefill(backend, guard.detector, guard.config, prompt)
        unread = guard.with_options(prefill="end").generate("w1 w2 w3", prefill=PREFILL, max_new_tokens=1)
        middle = max(score.value for score in inside.values())  # type: ignore[union-attr]
        ends = max(check.score for check in unread.checks[:2])
        if middle > ends + 1e-3:
            return guard, middle, ends
    raise AssertionError("no random direction stands out in the middle; draw more")


@pytest.mark.parametrize("family", ["Llama", "Jamba (hybrid)"])
def test_each_depth_inside_scores_as_if_the_prefill_ended_there(family: str) -> None:
    guard = guard_of(family, policy=Threshold(1.0))
    prompt = guard.template.prompt("w1 w2 w3", prefill=PREFILL)
    inside = inside_prefill(guard.backend, guard.detector, guard.config, prompt)
    assert list(inside) == [1, 2, 4, *range(5, prompt.prefill, 5)]
    for depth, score in inside.items():
        shorter = Prompt(prompt.ids[: prompt.start + depth], depth)
        turns = guard.with_options(prefill="end").turns([shorter], max_new_tokens=1)
        checks = [event.check for turn in turns for _, event in turn if isinstance(event, Checked)]
        (at_end,) = [check.score for check in checks if check.depth == depth][:1]
        assert score.value == pytest.approx(at_end, abs=1e-4)  # type: ignore[union-attr]


def test_harm_in_the_middle_of_a_prefill_halts_before_a_token_is_generated() -> None:
    guard, middle, ends = sees_the_middle()
    prompt = guard.template.prompt("w1 w2 w3", prefill=PREFILL)
    strict = guard.with_options(policy=Threshold((middle + ends) / 2))
    halted = strict.generate("w1 w2 w3", prefill=PREFILL, max_new_tokens=4)
    assert halted.halted and halted.generated_tokens == 0 and 0 < halted.verdict.depth < prompt.prefill
    at_end = strict.with_options(prefill="end").generate("w1 w2 w3", prefill=PREFILL, max_new_tokens=1)
    assert [check.depth for check in at_end.checks[:2]] == [0, prompt.prefill]
    assert max(check.score for check in at_end.checks[:2]) < strict.policy.threshold


def test_an_unhalted_answer_is_the_bare_models() -> None:
    guard = guard_of("Llama", policy=Threshold(1.0))
    prompt = guard.template.prompt("w1 w2 w3", prefill=PREFILL)
    answer = guard.generate("w1 w2 w3", prefill=PREFILL, max_new_tokens=12, do_sample=True, seed=5)
    (bare,) = guard.backend.unguarded([prompt], max_new_tokens=12, do_sample=True, seed=5)
    assert answer.token_ids == bare and not answer.halted


def test_a_reading_that_fails_halts(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = guard_of("Llama", policy=Threshold(1.0))

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(guard.backend, "read_batch", broken)
    answer = guard.generate("w1 w2 w3", prefill=PREFILL, max_new_tokens=4)
    assert answer.halted and answer.verdict.reason == "error" and answer.generated_tokens == 0
    opened = guard.with_options(on_error="open").generate("w1 w2 w3", prefill=PREFILL, max_new_tokens=4)
    assert not opened.halted and opened.verdict.errors > 0


def test_a_look_ahead_reads_the_end_only() -> None:
    backend = backend_of("Llama")

    class Watching:
        name, needs = "watching", frozenset[Capability]()

        def bind(self, backend: Any) -> None:
            """Fits any backend."""

        def check(self, session: Any, points: Any) -> Any:
            """Not called here."""

    guard = Guard.from_backend(backend, Watching())  # type: ignore[arg-type]
    prompt = guard.template.prompt("w1", prefill=PREFILL)
    assert inside_prefill(guard.backend, guard.detector, guard.config, prompt) == {}


@pytest.mark.parametrize("family", ["Llama", "Jamba (hybrid)"])
def test_a_detector_at_named_depths_scores_as_in_a_scan(family: str) -> None:
    backend = backend_of(family)
    detector = Rethink("score", opener_ids=range(9, 60))
    scan = Guard.from_backend(backend, detector, schedule=Every(5)).scan("w1 w2 w3", PREFILL)
    prompt = backend.template.prompt("w1 w2 w3", prefill=PREFILL)
    found = scores_at(backend, detector, prompt, [0, 5, 20, 30])
    wanted = {check.depth: check.score for check in scan.checks}
    values = [score.value for score in found if isinstance(score, Score)]
    assert values == pytest.approx([wanted[depth] for depth in (0, 5, 20, 30)], rel=1e-4)
    assert 0.05 < min(values) < max(values) < 0.95
