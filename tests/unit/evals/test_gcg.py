"""A search for a suffix lowers the loss that it says it lowers."""

from pathlib import Path

import numpy as np
import pytest
import torch

from anydepth.errors import ConfigError
from anydepth.evals.arms.replay import Point, packed_scores
from anydepth.evals.attacks.gcg import START, Budget, Evasion
from anydepth.evals.attacks.suffixes import find_suffix, searched
from anydepth.evals.transcript import Transcript
from anydepth.templates.template import Prompt
from tests.evaluations import random_probe
from tests.unit.evals import tables

REQUEST = "w1 w2 w3 \n"  # ends with a token that the first of a suffix cannot merge with
TARGET = "w40 w41 w42"
SMALL = Budget(steps=4, width=24, top=32, batch=7)
SHORT = Budget(steps=2, width=24, top=32, batch=7)


def target_loss(suffix: str) -> float:
    """How unlikely the target is after the request and this suffix, by a plain forward pass."""
    backend = tables.backend()
    prompt = backend.template.prompt(REQUEST + suffix, prefill=TARGET)
    with torch.no_grad():
        logprobs = backend.model(torch.tensor([prompt.ids])).logits[0].log_softmax(-1)
    wanted = prompt.ids[prompt.start :]
    return -float(np.mean([logprobs[prompt.start - 1 + n, id] for n, id in enumerate(wanted)]))


def logits(suffix: str, probe) -> list[float]:  # type: ignore[no-untyped-def]
    """The probe's logits at depth 0 and behind the target, by the guard's own reading."""
    backend = tables.backend()
    prompt = backend.template.prompt(REQUEST + suffix, prefill=TARGET)
    answer = Transcript("a", Prompt(prompt.ids[: prompt.start]), prompt.ids[prompt.start :])
    scores = packed_scores(backend, probe, [Point(answer, 0), Point(answer, prompt.prefill)])
    return [float(np.log(score.value / (1 - score.value))) for score in scores]  # type: ignore[union-attr]


def test_the_suffix_makes_the_target_likelier_and_is_text_that_a_user_can_type() -> None:
    backend = tables.backend()
    found = find_suffix(backend, REQUEST, TARGET, SMALL, seed=0)
    assert found.start == pytest.approx(target_loss(START), abs=1e-4)
    assert found.loss == pytest.approx(target_loss(found.text), abs=1e-4)
    assert found.loss < found.start
    assert found.steps == 4
    ids = backend.tokenizer(found.text, add_special_tokens=False)["input_ids"]
    control = set(backend.tokenizer.all_special_ids) - {backend.tokenizer.unk_token_id}  # START is unknown words here
    assert not control & set(ids)


@pytest.mark.slow
def test_a_seed_gives_one_suffix_and_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    one, again, other = (find_suffix(tables.backend(), REQUEST, TARGET, SHORT, seed=seed) for seed in (5, 5, 6))
    assert one == again
    assert one.text != other.text
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("content", [False, True])
def test_the_probes_part_of_the_loss_is_what_the_guard_reads(content: bool) -> None:
    backend = tables.backend()
    probe = random_probe(backend, 3, content=content)
    found = find_suffix(backend, REQUEST, TARGET, SMALL, seed=0, evasion=Evasion(probe, 2.0))
    for suffix, loss in ((START, found.start), (found.text, found.loss)):
        part = 2.0 * np.mean(np.logaddexp(0, logits(suffix, probe)))
        assert loss == pytest.approx(target_loss(suffix) + part, abs=1e-3)
    assert found.loss < found.start


def test_a_heavy_weight_lowers_the_guards_score() -> None:
    probe = random_probe(tables.backend(), 3)
    found = find_suffix(tables.backend(), REQUEST, TARGET, SMALL, seed=1, evasion=Evasion(probe, 100.0))
    assert sum(logits(found.text, probe)) < sum(logits(START, probe))


def test_a_search_ends_when_the_model_begins_with_the_target() -> None:
    backend = tables.backend()
    prompt = backend.template.prompt(REQUEST + START)
    (own,) = backend.unguarded([prompt], max_new_tokens=3, do_sample=False)
    found = find_suffix(backend, REQUEST, backend.decode_text(own), SMALL, seed=0)
    assert found.steps == 1


def test_progress_is_told_and_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    steps: list[tuple[int, int]] = []
    find_suffix(tables.backend(), REQUEST, TARGET, SHORT, seed=0, told=lambda done, total: steps.append((done, total)))
    assert steps == [(n, 2) for n in range(2)]
    assert capsys.readouterr() == ("", "")


def test_what_a_run_has_found_is_not_searched_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    requests = {"r1": (REQUEST, TARGET), "r2": ("w9 w8", TARGET)}
    context = tables.context("attacks", tmp_path / "run", tmp_path)
    found = searched(context, "gcg", requests, SHORT)
    assert set(context.records.rows["gcg-suffix|r1"]) == {"id", "loss", "start", "steps"}
    context.close()
    monkeypatch.setattr("anydepth.evals.attacks.suffixes.find_suffix", None)
    again = tables.context("attacks", tmp_path / "run", tmp_path)
    assert searched(again, "gcg", requests, SHORT) == found
    again.close()
    assert not caplog.records


def test_what_cannot_be_searched_is_refused() -> None:
    with pytest.raises(ConfigError, match="give a target"):
        find_suffix(tables.backend(), REQUEST, " ", SMALL, seed=0)
    with pytest.raises(ConfigError, match="width of a GCG search is 0"):
        Budget(1, 0)
