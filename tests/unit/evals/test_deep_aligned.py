"""Training data of the Deep-Alignment baseline: what is forced, what is learned, in which proportions."""

from pathlib import Path

import pytest

from anydepth.backends.transformers import TransformersBackend
from anydepth.detectors.refusals import RefusalMatcher
from anydepth.errors import ConfigError
from anydepth.evals.instruments.tuning import TrainingExample, TuneOptions, end_of_turn, tune
from benchmarks.train_deep_aligned import REFUSALS, RecoveryOptions, recoveries, recovery
from tests import tiny
from tests.conversations import conversation, words

HARMFUL = [conversation(2 * n + 1, length=30) for n in range(40)]
HARMLESS = [conversation(2 * n, length=25) for n in range(40)]
SAID = "w7 w8 w9"


@pytest.fixture(scope="module")
def backend() -> TransformersBackend:
    return TransformersBackend(tiny.tiny_model("Llama"), tiny.tiny_tokenizer())


def depths(backend: TransformersBackend, found: list[TrainingExample]) -> list[int]:
    """Tokens of the answer before the refusal."""
    return [each.start - len(backend.template.prompt(prompt_of(backend, each)).ids) for each in found]


def prompt_of(backend: TransformersBackend, each: TrainingExample) -> str:
    text = backend.tokenizer.decode(list(each.ids))
    return text.split("user")[1].split("<|im_end|>")[0].strip()


def test_every_wording_is_a_refusal_also_for_the_judge() -> None:
    matcher = RefusalMatcher.default()
    assert len(set(REFUSALS)) == len(REFUSALS) >= 5
    assert [text for text in REFUSALS if not matcher.is_refusal(text)] == []


def test_the_refusal_alone_is_learned_after_the_first_tokens_of_the_answer(backend: TransformersBackend) -> None:
    row = HARMFUL[0]
    begun = backend.template.prompt([*row.messages], prefill=row.response)
    found = recovery(backend, row, SAID, 12, 112)
    assert found is not None
    assert found.start == begun.start + 12
    assert found.ids[: found.start] == begun.ids[: begun.start + 12]
    assert backend.decode_text(found.ids[found.start :]) == SAID
    assert found.ids[-1] == end_of_turn(backend)


def test_at_depth_0_the_refusal_is_the_whole_answer(backend: TransformersBackend) -> None:
    row = HARMFUL[0]
    found = recovery(backend, row, SAID, 0, 112)
    prompt = backend.template.prompt([*row.messages])
    assert found is not None
    assert found.ids[: found.start] == prompt.ids
    assert backend.decode_text(found.ids[found.start :]) == SAID


def test_an_answer_that_is_shorter_than_the_depth_is_forced_whole(backend: TransformersBackend) -> None:
    row = conversation(1, length=5)
    found = recovery(backend, row, SAID, 30, 112)
    assert found is not None
    assert found.start == len(backend.template.prompt([*row.messages], prefill=row.response).ids)


def test_what_does_not_fit_is_left_out_and_not_cut(backend: TransformersBackend) -> None:
    whole = recovery(backend, HARMFUL[0], SAID, 12, 112)
    assert whole is not None
    assert recovery(backend, HARMFUL[0], SAID, 12, len(whole.ids)) == whole
    assert recovery(backend, HARMFUL[0], SAID, 12, len(whole.ids) - 1) is None


def test_half_of_the_refusals_come_at_once_and_harmless_answers_are_mixed_in(backend: TransformersBackend) -> None:
    options = RecoveryOptions(deepest=10, harmless=0.5, longest=80, longest_harmless=60)
    found = recoveries(backend, HARMFUL, HARMLESS, options, 30)
    assert len(found) == 45
    seen = depths(backend, found[:30])
    assert 8 <= seen.count(0) <= 22
    assert max(seen) <= 10 and len(set(seen)) > 5
    asked = {row.prompt for row in HARMLESS}
    assert all(prompt_of(backend, each) in asked for each in found[30:])
    assert set(depths(backend, found[30:])) == {0}
    assert recoveries(backend, HARMFUL, HARMLESS, options, 30) == found


def test_another_seed_draws_other_depths(backend: TransformersBackend) -> None:
    one, other = (
        recoveries(backend, HARMFUL, HARMLESS, RecoveryOptions(seed=seed, longest=112), 20) for seed in (0, 1)
    )
    assert depths(backend, one[:20]) != depths(backend, other[:20])


def test_too_few_conversations_are_an_error(backend: TransformersBackend) -> None:
    with pytest.raises(ConfigError, match=r"3 harmful conversations fit .* 20 are wanted"):
        recoveries(backend, HARMFUL[:3], HARMLESS, RecoveryOptions(), 20)
    with pytest.raises(ConfigError, match=r"2 harmless conversations fit .* 20 are wanted"):
        recoveries(backend, HARMFUL, HARMLESS[:2], RecoveryOptions(), 20)


@pytest.mark.parametrize("wrong", [{"deepest": 0}, {"at_once": 1.0}, {"harmless": 0.0}])
def test_options_that_teach_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        RecoveryOptions(**wrong)


def test_a_model_learns_to_refuse_after_a_forced_beginning(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    from anydepth.backends.transformers import load
    from anydepth.evals.instruments.tuning import adapted

    folder = tmp_path / "model"
    tiny.tiny_model("Llama").save_pretrained(folder)
    tiny.tiny_tokenizer().save_pretrained(folder)
    backend = load(folder)
    row = HARMFUL[0]
    shown = [found for depth in (0, 3, 6, 9) if (found := recovery(backend, row, SAID, depth, 112))]
    options = TuneOptions(steps=(40,), batch=4, longest=112, rank=8, learning_rate=2e-2)
    [made] = tune(backend, shown, options, tmp_path / "adapters")
    begun = backend.template.prompt([*row.messages], prefill=words(3 + 7, 6))

    def said(of: TransformersBackend) -> str:
        return of.decode_text(of.unguarded([begun], max_new_tokens=3, do_sample=False)[0])

    assert said(backend) != SAID
    with adapted(backend, made.folder) as (through, _):
        assert said(through) == SAID
