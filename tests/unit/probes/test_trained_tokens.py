"""Training Safety Tokens on a tiny real model: what is trained, what is not, and what comes out of it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anydepth import Guard, LinearProbe
from anydepth.backends.protocol import Capability, Read, Site
from anydepth.backends.transformers import TransformersBackend
from anydepth.backends.transformers.cached_texts import CachedTexts
from anydepth.errors import ConfigError, StoreError
from anydepth.probes.fitting.fit import FitOptions
from anydepth.probes.fitting.train import train, used_of
from anydepth.probes.recipe.recipe import Gathered
from anydepth.probes.states.manifest import check_appended, manifest_for
from anydepth.probes.states.plan import CollectPlan
from anydepth.probes.tokens import fill_trained as filling
from anydepth.probes.tokens.fill_trained import FilledTrained, fill_trained
from anydepth.probes.tokens.token_options import TokenOptions
from anydepth.probes.tokens.token_training import header_embeddings, train_tokens
from anydepth.probes.tokens.training_texts import TrainingText, training_texts
from tests import tiny
from tests.unit.probes.test_train import HELD_OUT, TRAINING, gathered_for, recipe_of, silent

SITE = Site(2)
FIT = FitOptions(strength=0.1)
OPTIONS = TokenOptions(count=1, epochs=12, rate=0.1, probe_rate=0.02)


@pytest.fixture(scope="module")
def backend() -> TransformersBackend:
    return TransformersBackend(tiny.tiny_model("Llama"), tiny.tiny_tokenizer())


def texts_of(backend: TransformersBackend, gathered: Sequence[Gathered], options: FitOptions) -> list[TrainingText]:
    plan = CollectPlan((SITE,), tokens=(0,))
    return training_texts(backend, gathered, used_of(gathered), (manifest_for(backend, plan), plan), options)


@pytest.fixture(scope="module")
def texts(backend: TransformersBackend) -> list[TrainingText]:
    return texts_of(backend, gathered_for(recipe_of(), TRAINING, HELD_OUT), FIT)


def weights_of(backend: TransformersBackend) -> dict[str, torch.Tensor]:
    return {name: each.detach().clone() for name, each in backend.model.named_parameters()}


# -- what is trained on ------------------------------------------------------------------------------------------------


def test_the_training_texts_are_those_of_a_fit(texts: list[TrainingText]) -> None:
    assert len(texts) == len(TRAINING), "no held-out answer is among them"
    assert {text.answer.depths for text in texts} == {(4, 16, 25, 40)}, "depth 0 is below first_depth"
    labels = np.concatenate([text.harmful for text in texts])
    weights = np.concatenate([text.weights for text in texts])
    assert labels.mean() == 0.5 and weights.mean() == pytest.approx(1)
    assert weights[labels].sum() == pytest.approx(weights[~labels].sum())
    assert all(text.harmful.shape == text.weights.shape == (4,) for text in texts)


def test_what_is_known_of_an_answer_now_decides(backend: TransformersBackend) -> None:
    """The labels of the data, a part's own first depth, and answers of both labels, which are left out."""
    recipe = recipe_of()
    both = [replace(TRAINING[0], label="harmful"), *TRAINING]
    part = replace(recipe.parts[0], first_depth=20)
    given = [Gathered(part, both, ""), Gathered(recipe.parts[1], HELD_OUT, "")]
    found = texts_of(backend, given, FIT)
    assert len(found) == len(TRAINING) - 1
    assert {text.answer.depths for text in found} == {(25, 40)}


