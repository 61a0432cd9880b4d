"""LoRA training on tiny models: what is trained on, what is kept, and that a kill changes nothing."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from anydepth.backends.protocol import FinishedAnswer
from anydepth.backends.transformers import TransformersBackend, load
from anydepth.backends.transformers.blocks import default_site
from anydepth.errors import ConfigError
from anydepth.evals.instruments import tuning
from anydepth.evals.instruments.tuning import (
    TrainingExample,
    TuneOptions,
    adapted,
    end_of_turn,
    example,
    trainable,
    tune,
)
from tests import tiny
from tests.conversations import conversation, words

pytest.importorskip("peft")
pytest.importorskip("trl")

OPTIONS = TuneOptions(steps=(0, 1, 3), batch=2, longest=40, rank=2, learning_rate=1e-2)


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> TransformersBackend:
    """A tiny model that was loaded from a folder, as training needs."""
    folder = tmp_path_factory.mktemp("model")
    tiny.tiny_model("Llama").save_pretrained(folder)
    tiny.tiny_tokenizer().save_pretrained(folder)
    return load(folder)


@pytest.fixture(scope="module")
def examples(backend: TransformersBackend) -> list[TrainingExample]:
    found = [example(backend, conversation(n, length=20), OPTIONS.longest) for n in range(8)]
    return [each for each in found if each]


@pytest.fixture(scope="module")
def tuned(
    backend: TransformersBackend, examples: list[TrainingExample], tmp_path_factory: pytest.TempPathFactory
) -> dict[int, tuning.Tuned]:
    """Adapters that were trained in one go."""
    return {each.step: each for each in tune(backend, examples, OPTIONS, tmp_path_factory.mktemp("whole"))}


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "adapter_model.safetensors")


def logits(backend: TransformersBackend, model: Any = None) -> np.ndarray:
    ids = torch.tensor([backend.template.prompt(words(3, 6)).ids])
    with torch.no_grad():
        return (model or backend.model)(input_ids=ids).logits[0].float().numpy()


# -- examples ----------------------------------------------------------------------------------------------------------


def test_an_example_is_the_guards_own_prompt_the_answer_and_its_end(backend: TransformersBackend) -> None:
    row = conversation(1, length=10)
    prompt = backend.template.prompt([*row.messages])
    found = example(backend, row, 60)
    assert found is not None
    assert found.start == len(prompt.ids)
    assert found.ids[: found.start] == prompt.ids
    assert backend.decode_text(found.ids[found.start : -1]) == row.response
    assert found.ids[-1] == end_of_turn(backend) == backend.tokenizer.eos_token_id


def test_a_long_answer_is_cut_without_an_end(backend: TransformersBackend) -> None:
    found = example(backend, conversation(1, length=50), 40)
    assert found is not None
    assert len(found.ids) == 40
    assert found.ids[-1] != end_of_turn(backend)


def test_a_prompt_that_leaves_no_room_and_an_empty_answer_give_no_example(backend: TransformersBackend) -> None:
    row = conversation(1, length=30)
    start = len(backend.template.prompt([*row.messages]).ids)
    assert example(backend, row, start + tuning.LEAST_ANSWER - 1) is None
    assert example(backend, row, start + tuning.LEAST_ANSWER) is not None
    assert example(backend, replace(row, response=""), 60) is None


def test_forced_tokens_bear_no_loss(backend: TransformersBackend) -> None:
    row = conversation(1, length=10)
    plain, forced = example(backend, row, 60), example(backend, row, 60, forced=4)
    assert plain is not None and forced is not None
    assert (forced.ids, forced.start) == (plain.ids, plain.start + 4)
    assert example(backend, row, 60, forced=10) is None


def test_trainable_rows_answer_have_the_label_and_are_not_held_out() -> None:
    rows = [conversation(n, length=40) for n in range(6)]
    refusing = conversation(7, response="I'm sorry, but I can't help with that.")
    found = trainable([*rows, refusing], [rows[3]], label="harmful")
    assert [row.id for row in found] == ["c1", "c5"]
    assert {row.source for row in trainable(rows, [], label="benign", sources=["s1*", "s2"])} == {"s1", "s2"}


@pytest.mark.parametrize("steps", [(), (5, 1), (1, 1), (-1, 2)])
def test_steps_must_rise_from_zero_on(steps: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="steps is"):
        TuneOptions(steps=steps)


def test_a_batch_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch is 0"):
        TuneOptions(batch=0)


# -- training ----------------------------------------------------------------------------------------------------------


def test_adapters_of_the_wanted_steps_are_kept(tuned: dict[int, tuning.Tuned], backend: TransformersBackend) -> None:
    assert list(tuned) == [0, 1, 3]
    assert tuned[0].loss is None and tuned[1].loss is not None and tuned[3].loss is not None
    config = json.loads((tuned[3].folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (2, 4)
    assert all(not value.any() for name, value in weights(tuned[0].folder).items() if "lora_B" in name)
    first, last = weights(tuned[1].folder), weights(tuned[3].folder)
    assert all(not np.array_equal(first[name], last[name]) for name in first)
    assert len({name.split(".layers.")[1].split(".")[0] for name in first}) == backend.identity.num_layers


def test_what_is_only_needed_to_go_on_is_kept_for_the_last_step_alone(tuned: dict[int, tuning.Tuned]) -> None:
    assert (tuned[3].folder / "optimizer.pt").exists()
    assert not [path for step in (0, 1) for path in tuned[step].folder.iterdir() if path.suffix in (".pt", ".bin")]


def test_the_loss_is_that_of_the_answer_alone(
    backend: TransformersBackend, examples: list[TrainingExample], tmp_path: Path
) -> None:
    one = examples[0]
    [made] = tune(backend, [one], replace(OPTIONS, steps=(1,), batch=1), tmp_path)
    with torch.no_grad():
        said = backend.model(input_ids=torch.tensor([one.ids])).logits[0].log_softmax(-1)
    answer = [-said[place - 1, one.ids[place]].item() for place in range(one.start, len(one.ids))]
    assert made.loss == pytest.approx(np.mean(answer), rel=1e-3)


def test_training_lowers_the_loss(
    backend: TransformersBackend, examples: list[TrainingExample], tmp_path: Path
) -> None:
    first, last = tune(backend, examples[:2], replace(OPTIONS, steps=(1, 12)), tmp_path)
    history = json.loads((last.folder / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert len(losses) == 12
    assert last.loss == pytest.approx(np.mean(losses[-10:]))
    assert first.loss is not None and losses[-1] < first.loss


def test_a_killed_training_goes_on_as_if_it_had_not_been(
    backend: TransformersBackend, examples: list[TrainingExample], tuned: dict[int, tuning.Tuned], tmp_path: Path
) -> None:
    class Killed(Exception):
        pass

    def kill(done: int, total: int) -> None:
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        tune(backend, examples, OPTIONS, tmp_path, kill)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-0000", "step-0001"]
    seen = []
    again = tune(backend, examples, OPTIONS, tmp_path, lambda done, total: seen.append((done, total)))
    assert seen == [(2, 3), (3, 3)]
    for each in again:
        whole = weights(tuned[each.step].folder)
        assert {name: value.tolist() for name, value in weights(each.folder).items()} == {
            name: value.tolist() for name, value in whole.items()
        }
    assert again[-1].loss == pytest.approx(tuned[3].loss)


def test_adapters_that_are_there_are_not_trained_again(
    backend: TransformersBackend, examples: list[TrainingExample], tuned: dict[int, tuning.Tuned]
) -> None:
    folder = tuned[0].folder.parent
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    found = tune(backend, examples, OPTIONS, folder, lambda *_: pytest.fail("trained again"))
    assert found == list(tuned.values())
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_the_seed_decides(
    backend: TransformersBackend, examples: list[TrainingExample], tuned: dict[int, tuning.Tuned], tmp_path: Path
) -> None:
    found = {
        seed: weights(tune(backend, examples, replace(OPTIONS, steps=(1,), seed=seed), tmp_path / str(seed))[0].folder)
        for seed in (0, 1)
    }
    first = weights(tuned[1].folder)
    assert all(np.array_equal(found[0][name], first[name]) for name in first)
    assert any(not np.array_equal(found[1][name], first[name]) for name in first)


def test_the_model_itself_is_left_as_it_was(
    backend: TransformersBackend, examples: list[TrainingExample], tmp_path: Path
) -> None:
    def facts() -> tuple[Any, ...]:
        model, tokenizer = backend.model, backend.tokenizer
        return model.config.to_dict(), model.generation_config.to_dict(), tokenizer.pad_token, model.training

    before, said = facts(), logits(backend)
    tune(backend, examples, replace(OPTIONS, steps=(1,)), tmp_path)
    assert facts() == before
    assert np.array_equal(logits(backend), said)
    assert all(parameter.requires_grad for parameter in backend.model.parameters())


def test_a_folder_that_was_begun_with_something_else_is_refused(
    backend: TransformersBackend, examples: list[TrainingExample], tuned: dict[int, tuning.Tuned]
) -> None:
    folder = tuned[0].folder.parent
    with pytest.raises(ConfigError, match="was begun with rank 2, now it is 3"):
        tune(backend, examples, replace(OPTIONS, rank=3), folder)
    with pytest.raises(ConfigError, match="was begun with examples"):
        tune(backend, examples[1:], OPTIONS, folder)


def test_no_example_is_no_training(backend: TransformersBackend, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to fine-tune on"):
        tune(backend, [], OPTIONS, tmp_path)


def test_a_model_that_was_not_loaded_from_that_place_is_refused(
    backend: TransformersBackend, examples: list[TrainingExample], tmp_path: Path
) -> None:
    other = TransformersBackend(tiny.tiny_model("Qwen2"), tiny.tiny_tokenizer())
    other.identity = replace(other.identity, name=backend.identity.name)
    with pytest.raises(ConfigError, match="now holds another model"):
        tune(other, examples, OPTIONS, tmp_path)


def test_nothing_is_reported_to_the_makers_of_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)
    with tuning._quiet():
        assert constants.HF_HUB_DISABLE_TELEMETRY
    assert not constants.HF_HUB_DISABLE_TELEMETRY


# -- using an adapter --------------------------------------------------------------------------------------------------


def test_an_adapter_is_read_through_it_or_below_it_and_taken_off_again(
    backend: TransformersBackend, tuned: dict[int, tuning.Tuned]
) -> None:
    site, token = default_site(backend.model), backend.header.read_index
    answer = FinishedAnswer(backend.template.prompt(words(3, 6)), tuple(range(20, 40)), (0, 5, 20))

    def states(of: TransformersBackend) -> np.ndarray:
        return of.read_batch([answer], [site], tokens=[token])[0][site]

    before, said = states(backend), logits(backend)
    with adapted(backend, tuned[3].folder) as (through, below):
        assert through.identity.fingerprint == below.identity.fingerprint == backend.identity.fingerprint
        assert through.template is backend.template
        assert np.abs(states(through) - before).max() > 1e-2
        np.testing.assert_allclose(states(below), before, rtol=0, atol=1e-5)
        assert np.abs(logits(through) - said).max() > 1e-2
        with pytest.raises(ConfigError, match="has an adapter already"):
            tune(through, [TrainingExample((1, 2, 3), 1)], OPTIONS, tuned[0].folder.parent)
    assert np.array_equal(states(backend), before)
    assert np.array_equal(logits(backend), said)


def test_the_adapter_before_training_changes_nothing(
    backend: TransformersBackend, tuned: dict[int, tuning.Tuned]
) -> None:
    said = logits(backend)
    with adapted(backend, tuned[0].folder) as (through, _):
        np.testing.assert_allclose(logits(through), said, rtol=0, atol=1e-5)


def test_a_folder_without_an_adapter_is_refused(backend: TransformersBackend, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be loaded"), adapted(backend, tmp_path):
        pass
