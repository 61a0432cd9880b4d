"""Trained Safety Tokens in vLLM: the scores of Transformers, under ids that are no tokens."""

from dataclasses import replace

import numpy as np
import pytest
from transformers import AutoTokenizer

pytest.importorskip("vllm", reason="vllm is not installed here; docs/vllm.md says how to run these tests")

from anydepth import LinearProbe
from anydepth.backends.protocol import FinishedAnswer, Read
from anydepth.backends.transformers.backend import TransformersBackend
from anydepth.detectors.finished import score_finished
from anydepth.templates.template import Prompt
from anydepth.types import Score
from anydepth.vllm.report_field import parse_stop_reason
from tests.tiny import VOCABULARY
from tests.vllm import model
from tests.vllm.engine import monitor
from tests.vllm.model import PROMPTS

SPARE = 3
"""Embeddings of the test's model that no token has."""


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def folder(request, tmp_path_factory):
    """A model; tied, its output layer is the embedding table itself."""
    return model.build(tmp_path_factory.mktemp("spare"), spare=SPARE, tied=request.param)


def test_a_single_one_needs_no_embedding_of_its_own(engines, tiny_folder, reference, tmp_path):
    """The model has an embedding for each token of the tokenizer, and no more."""
    probe, settings = own_probe(reference, tmp_path, 1)
    engine = engines(folder=tiny_folder, settings=settings)
    ids = engine.ids(PROMPTS[0])
    options = {"max_tokens": 12, "ignore_eos": True, "temperature": 0.8, "seed": 1, "repetition_penalty": 1.3}
    told = engine.answer(ids + list(range(20, 31)), guard=monitor(interval=1), **options)
    assert told.token_ids == engine.answer(ids + list(range(20, 31)), guard={"guard": False}, **options).token_ids
    checks = {each["depth"]: each["score"] for each in told.report["timeline"]}
    finished = FinishedAnswer(Prompt(tuple(ids)), (*range(20, 31), *told.token_ids), tuple(checks))
    backend = TransformersBackend(reference.model, AutoTokenizer.from_pretrained(tiny_folder))
    (scores,) = score_finished(backend, probe, [finished])
    assert told.report["failed_checks"] == 0 and len(checks) > 12
    assert list(checks.values()) == pytest.approx([each.value for each in scores if isinstance(each, Score)], abs=1e-3)


@pytest.fixture(scope="module")
def twin(folder):
    return model.Reference(folder)


def own_probe(twin, tmp_path, count):
    """A probe with `count` random embeddings of its own, the last of which is read, and the settings that name it."""
    plain = LinearProbe.load(model.planted_probe(tmp_path / "plain.safetensors", twin, ("2.input_layernorm@3",)))
    card = replace(plain.card, safety_tokens=count, reads=(Read.parse(f"2.input_layernorm@{count - 1}"),))
    scale = float(twin.model.get_input_embeddings().weight.std())
    embeddings = np.random.default_rng(3).normal(0, scale, (count, model.WIDTH)).astype(np.float32)
    probe = LinearProbe(plain.weight, plain.bias, card, embeddings=embeddings)
    probe.save(tmp_path / "probe.safetensors")
    return probe, {"guard": {"probe": str(tmp_path / "probe.safetensors")}}


@pytest.mark.parametrize("count", [1, 3])
def test_scores_and_tokens_are_those_of_transformers(engines, folder, twin, tmp_path, count):
    """With and without a prefill, several answers at once; the tokens are those of the same engine without a guard."""
    probe, settings = own_probe(twin, tmp_path, count)
    engine = engines(folder=folder, settings=settings)
    asked = [(engine.ids(each), list(range(20, 31)) if n % 2 else []) for n, each in enumerate(PROMPTS[:6])]
    names = [
        engine.add(ids + start, guard=monitor(interval=1 + 6 * (n % 2)), max_tokens=20, ignore_eos=True)
        for n, (ids, start) in enumerate(asked)
    ]
    told = engine.run()
    bare = engine.answers([ids + start for ids, start in asked], guard={"guard": False}, max_tokens=20, ignore_eos=True)
    packed = TransformersBackend(twin.model, AutoTokenizer.from_pretrained(folder))
    for name, plain, (ids, start) in zip(names, bare, asked, strict=True):
        assert told[name].token_ids == plain.token_ids
        checks = {each["depth"]: each["score"] for each in told[name].report["timeline"]}
        finished = FinishedAnswer(Prompt(tuple(ids)), (*start, *told[name].token_ids), tuple(checks))
        (scores,) = score_finished(packed, probe, [finished])
        values = [score.value for score in scores if isinstance(score, Score)]
        assert told[name].report["failed_checks"] == 0 and len(checks) > 4
        assert list(checks.values()) == pytest.approx(values, abs=1e-3)
        assert np.ptp(list(checks.values())) > 1e-3
    engine.verified()


def test_a_prompt_with_such_an_id_is_refused(engines, folder, twin, tmp_path):
    _, settings = own_probe(twin, tmp_path, 2)
    engine = engines(folder=folder, settings=settings)
    ids = engine.ids(PROMPTS[0])
    told = engine.answer([*ids, VOCABULARY + SPARE - 1])
    report = parse_stop_reason(told.stop_reason) or {}
    assert report["reason"] == "refused" and "the guard's own" in str(report) and not told.token_ids
    assert engine.answer([*ids, VOCABULARY], guard=monitor(interval=5)).report["failed_checks"] == 0, "others pass"


REFUSED = [(4, {}, "embedding table has 259 rows"), (1, {"enforce_eager": False}, "--enforce-eager")]


@pytest.mark.parametrize(("count", "options", "why"), REFUSED)
def test_what_cannot_have_them_is_refused_at_the_start(engines, folder, twin, tmp_path, count, options, why, capfd):
    _, settings = own_probe(twin, tmp_path, count)
    with pytest.raises(Exception) as refused:
        engines(folder=folder, settings=settings, **options)
    said, error = [*capfd.readouterr()], refused.value
    while error is not None:
        said, error = [*said, str(error)], error.__cause__ or error.__context__
    assert why in " ".join(said)