# -- the gradient ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["Llama", "Gemma-3"])
def test_a_gradient_reaches_the_embeddings_and_nothing_of_the_model(family: str) -> None:
    backend = TransformersBackend(tiny.tiny_model(family), tiny.tiny_tokenizer())
    answers = [text.answer for text in texts_of(backend, gathered_for(recipe_of(), TRAINING, HELD_OUT), FIT)[:3]]
    answers[1] = replace(answers[1], depths=(4, 16))
    cached = CachedTexts(backend, answers, SITE)
    assert cached.size > 0
    rows = header_embeddings(backend, 2)
    embeddings = torch.tensor(rows).requires_grad_()
    states = cached.states(embeddings)
    found = backend.read_batch(answers, [SITE], tokens=[1], embeddings=rows)
    expected = np.concatenate([each[SITE][:, 0] for each in found])
    assert states.shape == (4 + 2 + 4, 32) and np.allclose(states.detach().numpy(), expected, atol=1e-5)
    direction = torch.linspace(-1, 1, 32)
    (states @ direction).sum().backward()
    assert embeddings.grad is not None and (embeddings.grad.abs().sum(1) > 0).all()
    assert all(each.grad is None and each.requires_grad for each in backend.model.parameters())
    step = 1e-2 * torch.nn.functional.normalize(embeddings.grad.flatten(), dim=0).view_as(embeddings)
    with torch.no_grad():
        up, down = ((cached.states(embeddings + sign * step) @ direction).sum() for sign in (1, -1))
    assert float(up - down) == pytest.approx(2 * float((step * embeddings.grad).sum()), rel=0.02)
    assert not cached.states(embeddings, gradient=False).requires_grad


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [2**30, 0], ids=["kept", "run again"])
def test_the_loss_falls_and_one_token_separates(
    backend: TransformersBackend, texts: list[TrainingText], memory: int
) -> None:
    before, seen = weights_of(backend), []
    options = replace(OPTIONS, memory=memory)
    tokens = train_tokens(backend, texts, SITE, options, FIT, progress=lambda *done: seen.append(done))
    assert len(tokens.losses) == 13 and tokens.losses[-1] < 0.8 * tokens.losses[0]
    assert seen[-1] == (len(seen), len(seen)), "the progress ends at its total"
    assert tokens.embeddings.shape == (1, 32) and tokens.embeddings.dtype == np.float32
    assert not np.allclose(tokens.embeddings, header_embeddings(backend, 1))
    states = CachedTexts(backend, [text.answer for text in texts], SITE).states(torch.tensor(tokens.embeddings))
    logits = states.detach().numpy() @ tokens.weight + tokens.bias
    harmful = np.concatenate([text.harmful for text in texts])
    assert ((logits > 0) == harmful).mean() > 0.9
    after = weights_of(backend)
    assert all(torch.equal(before[name], after[name]) for name in before), "a weight of the model changed"


def test_a_training_is_the_same_twice(backend: TransformersBackend, texts: list[TrainingText]) -> None:
    one, two = (train_tokens(backend, texts, SITE, replace(OPTIONS, count=2, epochs=2), FIT) for _ in range(2))
    assert np.array_equal(one.embeddings, two.embeddings) and one.losses == two.losses
    other = train_tokens(backend, texts, SITE, replace(OPTIONS, count=2, epochs=2, seed=1), FIT)
    assert other.losses[0] == one.losses[0]


def test_without_a_step_they_are_the_headers_own(backend: TransformersBackend, texts: list[TrainingText]) -> None:
    tokens = train_tokens(backend, texts, SITE, replace(OPTIONS, count=3, epochs=0), FIT)
    ids = list(backend.header.probe_ids[-3:])
    assert np.array_equal(tokens.embeddings, backend.model.get_input_embeddings().weight[ids].detach().numpy())
    assert len(tokens.losses) == 1


def test_more_tokens_than_the_header_has_are_refused(backend: TransformersBackend) -> None:
    there = len(backend.header.probe_ids)
    with pytest.raises(ConfigError, match=rf"{there + 1} Safety Tokens are asked for; the header has {there}"):
        header_embeddings(backend, there + 1)


@pytest.mark.parametrize("changes", [{"count": 0}, {"epochs": -1}, {"count": True}, {"rate": 0.0}, {"memory": 1.5}])
def test_options_that_cannot_be_are_refused(changes: dict[str, Any]) -> None:
    (name,) = changes
    with pytest.raises(ConfigError, match=f"{name} is"):
        TokenOptions(**changes)


