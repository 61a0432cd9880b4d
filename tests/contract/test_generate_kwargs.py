"""`model.generate` with one argument more: the guard's promises, in the terms of Transformers."""

import threading
from functools import cache

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer, pipeline

from anydepth import Guard
from anydepth.backends.transformers import TransformersBackend, load
from anydepth.backends.transformers.blocks import default_site
from anydepth.errors import ConfigError, PromptError
from anydepth.integrations.transformers import generate_kwargs
from anydepth.schedule import Every
from anydepth.testing import ScriptedBackend, ScriptedDetector
from anydepth.types import Score
from tests import tiny
from tests.contract.contract import Watcher
from tests.integrations.program_runs import examples
from tests.server import tiny_model

NEW = 24
END, PAD = 2, 0
REFUSAL = "w90 w91"
REFUSED = [99, 100]
"""The ids of the refusal."""
BELOW = [5, 5, *REFUSED]
"""The same below a text, behind an empty line."""


class Trips(Watcher):
    """Reads a state at every check, and halts a row at a depth."""

    def __init__(self, halts: dict[int, int], *args: object) -> None:
        super().__init__(*args)
        self.halts = halts

    def check(self, session, points):
        super().check(session, points)
        return [Score(0.9 if point.depth >= self.halts.get(point.row, 1000) else 0.1) for point in points]


class Recorder:
    """A streamer that notes what it got, and the deepest check by then."""

    def __init__(self, watcher: Watcher) -> None:
        self.columns: list[list[int]] = []
        self.depths: list[int] = []
        self.watcher, self.ended = watcher, False

    def put(self, value: torch.Tensor) -> None:
        assert not value.is_cuda and not self.ended
        self.columns.append(value.tolist())
        self.depths.append(max((point.depth for point, _ in self.watcher.seen), default=0))

    def end(self) -> None:
        self.ended = True


@pytest.fixture(scope="module")
def model():
    model = tiny.tiny_model("Llama")
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = END
    return model


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.padding_side = "left"
    return tokenizer


@cache
def backend_of(model, tokenizer) -> TransformersBackend:
    return TransformersBackend(model, tokenizer)


def guarded(model, tokenizer, halts: dict[int, int] | None = None, **options) -> tuple[Guard, Watcher]:
    backend = backend_of(model, tokenizer)
    watcher = Trips(halts or {}, default_site(backend.model), backend.header.read_index)
    options = {"schedule": Every(7, doubling=False), "refusal": REFUSAL, **options}
    return Guard.from_backend(backend, watcher, **options), watcher


def inputs_of(tokenizer, *texts: str) -> dict[str, torch.Tensor]:
    messages = [[{"role": "user", "content": text}] for text in texts]
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )


