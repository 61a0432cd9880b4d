"""The SGLang backend, against a server that speaks as SGLang does; no real one was at hand."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from anydepth import Every, Guard, LinearProbe, Rethink, Threshold
from anydepth.backends import CheckPoint, FinishedAnswer, Read, Site
from anydepth.backends.checkpoint_identity import checkpoint_folder
from anydepth.backends.sglang import SglangBackend
from anydepth.backends.sglang.served_states import ServedStates
from anydepth.backends.sglang.sglang_sampling import sampling_params
from anydepth.backends.transformers import TransformersBackend, load
from anydepth.backends.transformers.read import read
from anydepth.errors import CapabilityError, ConfigError, ModelError, ProbeMismatch, PromptError, UnsupportedModel
from tests import tiny
from tests.fake_sglang import CONTEXT, FakeSglang, Refused
from tests.vllm import model

READS = ("2.input_layernorm@3", "3.input_layernorm@3")
REQUEST = "w3 w10 w9"
GREEDY: dict[str, Any] = {"do_sample": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model.build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def probe(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> LinearProbe:
    path = tmp_path_factory.mktemp("probe") / "probe.safetensors"
    return LinearProbe.load(model.planted_probe(path, model.Reference(folder), READS))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[FakeSglang]:
    fake = FakeSglang(folder, (1, 2))
    yield fake
    fake.close()


@pytest.fixture(autouse=True)
def calm(request: pytest.FixtureRequest) -> None:
    if "server" in request.fixturenames:
        request.getfixturevalue("server").calm()


@pytest.fixture(scope="module")
def backend(server: FakeSglang, folder: Path) -> SglangBackend:
    return SglangBackend(server.url, folder)


@pytest.fixture(scope="module")
def reference(folder: Path) -> TransformersBackend:
    return load(folder)


def guarded(backend: Any, probe: LinearProbe, threshold: float = 1.0) -> Guard:
    return Guard.from_backend(backend, probe, schedule=Every(5), policy=Threshold(threshold), refusal="No.")


# -- answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefill", [None, "w20 w21 w22 w23 w24 w25 w26"])
def test_answer_and_scores_are_those_of_transformers(
    backend: SglangBackend, reference: TransformersBackend, probe: LinearProbe, prefill: str | None
) -> None:
    ours = guarded(backend, probe).generate(REQUEST, prefill=prefill, max_new_tokens=17, **GREEDY)
    theirs = guarded(reference, probe).generate(REQUEST, prefill=prefill, max_new_tokens=17, **GREEDY)
    assert ours.token_ids == theirs.token_ids and ours.finish_reason == theirs.finish_reason == "length"
    assert [check.depth for check in ours.checks] == [check.depth for check in theirs.checks]
    np.testing.assert_allclose([c.score for c in ours.checks], [c.score for c in theirs.checks], atol=1e-5)
    prompt = backend.template.prompt(REQUEST, prefill=prefill)
    assert backend.unguarded([prompt], max_new_tokens=17, **GREEDY) == [ours.token_ids]


@pytest.mark.parametrize("incremental", [False, True])
def test_both_forms_of_a_stream_are_read(
    folder: Path, reference: TransformersBackend, probe: LinearProbe, incremental: bool
) -> None:
    fake = FakeSglang(folder, (1, 2), incremental=incremental)
    session = (backend := SglangBackend(fake.url, folder)).open([backend.template.prompt(REQUEST)], max_new_tokens=9)
    got = [session.decode(4)[0] for _ in range(3)]
    assert [len(each.token_ids) for each in got] == [4, 4, 1]
    assert [each.finish_reason for each in got] == [None, None, "length"]
    (bare,) = reference.unguarded([backend.template.prompt(REQUEST)], max_new_tokens=9, **GREEDY)
    assert sum((each.token_ids for each in got), ()) == bare
    assert not fake.aborted
    fake.close()


def test_a_check_is_one_request_for_one_token_behind_the_header(
    backend: SglangBackend, server: FakeSglang, probe: LinearProbe
) -> None:
    answer = guarded(backend, probe).generate(REQUEST, max_new_tokens=7, **GREEDY)
    server_calls = [(path, body) for path, body in server.requests if path == "/v1/completions"]
    # of these, two are of the trial before the first answer
    texts = [tuple(body["prompt"][0]) for _, body in server_calls[-len(answer.checks) :]]
    prompt, header = backend.template.prompt(REQUEST).ids, backend.header.ids[:4]
    assert texts[0] == prompt[: backend.template.start_index(backend.template.prompt(REQUEST), 3) + 1]
    assert texts[-1] == (*prompt, *answer.token_ids, *header)
    assert {(body["max_tokens"], body["return_hidden_states"]) for _, body in server_calls} == {(1, "last")}


def test_a_halt_stops_and_aborts_the_request(backend: SglangBackend, server: FakeSglang, probe: LinearProbe) -> None:
    scores = {c.depth: c.score for c in guarded(backend, probe).generate(REQUEST, max_new_tokens=20, **GREEDY).checks}
    later = max((depth for depth in scores if depth), key=lambda depth: scores[depth])
    threshold = (scores[later] + max(score for depth, score in scores.items() if depth < later)) / 2
    guard = guarded(backend, probe, threshold)
    server.calm()
    server.pause_after = later
    answer = guard.generate(REQUEST, max_new_tokens=60, **GREEDY)
    (rid,) = server.written
    assert answer.finish_reason == "content_filter" and answer.verdict.depth == later
    assert server.aborted == [rid] and server.written[rid] == later


def test_what_is_halted_at_depth_0_is_never_begun(
    backend: SglangBackend, server: FakeSglang, probe: LinearProbe
) -> None:
    guard = guarded(backend, probe, 0.0)
    server.calm()
    answer = guard.generate(REQUEST, max_new_tokens=20, **GREEDY)
    assert answer.text == "No." and answer.generated_tokens == 0
    assert [path for path, _ in server.requests] == ["/v1/completions"]


def test_a_caller_that_leaves_a_stream_aborts_the_request(
    backend: SglangBackend, server: FakeSglang, probe: LinearProbe
) -> None:
    guard = guarded(backend, probe)
    server.calm()
    server.pause_after = 8
    events = guard.stream(REQUEST, max_new_tokens=60, **GREEDY)
    next(event for event in events if hasattr(event, "token_ids"))
    events.close()
    assert server.aborted == list(server.written)


def test_rows_of_a_batch_are_answers_of_their_own(
    backend: SglangBackend, reference: TransformersBackend, probe: LinearProbe
) -> None:
    requests = [REQUEST, "w40 w41", "w7"]
    alone = [guarded(reference, probe).generate(each, max_new_tokens=11, **GREEDY) for each in requests]
    batch = guarded(backend, probe).generate(requests, max_new_tokens=11, **GREEDY)
    assert [each.token_ids for each in batch] == [each.token_ids for each in alone]
    for ours, theirs in zip(batch, alone, strict=True):
        np.testing.assert_allclose([c.score for c in ours.checks], [c.score for c in theirs.checks], atol=1e-5)


def test_an_end_of_turn_is_no_part_of_the_answer(backend: SglangBackend, probe: LinearProbe) -> None:
    whole = guarded(backend, probe).generate(REQUEST, max_new_tokens=12, **GREEDY).token_ids
    place = next(n for n in range(3, 12) if whole[n] not in whole[:n])
    session = backend.open([backend.template.prompt(REQUEST)], max_new_tokens=12, eos_token_id=[2, whole[place]])
    (got,) = session.decode(12)
    assert got.token_ids == whole[: place + 1] and (got.finish_reason, got.end_tokens) == ("stop", 1)
    assert session.hidden_states([CheckPoint(0, place)], [Read.parse(READS[0])]).shape == (1, 1, model.WIDTH)


def test_a_stop_string_stays_in_the_answer(backend: SglangBackend, probe: LinearProbe) -> None:
    whole = guarded(backend, probe).generate(REQUEST, max_new_tokens=12, **GREEDY).token_ids
    text = backend.decode_text(whole[4:5])
    got = backend.open([backend.template.prompt(REQUEST)], max_new_tokens=12, stop_strings=text).decode(12)[0]
    assert got.token_ids == whole[: len(got.token_ids)] and got.token_ids[-1] == whole[4]
    assert (got.finish_reason, got.end_tokens) == ("stop", 0)


# -- failing closed ----------------------------------------------------------------------------------------------------


def changed(**values: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda choice: {**choice, **values}


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (lambda choice: {key: choice[key] for key in ("index", "text")}, "returned no hidden state"),
        (changed(hidden_states=[0.5] * model.WIDTH), r"shape \[64\], not \[128\]: 2 layers of width 64"),
        (changed(hidden_states=[[0.5] * model.WIDTH] * 2), r"shape \[2, 64\]"),
        (changed(hidden_states=[float("nan")] * 2 * model.WIDTH), "not finite"),
        (changed(hidden_states="many"), "no list of numbers"),
        (changed(index=1), "1 states for 1 texts"),
    ],
)
def test_a_state_that_cannot_be_the_models_halts(
    backend: SglangBackend, server: FakeSglang, probe: LinearProbe, tamper: Any, message: str
) -> None:
    guard = guarded(backend, probe)
    server.tamper = lambda path, reply: (
        {**reply, "choices": [tamper(each) for each in reply["choices"]]} if "choices" in reply else reply
    )
    answer = guard.generate(REQUEST, max_new_tokens=12, **GREEDY)
    assert answer.text == "No." and answer.verdict.reason == "error" and answer.generated_tokens == 0
    with pytest.raises(UnsupportedModel, match=message):
        backend.prove(probe.needs, probe.reads)


def test_a_text_that_the_server_cut_halts(backend: SglangBackend, server: FakeSglang, probe: LinearProbe) -> None:
    guard = guarded(backend, probe)
    server.tamper = lambda path, reply: {**reply, "usage": {"prompt_tokens": 3}} if "usage" in reply else reply
    answer = guard.generate(REQUEST, max_new_tokens=12, **GREEDY)
    assert answer.verdict.reason == "error" and "counts 3 tokens in texts of" in str(answer.checks[0].error)


def test_a_server_that_fails_at_a_check_halts(backend: SglangBackend, server: FakeSglang, probe: LinearProbe) -> None:
    guard = guarded(backend, probe)

    def refuse(path: str, reply: Any) -> Any:
        if path == "/v1/completions":
            raise Refused(500, {"object": "error", "message": "no memory"})
        return reply

    server.tamper = refuse
    answer = guard.generate(REQUEST, max_new_tokens=12, **GREEDY)
    assert answer.verdict.reason == "error" and "HTTP 500: no memory" in str(answer.checks[0].error)


def finishing(**finish: Any) -> Callable[[str, Any], Any]:
    return lambda path, piece: {**piece, "meta_info": {**piece["meta_info"], "finish_reason": finish}}


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (finishing(type="abort", message="out of memory", status_code=503), "out of memory"),
        (finishing(type="stop", matched="NaN happened"), "stopped the answer at 'NaN happened'"),
        (finishing(type="stop", matched=77777), "stopped the answer at 77777"),
        (lambda path, piece: {"error": {"message": "bad grammar"}}, "bad grammar"),
        (lambda path, piece: {**piece, "output_ids": None}, "no token ids"),
        (
            lambda path, piece: {**piece, "meta_info": {**piece["meta_info"], "completion_tokens": 99}},
            "99 of the answer, sent and received were",
        ),
    ],
)
def test_an_answer_that_the_server_breaks_is_an_error(
    backend: SglangBackend, server: FakeSglang, tamper: Any, message: str
) -> None:
    server.tamper = tamper
    session = backend.open([backend.template.prompt(REQUEST)], max_new_tokens=6)
    with pytest.raises(ModelError, match=message):
        session.decode(6)
    session.close()


def test_a_request_that_the_server_refuses_is_an_error_with_its_reason(backend: SglangBackend) -> None:
    with pytest.raises(ModelError, match=r"/generate: HTTP 400: invalid type: string \"last\""):
        list(backend._client.stream("/generate", {"input_ids": [1], "return_hidden_states": "last", "stream": True}))
    with pytest.raises(ModelError, match="does the server run"):
        SglangBackend("http://127.0.0.1:9", "anything")
    with pytest.raises(ConfigError, match=r"url is '127\.0\.0\.1:30000'; write it as http://HOST:PORT"):
        SglangBackend("127.0.0.1:30000", "anything")


def test_a_key_is_sent_and_its_lack_is_named(folder: Path, probe: LinearProbe) -> None:
    fake = FakeSglang(folder, (1, 2), api_key="open")
    with pytest.raises(ModelError, match="/model_info: HTTP 401: Unauthorized; pass api_key"):
        SglangBackend(fake.url, folder)
    answer = guarded(SglangBackend(fake.url, folder, api_key="open"), probe).generate(
        REQUEST, max_new_tokens=3, **GREEDY
    )
    assert answer.finish_reason == "length"
    fake.close()


def test_answers_of_several_threads_are_those_of_one(
    backend: SglangBackend, server: FakeSglang, probe: LinearProbe
) -> None:
    guard = guarded(backend, probe)
    requests = [f"w{n} w{n + 3}" for n in range(6)]
    alone = [guard.generate(each, max_new_tokens=8, **GREEDY) for each in requests]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda each: guard.generate(each, max_new_tokens=8, **GREEDY), requests))
    assert [each.token_ids for each in together] == [each.token_ids for each in alone]
    for ours, theirs in zip(together, alone, strict=True):
        np.testing.assert_allclose([c.score for c in ours.checks], [c.score for c in theirs.checks], atol=1e-6)


# -- which model, which states -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "says", "told", "error", "message"),
    [
        ((1,), {}, {"model_path": "org/other"}, ModelError, "served_path='org/other'"),
        ((1,), {}, {"model_type": "qwen2"}, ModelError, "of type 'qwen2'"),
        ((1,), {}, {"is_generation": False}, ModelError, "does not generate"),
        ((1,), {"allow_auto_truncate": True}, {}, ModelError, "without --allow-auto-truncate"),
        ((1,), {"enable_return_aux_hidden_states": False}, {}, UnsupportedModel, "--speculative-algorithm EAGLE3"),
        ((1,), {"aux_hidden_state_capture": "dflash"}, {}, UnsupportedModel, "0.5.23 or newer"),
        ((1,), {"return_aux_hidden_state_layer_ids": None}, {}, UnsupportedModel, "N the block before the probe's"),
        ((2, 1), {}, {}, UnsupportedModel, "--return-aux-hidden-state-layer-ids 1 2"),
    ],
)
def test_a_server_of_another_model_or_without_states_is_refused(
    folder: Path, layers: tuple[int, ...], says: Any, told: Any, error: type[Exception], message: str
) -> None:
    fake = FakeSglang(folder, layers, server=says, model=told)
    with pytest.raises(error, match=message):
        SglangBackend(fake.url, folder)
    fake.close()


def test_another_path_of_the_same_model_is_told(folder: Path, probe: LinearProbe) -> None:
    fake = FakeSglang(folder, (1, 2), model={"model_path": "/models/tiny"})
    assert SglangBackend(fake.url, folder, served_path="/models/tiny").identity == probe.card.model
    fake.close()


def test_a_layer_that_is_not_returned_is_named_with_the_option(
    folder: Path, probe: LinearProbe, reference: TransformersBackend
) -> None:
    fake = FakeSglang(folder, (0, 2))
    with pytest.raises(UnsupportedModel, match=r"blocks \[0, 2\], .* need \[1, 2\]; start it with .*-ids 1 2"):
        guarded(SglangBackend(fake.url, folder), probe)
    fake.close()


@pytest.mark.parametrize(
    ("reads", "error", "message"),
    [
        (["2.input_layernorm@mean25"], CapabilityError, "@mean25, a mean over answer tokens: give a probe that reads"),
        (["0.input_layernorm@3"], UnsupportedModel, "before the first block"),
        (["2.post_attention_layernorm@3"], UnsupportedModel, "is not the norm that block 2 begins with"),
        (["2.mlp@3"], UnsupportedModel, "is not the norm"),
        (["9.output@3"], UnsupportedModel, "blocks 0 to 3"),
    ],
)
def test_reads_that_cannot_be_made_are_refused_by_name(
    backend: SglangBackend, probe: LinearProbe, reads: list[str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        backend.prove(probe.needs, [Read.parse(each) for each in reads])


def test_a_detector_that_looks_ahead_is_refused(backend: SglangBackend) -> None:
    with pytest.raises(CapabilityError, match="look-ahead"):
        Guard.from_backend(backend, Rethink())


def test_a_probe_of_another_model_is_refused(backend: SglangBackend, probe: LinearProbe) -> None:
    other = replace(probe.card, model=replace(probe.card.model, fingerprint="0" * 32))
    with pytest.raises(ProbeMismatch, match="model: the probe was fitted with"):
        guarded(backend, LinearProbe(probe.weight, probe.bias, other))


@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Gemma-3", "Phi-3"])
def test_a_norm_is_applied_as_the_model_does(family: str, tmp_path: Path) -> None:
    whole = tiny.tiny_model(family)
    for parameter in whole.parameters():
        if parameter.ndim == 1:
            parameter.data.uniform_(0.5, 1.5)
    whole.save_pretrained(tmp_path)
    site, before = Site(2), Site(1, "output")
    real = read(whole, (before, site), {"input_ids": torch.tensor([[9, 10, 11, 12]]), "use_cache": False})
    with torch.device("meta"):
        skeleton = transformers.AutoModelForCausalLM.from_config(whole.config)
    states = ServedStates(skeleton, checkpoint_folder(str(tmp_path)), whole.config.hidden_size)
    found = states.states(real[before][0, -1].tolist(), (1,), (site, before))
    np.testing.assert_allclose(found[0], real[site][0, -1].detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(found[1], real[before][0, -1].detach().numpy(), atol=0)
    assert not np.allclose(found[0], found[1], atol=0.1)


def test_states_of_several_threads_are_those_of_one(folder: Path) -> None:
    with torch.device("meta"):
        skeleton = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(folder))
    states, sites = ServedStates(skeleton, folder, model.WIDTH), (Site(2), Site(1))
    values = [(np.arange(2 * model.WIDTH) * (n + 1) % 7 - 3.0).tolist() for n in range(400)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda each: states.states(each, (0, 1), sites), values))
    alone = ServedStates(skeleton, folder, model.WIDTH)
    np.testing.assert_array_equal(together, [alone.states(each, (0, 1), sites) for each in values])
    assert all(parameter.is_meta for parameter in skeleton.parameters())


def test_a_checkpoint_without_the_norms_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    with torch.device("meta"):
        skeleton = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(folder))
    with pytest.raises(UnsupportedModel, match=r"0002\.input_layernorm\.weight.* safetensors"):
        ServedStates(skeleton, tmp_path, model.WIDTH).check_site(Site(2))


# -- finished answers --------------------------------------------------------------------------------------------------


def test_finished_answers_are_read_as_transformers_reads_them(
    backend: SglangBackend, reference: TransformersBackend
) -> None:
    answers = [
        FinishedAnswer(backend.template.prompt(REQUEST), tuple(range(20, 29)), (0, 3, 9)),
        FinishedAnswer(backend.template.prompt("w5"), (30, 31), (2, 0)),
    ]
    sites = (Site(2), Site(1, "output"))
    batches = (each.read_batch(answers, sites, tokens=[-1, 3]) for each in (backend, reference))
    for ours, theirs in zip(*batches, strict=True):
        for site in sites:
            assert ours[site].shape == theirs[site].shape
            np.testing.assert_allclose(ours[site], theirs[site], atol=2e-4)


def test_header_tokens_and_the_one_before_them_are_read_in_one_request(
    backend: SglangBackend, server: FakeSglang, reference: TransformersBackend
) -> None:
    reads = [Read.parse(each) for each in ("2.input_layernorm@3", "2.input_layernorm@content", "2.input_layernorm@1")]
    prompt = backend.template.prompt(REQUEST)
    answer = prompt.ids[:4]
    points = [CheckPoint(0, 0), CheckPoint(0, len(answer))]
    found = []
    for each in (backend, reference):
        with closing(each.replay(prompt, answer)) as session:
            start = session.hidden_states(points[:1], reads)
            session.decode(len(answer))
            found.append([start, session.hidden_states(points[1:], reads)])
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)
    (_, body), *_ = reversed([each for each in server.requests if each[0] == "/v1/completions"])
    assert [len(text) for text in body["prompt"]] == [len(prompt.ids) + len(answer) + n for n in (4, 0, 2)]


def test_a_scan_needs_no_session(backend: SglangBackend, reference: TransformersBackend, probe: LinearProbe) -> None:
    answer = " ".join(f"w{n}" for n in range(20, 41))
    ours, theirs = (guarded(each, probe).scan(REQUEST, answer) for each in (backend, reference))
    np.testing.assert_allclose([c.score for c in ours.checks], [c.score for c in theirs.checks], atol=1e-5)
    assert len(ours.checks) > 5


def test_a_replayed_answer_is_given_in_windows(backend: SglangBackend) -> None:
    session = backend.replay(backend.template.prompt(REQUEST), (20, 21, 22))
    assert [session.decode(2)[0].token_ids for _ in range(2)] == [(20, 21), (22,)]
    with pytest.raises(ValueError, match="row 0 is at depth 3; it cannot be read at 2"):
        session.hidden_states([CheckPoint(0, 2)], [Read.parse(READS[0])])
    with pytest.raises(PromptError, match="empty"):
        backend.replay(backend.template.prompt(REQUEST), ())


def test_what_does_not_fit_the_servers_context_is_refused(backend: SglangBackend) -> None:
    assert backend.context_length == CONTEXT - 2
    long = backend.template.prompt(" ".join(["w1"] * CONTEXT))
    with pytest.raises(PromptError, match=f"do not fit the {CONTEXT - 2} that the server takes"):
        backend.open([long], max_new_tokens=4)
    with pytest.raises(PromptError, match="depth 1 has"):
        backend.read_batch([FinishedAnswer(long, (20,), (1,))], [Site(2)], tokens=[3])


# -- sampling ----------------------------------------------------------------------------------------------------------


def test_options_of_generate_become_sampling_parameters() -> None:
    found = sampling_params(
        {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "pad_token_id": 0, "_from_model_config": True},
        {"top_k": 0, "min_p": 0.05, "repetition_penalty": 1.1, "min_new_tokens": 3, "stop_strings": "w4",
         "num_beams": 1},
        frozenset({2}),
    )  # fmt: skip
    assert found == {
        "temperature": 0.6, "top_k": -1, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.1, "min_new_tokens": 3,
        "stop": ["w4"], "stop_token_ids": [2], "frequency_penalty": 0.0, "presence_penalty": 0.0, "ignore_eos": False,
        "n": 1,
    }  # fmt: skip
    greedy = sampling_params({"do_sample": True, "top_k": 20}, {"do_sample": False}, frozenset({2}))
    assert (greedy["temperature"], greedy["top_k"], greedy["top_p"]) == (0.0, -1, 1.0)
    assert sampling_params({}, {"do_sample": True}, frozenset())["top_k"] == 50  # as Transformers has it


@pytest.mark.parametrize(
    ("defaults", "options", "message"),
    [
        ({}, {"num_beams": 4}, "num_beams=4 cannot be asked of SGLang; pass num_beams=None. It takes do_sample"),
        ({}, {"penalty_alpha": 0.6}, "penalty_alpha=0.6"),
        ({}, {"frequency_penalty": 0.5}, "frequency_penalty=0.5"),
        ({}, {"max_length": 10}, "max_length is set by the guard"),
        ({"no_repeat_ngram_size": 3}, {}, r"no_repeat_ngram_size=3 \(the model's generation config asks for it\)"),
        ({}, {"eos_token_id": 7}, r"leaves out \[2\], .* give \[2, 7\]"),
    ],
)
def test_other_options_are_refused_by_name(defaults: Any, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sampling_params(defaults, options, frozenset({2}))


def test_an_option_of_the_generation_config_can_be_waived() -> None:
    assert sampling_params({"no_repeat_ngram_size": 3}, {"no_repeat_ngram_size": None}, frozenset())["n"] == 1


def test_a_seed_counts_where_the_server_heeds_it(backend: SglangBackend, folder: Path) -> None:
    prompts = [backend.template.prompt(REQUEST)] * 2
    with pytest.raises(ConfigError, match=r"seed is 3.*--enable-deterministic-inference"):
        backend.open(prompts, max_new_tokens=4, seed=3, do_sample=True)
    assert backend.open(prompts, max_new_tokens=4, seed=3, do_sample=False).rows == 2
    fake = FakeSglang(folder, (1, 2), server={"enable_deterministic_inference": True})
    seeded = SglangBackend(fake.url, folder)
    one, two = (seeded.open(prompts, max_new_tokens=9, seed=seed, do_sample=True).decode(9) for seed in (3, 3))
    assert one == two and one[0].token_ids != one[1].token_ids
    sent = [body["sampling_params"]["sampling_seed"] for path, body in fake.requests if path == "/generate"]
    assert sorted(sent) == [3, 3, 4, 4]
    fake.close()


def test_the_fake_server_is_told_only_what_sglang_knows(backend: SglangBackend, server: FakeSglang) -> None:
    backend.unguarded([backend.template.prompt(REQUEST)], max_new_tokens=2, do_sample=True, temperature=0.7)
    (body,) = [body for path, body in server.requests if path == "/generate"]
    assert json.loads(json.dumps(body)) == body and body["sampling_params"]["temperature"] == 0.7