# -- a whole recipe ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(backend: TransformersBackend, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FilledTrained]:
    work, given = tmp_path_factory.mktemp("work"), gathered_for(recipe_of(), TRAINING, HELD_OUT)
    return work, fill_trained(backend, given, recipe_of(), work, replace(OPTIONS, count=2), progress=silent)


def test_a_recipe_becomes_a_probe_with_tokens_of_its_own(
    backend: TransformersBackend, done: tuple[Path, FilledTrained], tmp_path: Path
) -> None:
    _, found = done
    assert found.site == Site(3), "the middle one of blocks 2 and 3, the upper one of two"
    trained = train(backend, found.filled, found.recipe, progress=silent)
    assert {trial.candidate.reads for trial in trained.trials} == {(Read(Site(3), 1),)}
    assert len(trained.trials) == 2, "the strengths of the recipe are still tried"
    probe = trained.probe
    assert probe.card.safety_tokens == 2 and np.array_equal(probe.embeddings, found.tokens.embeddings)  # pyright: ignore
    assert trained.figures["separation"]["held out"]["auroc"] > 0.9
    probe.save(tmp_path / "p.safetensors")
    guard = Guard.from_backend(backend, LinearProbe.load(tmp_path / "p.safetensors"))
    scan = guard.scan(HELD_OUT[0].prompt, HELD_OUT[0].response)
    checks = found.filled.store.read([(Site(3), 1)])
    mine = checks.where((checks["id"] == HELD_OUT[0].id) & (checks["depth"] == scan.checks[-1].depth))
    (expected,) = probe.score_each(mine.states)
    assert not isinstance(expected, Exception) and scan.checks[-1].score == pytest.approx(expected.value, abs=1e-5)


def test_a_second_run_trains_nothing_and_another_recipe_trains_again(
    backend: TransformersBackend, done: tuple[Path, FilledTrained], monkeypatch: pytest.MonkeyPatch
) -> None:
    work, found = done
    asked: list[int] = []

    def count(*given: Any, **options: Any) -> Any:
        asked.append(1)
        return train_tokens(*given, **options)

    monkeypatch.setattr(filling, "train_tokens", count)
    given, options = gathered_for(recipe_of(), TRAINING, HELD_OUT), replace(OPTIONS, count=2)
    again = fill_trained(backend, given, recipe_of(), work, options, progress=silent)
    assert not asked and np.array_equal(again.tokens.embeddings, found.tokens.embeddings)
    assert again.filled.store.path == found.filled.store.path and again.tokens.losses == found.tokens.losses
    fewer = gathered_for(recipe_of(), TRAINING[:40], HELD_OUT)
    other = fill_trained(backend, fewer, recipe_of(), work, replace(options, epochs=1), progress=silent)
    assert asked == [1] and other.filled.store.path != found.filled.store.path


def test_states_of_other_tokens_are_not_mixed(backend: TransformersBackend, done: tuple[Path, FilledTrained]) -> None:
    _, found = done
    manifest = found.filled.store.manifest
    plan = CollectPlan((Site(3),), tokens=(1,), embeddings=found.tokens.embeddings)
    check_appended(manifest, plan)
    for other in (None, found.tokens.embeddings + 1):
        with pytest.raises(StoreError, match=r"the store is of '2 trained, .*collect into another folder"):
            check_appended(manifest, replace(plan, embeddings=other))
    plain = manifest_for(backend, CollectPlan((Site(3),)))
    with pytest.raises(StoreError, match=r"the store is of 'header', the plan of '2 trained"):
        check_appended(plain, plan)


def test_a_model_that_takes_no_packed_pass_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    backend = TransformersBackend(tiny.tiny_model("Mamba-2"), tiny.tiny_tokenizer())
    assert Capability.EMBEDDINGS in backend.capabilities
    given, recipe = gathered_for(recipe_of(), TRAINING, HELD_OUT), recipe_of()
    recipe = replace(recipe, fit={"layers": ["2.norm"], "strength": 0.1})
    with pytest.raises(Exception, match="cannot be read in a packed pass"):
        fill_trained(backend, given, recipe, tmp_path, OPTIONS, progress=silent)