def new_ids(inputs, out) -> list[list[int]]:
    assert torch.equal(out[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    return out[:, inputs["input_ids"].shape[1] :].tolist()


class Stops(StoppingCriteria):
    """Ends a row with any of some tokens, behind which other rows go on."""

    def __call__(self, input_ids, scores, **kwargs):
        return (input_ids[:, -1] > 30) & (input_ids[:, -1] < 60)


SAMPLED = {"do_sample": True, "temperature": 1.8}
THREE = ("w1 w2 w3 w4", "w5", "w7 w8")
CALLS = {
    "greedy": {"max_new_tokens": NEW},
    "sampled": {"max_new_tokens": NEW, **SAMPLED},
    "some end early": {"max_new_tokens": NEW, **SAMPLED, "eos_token_id": [2, *range(30, 60)]},
    "a config": {"generation_config": GenerationConfig(max_new_tokens=9, do_sample=True, top_k=7)},
    "a total length": {"max_length": 40, "repetition_penalty": 1.3},
    "no length": {},
    "a criterion": {"max_new_tokens": NEW, **SAMPLED, "stopping_criteria": StoppingCriteriaList([Stops()])},
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("texts", [THREE[:1], THREE], ids=["alone", "padded batch"])
def test_an_unhalted_call_gives_what_a_plain_one_gives(model, tokenizer, call, texts):
    guard, watcher = guarded(model, tokenizer)
    inputs = {**inputs_of(tokenizer, *texts), "tokenizer": tokenizer}
    torch.manual_seed(3)
    plain = model.generate(**inputs, **CALLS[call])
    torch.manual_seed(3)
    answers = []
    out = model.generate(**inputs, **CALLS[call], **generate_kwargs(guard, answers))
    assert out.dtype == plain.dtype and torch.equal(out, plain)
    assert len(answers) == len(texts) and not any(answer.halted for answer in answers)
    assert len(watcher.seen) > len(texts)


@pytest.mark.parametrize("family", ["Gemma-3", "Jamba (hybrid)"])
def test_sliding_and_recurrent_models_too(tokenizer, family):
    model = tiny.tiny_model(family)
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = PAD, END
    inputs, call = inputs_of(tokenizer, *THREE), CALLS["some end early"]
    torch.manual_seed(3)
    plain = model.generate(**inputs, **call)
    torch.manual_seed(3)
    assert torch.equal(model.generate(**inputs, **call, **generate_kwargs(guarded(model, tokenizer)[0])), plain)


def test_an_adapter_too(tokenizer):
    model = get_peft_model(
        tiny.tiny_model("Llama"), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    guard, _ = guarded(model, tokenizer, {1: 7})
    inputs = inputs_of(tokenizer, *THREE)
    plain = new_ids(inputs, model.generate(**inputs, max_new_tokens=9))
    out = new_ids(inputs, model.generate(**inputs, max_new_tokens=9, **generate_kwargs(guard)))
    assert out[0] == plain[0] and out[1] != plain[1] and out[2] == plain[2]


def test_a_pipeline_hands_it_on(model, tokenizer):
    guard, _ = guarded(model, tokenizer, {0: 14})
    write = pipeline("text-generation", model=model, tokenizer=tokenizer)
    chats = [[{"role": "user", "content": text}] for text in THREE[:2]]
    call, answers = {"max_new_tokens": NEW, "do_sample": False, "batch_size": 2}, []
    said = [
        [each["generated_text"][-1]["content"] for (each,) in write(chats, **call, **more)]
        for more in ({}, generate_kwargs(guard, answers))
    ]
    assert said[1][0].endswith(" \n \n w90 w91") and said[0][0].startswith(said[1][0].removesuffix(" \n \n w90 w91"))
    assert said[1][1] == said[0][1] and [answer.halted for answer in answers] == [True, False]


def test_some_rows_of_the_batch_did_end_before_others(model, tokenizer):
    torch.manual_seed(3)
    plain = model.generate(**inputs_of(tokenizer, *THREE), **CALLS["some end early"])
    assert (plain[:, -1] == PAD).any() and not (plain[:, -1] == PAD).all()


def test_a_halted_answer_ends_with_the_refusal_and_an_end_of_turn(model, tokenizer):
    guard, _ = guarded(model, tokenizer, {0: 14})
    inputs, answers = inputs_of(tokenizer, "w1 w2"), []
    (plain,) = new_ids(inputs, model.generate(**inputs, max_new_tokens=NEW))
    (ids,) = new_ids(inputs, model.generate(**inputs, max_new_tokens=NEW, **generate_kwargs(guard, answers)))
    released, (answer,) = ids[:-5], answers
    assert ids[-5:] == [*BELOW, END]
    assert released == plain[: len(released)] == list(answer.token_ids) and len(released) == 7
    assert answer.finish_reason == "content_filter" and answer.verdict.depth == 14
    assert answer.text.endswith(f"\n\n{REFUSAL}")


def test_an_answer_that_is_halted_at_once_is_the_refusal_alone(model, tokenizer):
    guard, _ = guarded(model, tokenizer, {0: 0})
    inputs = inputs_of(tokenizer, "w1 w2")
    assert new_ids(inputs, model.generate(**inputs, max_new_tokens=1, **generate_kwargs(guard))) == [[*REFUSED, END]]


@pytest.mark.parametrize("sampling", [{}, SAMPLED])
def test_a_halt_in_a_batch_leaves_the_other_rows_as_they_are(model, tokenizer, sampling):
    guard, _ = guarded(model, tokenizer, {1: 14})
    inputs, answers = inputs_of(tokenizer, *THREE), []
    torch.manual_seed(3)
    plain = new_ids(inputs, model.generate(**inputs, max_new_tokens=NEW, **sampling))
    torch.manual_seed(3)
    out = new_ids(inputs, model.generate(**inputs, max_new_tokens=NEW, **sampling, **generate_kwargs(guard, answers)))
    assert out[0] == plain[0] and out[2] == plain[2]
    first = len(answers[1].token_ids)
    assert first == 7 and out[1] == [*plain[1][:7], *BELOW, END, *[PAD] * (len(plain[0]) - 12)]
    assert [answer.halted for answer in answers] == [False, True, False]


def test_a_streamer_gets_a_token_only_after_a_check_that_covers_it(model, tokenizer):
    guard, watcher = guarded(model, tokenizer, {0: 21})
    inputs, recorder = inputs_of(tokenizer, "w1 w2"), Recorder(watcher)
    out = model.generate(**inputs, max_new_tokens=NEW, streamer=recorder, **generate_kwargs(guard))
    assert recorder.columns[0] == inputs["input_ids"].tolist() and recorder.ended
    assert [column for (column,) in recorder.columns[1:]] == new_ids(inputs, out)[0]
    assert all(place < depth for place, depth in enumerate(recorder.depths[1:-5]))
    assert len(recorder.columns) == 1 + 14 + 5


def test_a_streamer_of_a_batch_gets_columns(model, tokenizer):
    guard, watcher = guarded(model, tokenizer, {2: 7})
    inputs, recorder, plain = inputs_of(tokenizer, *THREE), Recorder(watcher), Recorder(watcher)
    call = {"max_new_tokens": NEW, **SAMPLED}
    torch.manual_seed(3)
    model.generate(**inputs, **call, streamer=plain)
    torch.manual_seed(3)
    out = model.generate(**inputs, **call, streamer=recorder, **generate_kwargs(guard))
    assert torch.tensor(recorder.columns[1:]).T.tolist() == new_ids(inputs, out)
    assert [column[:2] for column in recorder.columns[1:]] == [column[:2] for column in plain.columns[1:]]


def test_the_library_s_own_streamer_reads_the_guarded_text(model, tokenizer):
    guard, _ = guarded(model, tokenizer, {0: 14})
    inputs = inputs_of(tokenizer, "w1 w2")
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60)
    options = {**inputs, "max_new_tokens": NEW, "streamer": streamer, **generate_kwargs(guard)}
    thread = threading.Thread(target=model.generate, kwargs=options)
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text.split()[-2:] == ["w90", "w91"] and len(text.split()) == 9


def test_under_eager_a_streamer_gets_tokens_before_their_check(model, tokenizer):
    guard, watcher = guarded(model, tokenizer, release="eager")
    recorder = Recorder(watcher)
    inputs = inputs_of(tokenizer, "w1 w2")
    model.generate(**inputs, max_new_tokens=NEW, streamer=recorder, **generate_kwargs(guard))
    assert any(place >= depth for place, depth in enumerate(recorder.depths[1:]))


def test_a_failed_check_halts(model, tokenizer):
    guard, watcher = guarded(model, tokenizer)
    watcher.check = lambda session, points: 1 / 0
    inputs, answers = inputs_of(tokenizer, "w1 w2"), []
    out = model.generate(**inputs, max_new_tokens=NEW, **generate_kwargs(guard, answers))
    assert new_ids(inputs, out) == [[*REFUSED, END]] and answers[0].verdict.reason == "error"


def test_a_begun_answer_in_the_prompt_is_a_prefill(model, tokenizer):
    guard, watcher = guarded(model, tokenizer)
    inputs = inputs_of(tokenizer, "w1 w2")
    begun = torch.cat([inputs["input_ids"], torch.tensor([list(range(30, 50))])], 1)
    answers = []
    call = {"input_ids": begun, "attention_mask": torch.ones_like(begun), "max_new_tokens": 5}
    out = model.generate(**call, **generate_kwargs(guard, answers))
    assert torch.equal(out, model.generate(**call))
    assert answers[0].prefill_tokens == 20 and max(point.depth for point, _ in watcher.seen) == 25


REFUSALS = [
    ({"num_beams": 2}, "num_beams=2 cannot be guarded"),
    ({"generation_config": GenerationConfig(num_beams=2)}, "num_beams=2 cannot be guarded"),
    ({"return_dict_in_generate": True}, "return_dict_in_generate=True cannot be guarded"),
    ({"use_cache": False}, "use_cache=False cannot be guarded"),
    ({"assistant_model": object()}, "assistant_model=.* cannot be guarded"),
    ({"synced_gpus": True}, "synced_gpus=True cannot be guarded"),
    ({"inputs_embeds": torch.zeros(1, 2, 32)}, "inputs_embeds cannot be guarded"),
    ({"position_ids": torch.zeros(1, 2)}, "position_ids cannot be guarded"),
    ({"tokenizer": object()}, "tokenizer is another one than the guard's"),
    ({"pixel_values": torch.zeros(1)}, "pixel_values is not an option of transformers' generate"),
    ({"max_length": 3}, "max_length is 3, and the prompt has"),
    ({"max_new_tokens": 0}, "max_new_tokens is 0"),
]


@pytest.mark.parametrize(("options", "message"), REFUSALS, ids=[next(iter(each)) for each, _ in REFUSALS])
def test_what_cannot_be_guarded_is_refused_by_name(model, tokenizer, options, message):
    guard, watcher = guarded(model, tokenizer)
    recorder = Recorder(watcher)
    with pytest.raises(ConfigError, match=message):
        model.generate(**inputs_of(tokenizer, "w1"), **options, streamer=recorder, **generate_kwargs(guard))
    assert not recorder.columns and not watcher.seen


def test_ids_that_are_no_chat_prompt_are_refused(model, tokenizer):
    guard, _ = guarded(model, tokenizer)
    with pytest.raises(PromptError, match="row 0 has no generation prompt"):
        model.generate(**tokenizer("w1 w2", return_tensors="pt"), **generate_kwargs(guard))
    inputs = inputs_of(tokenizer, *THREE)
    rows = inputs_of(tokenizer, THREE[0], THREE[1])
    rows = {name: torch.cat([each[:1], each[1:].roll(-3, 1)]) for name, each in rows.items()}
    with pytest.raises(PromptError, match="row 1 is not padded on the left"):
        model.generate(**rows, **generate_kwargs(guard))
    with pytest.raises(PromptError, match="input_ids contain the padding id 0; pass attention_mask"):
        model.generate(inputs["input_ids"], **generate_kwargs(guard))


def test_another_model_is_refused(model, tokenizer):
    guard, _ = guarded(model, tokenizer)
    other = tiny.tiny_model("Qwen2")
    with pytest.raises(ConfigError, match=r"another model object \(Qwen2ForCausalLM\)"):
        other.generate(**inputs_of(tokenizer, "w1"), **generate_kwargs(guard))
    scripted = Guard.from_backend(ScriptedBackend(["text"]), ScriptedDetector({}))
    with pytest.raises(ConfigError, match="the guard is over a ScriptedBackend"):
        generate_kwargs(scripted)


@pytest.mark.parametrize("threshold", [1.0, 0.0])
def test_the_example_of_the_page_runs(tmp_path, monkeypatch, threshold):
    folder = tiny_model.build(tmp_path / "org" / "model")
    tiny_model.probe_of(load(folder), threshold).save(tmp_path / tiny_model.PROBE)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(examples("transformers")[0], names)
    assert names["halted"] == [threshold == 0.0] * 2 and names["ids"].shape[0] == len(names["texts"]) == 2
    assert [len(answer.token_ids) for answer in names["answers"]] == [40 * int(threshold)] * 2
