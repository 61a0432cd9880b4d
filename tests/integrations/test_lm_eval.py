"""lm-eval itself, over a tiny model: `simple_evaluate` on tasks that are made here."""

import json

import pytest

from anydepth import Guard
from anydepth.backends.transformers import TransformersBackend, load
from anydepth.backends.transformers.blocks import default_site
from anydepth.errors import ConfigError, PromptError
from anydepth.schedule import Every
from anydepth.testing import ScriptedBackend, ScriptedDetector
from anydepth.types import Score
from tests import tiny
from tests.contract.contract import Watcher
from tests.integrations.program_runs import examples
from tests.server import tiny_model

pytest.importorskip("lm_eval")
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from anydepth.integrations.lm_eval import GuardedLM

DOCUMENTS = [{"question": text, "answer": "b"} for text in ("What is soil?", "And a tree, a tall one?", "Why?")]
REFUSAL = "No, thanks."
NEW = 20
TEXT = {"suppress_tokens": [*range(8), *range(102, tiny.SPELLING)]}
"""Has a random model write letters and signs."""


class Halts(Watcher):
    """Reads a state at every check, and halts the given rows at depth 14."""

    rows: tuple[int, ...] = ()

    def check(self, session, points):
        super().check(session, points)
        return [Score(0.9 if point.row in self.rows and point.depth >= 14 else 0.1) for point in points]


def task(output_type: str, **generation) -> dict:
    """A task as lm-eval's own YAML files have it, with its documents."""
    import datasets

    config = {
        "task": f"local-{output_type}",
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(DOCUMENTS)},
        "test_split": "test",
        "output_type": output_type,
        "doc_to_text": "{{question}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "exact_match" if output_type == "generate_until" else "acc"}],
    }
    if output_type == "multiple_choice":
        return {**config, "doc_to_choice": ["a", "b"], "doc_to_target": 1}
    return {**config, "generation_kwargs": {**TEXT, "until": ["q"], "max_gen_toks": NEW, **generation}}


def run(lm, output_type: str = "generate_until", *, chat: bool = True, **options):
    kwargs = options.pop("generation", {})
    return simple_evaluate(
        model=lm,
        tasks=[task(output_type, **kwargs)],
        task_manager=TaskManager(include_defaults=False),
        apply_chat_template=chat,
        bootstrap_iters=0,
        **options,
    )


def texts(results) -> list[str]:
    (samples,) = results["samples"].values()
    return [sample["resps"][0][0] for sample in sorted(samples, key=lambda each: each["doc_id"])]


@pytest.fixture(scope="module")
def backend():
    model = tiny.tiny_model("Llama", tiny.SPELLING)
    model.generation_config.eos_token_id = 2
    return TransformersBackend(model, tiny.spelling_tokenizer())


def guarded(backend, *rows: int, **options) -> Guard:
    watcher = Halts(default_site(backend.model), backend.header.read_index)
    watcher.rows = rows
    return Guard.from_backend(backend, watcher, schedule=Every(7, doubling=False), refusal=REFUSAL, **options)


@pytest.mark.parametrize(("batch", "documents", "sampled"), [(1, 3, False), (3, 3, False), (1, 1, True)])
def test_unhalted_answers_are_those_of_lm_evals_own_model(backend, batch, documents, sampled):
    # lm-eval sorts its requests: for the same random numbers, there is one of them
    options = {"limit": documents, "generation": {"do_sample": True, "temperature": 1.5} if sampled else {}}
    plain = HFLM(pretrained=backend.model, tokenizer=backend.tokenizer, batch_size=batch)
    expected = texts(run(plain, **options))
    assert texts(run(GuardedLM(guarded(backend), batch_size=batch), **options)) == expected
    assert len(expected) == documents and all(expected)


def test_a_halted_answer_is_marked_with_the_refusal_and_reported(backend):
    lm = GuardedLM(guarded(backend, 1), batch_size=3)
    results = run(lm)
    plain, found = texts(run(GuardedLM(guarded(backend), batch_size=3))), texts(results)
    assert found[0] == plain[0] and found[2] == plain[2]
    assert found[1].endswith(f"\n\n{REFUSAL}") and plain[1].startswith(found[1].partition("\n\n")[0])
    assert [each["anydepth"]["halted"] for each in lm.reports] == [False, True, False]
    assert [(each["task"], each["doc_id"]) for each in lm.reports] == [("local-generate_until", n) for n in range(3)]
    assert lm.reports[1]["anydepth"]["depth"] == 14
    assert results["results"]["local-generate_until"]["exact_match,none"] == 0


def test_an_until_does_not_cut_the_refusal_off(backend):
    lm = GuardedLM(guarded(backend, 0))
    found = texts(run(lm, generation={"until": ["\n\n", "No"]}))
    assert all(text.endswith(REFUSAL) for text in found)


def test_an_answer_stops_at_until(backend):
    whole = texts(run(GuardedLM(guarded(backend))))
    stop = whole[0][5:7]
    cut = texts(run(GuardedLM(guarded(backend)), generation={"until": [stop]}))
    assert len(cut[0]) <= 5 and cut[0] == whole[0].partition(stop)[0]


def test_thoughts_are_left_out_of_the_text_that_is_marked(backend):
    whole = texts(run(GuardedLM(guarded(backend))))
    end = whole[0][3:5]
    (first, *_) = texts(run(GuardedLM(guarded(backend), think_end_token=end)))
    assert first == whole[0].rpartition(end)[2].lstrip() != whole[0]


def test_log_likelihoods_are_those_of_the_bare_model(backend):
    plain = HFLM(pretrained=backend.model, tokenizer=backend.tokenizer)
    lm = GuardedLM(guarded(backend, 0, 1, 2))
    both = [run(each, "multiple_choice")["samples"]["local-multiple_choice"] for each in (lm, plain)]
    assert [sample["resps"] for sample in both[0]] == [sample["resps"] for sample in both[1]]
    assert not lm.reports


def test_a_context_that_is_no_chat_prompt_is_refused(backend):
    with pytest.raises(PromptError, match="apply_chat_template=True"):
        run(GuardedLM(guarded(backend)), chat=False)


def test_what_cannot_be_guarded_is_refused(backend, tmp_path):
    lm = GuardedLM(guarded(backend))
    with pytest.raises(ConfigError, match="num_beams=2 cannot be guarded"):
        run(lm, generation={"num_beams": 2})
    with pytest.raises(ConfigError, match="use_cache takes answers from a file"):
        run(lm, use_cache=str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match="batch_size is 'auto'"):
        GuardedLM(guarded(backend), batch_size="auto")
    with pytest.raises(ConfigError, match="think_end_token is 7; give its text"):
        GuardedLM(guarded(backend), think_end_token=7)
    with pytest.raises(ConfigError, match="the guard is over a ScriptedBackend"):
        GuardedLM(Guard.from_backend(ScriptedBackend(["text"]), ScriptedDetector({})))


def test_the_example_of_the_page_runs(tmp_path, monkeypatch):
    folder = tiny_model.build(tmp_path / "org" / "model")
    tiny_model.probe_of(load(folder), 0.0).save(tmp_path / "probe.safetensors")
    rows = "".join(json.dumps(each) + "\n" for each in DOCUMENTS)
    (tmp_path / "questions.jsonl").write_text(rows, "utf-8")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(examples("lm-eval")[0], names)
    assert names["halted"] == 3
