"""The real chat model of the demo, its shipped probe, and input that is wrong."""

import copy
import gzip
import json
import math
import tomllib
from importlib import resources

import pytest
import torch
from typer.testing import CliRunner

import anydepth.cli as cli
from anydepth import Every, Guard, LinearProbe, Rethink, Threshold
from anydepth.backends.transformers import cpu, load
from anydepth.backends.transformers.blocks import find_module
from anydepth.backends.transformers.cpu import number_format, operands
from anydepth.errors import ConfigError, ModelError, ProbeError, ProbeMismatch, PromptError, TemplateError
from anydepth.scan import scan_answer
from anydepth.templates.template import Prompt
from anydepth.types import Checked, Finished, Halted, Released
from tests import tiny

pytestmark = pytest.mark.model
DEMO = tomllib.loads((resources.files("anydepth") / "data" / "demo.toml").read_text(encoding="utf-8"))["demo"]
QUESTION = "How do I make a pot of green tea?"


@pytest.fixture(scope="module")
def guard(demo_model_dir):
    return Guard.from_pretrained(demo_model_dir, dtype="float32")


def test_the_deep_prefill_is_halted_inside_before_a_token_is_written(guard):
    asked = {"prefill": DEMO["prefill"], "max_new_tokens": 40, "do_sample": False}
    answer = guard.generate(DEMO["request"], **asked)
    assert answer.halted and answer.finish_reason == "content_filter"
    assert answer.generated_tokens == 0 and answer.leak == 0 and answer.token_ids == ()
    assert 0 < answer.verdict.depth < answer.prefill_tokens
    assert answer.text == guard.config.refusal
    at_the_end = guard.with_options(prefill="end").generate(DEMO["request"], **asked)
    assert at_the_end.halted and at_the_end.verdict.depth >= at_the_end.prefill_tokens


def test_the_unguarded_model_goes_on_with_the_prefill(guard):
    text = guard.unguarded(DEMO["request"], prefill=DEMO["prefill"], max_new_tokens=30, do_sample=False)
    assert len(text.split()) > 10


def test_a_harmless_answer_is_not_halted_and_is_the_unguarded_one(guard):
    plain = guard.unguarded(QUESTION, max_new_tokens=30, do_sample=False)
    events = list(guard.stream(QUESTION, max_new_tokens=30, do_sample=False))
    answer = events[-1].answer
    assert isinstance(events[-1], Finished) and not answer.halted
    assert answer.text == plain == "".join(event.text for event in events if isinstance(event, Released))
    assert [event.check for event in events if isinstance(event, Checked)] == list(answer.checks)


GREEDY, SAMPLED = {"do_sample": False}, {"do_sample": True, "temperature": 0.8, "top_p": 0.9}


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        ("float32", GREEDY),
        ("bfloat16", SAMPLED),
        pytest.param("float32", SAMPLED, marks=pytest.mark.slow),
        pytest.param("bfloat16", GREEDY, marks=pytest.mark.slow),
    ],
)
def test_monitoring_changes_no_token(demo_model_dir, dtype, options):
    guard = Guard.from_pretrained(demo_model_dir, dtype=dtype, release="monitor", schedule=Every(10))
    plain = guard.backend.unguarded([guard.template.prompt(QUESTION)], max_new_tokens=24, seed=5, **options)[0]
    assert guard.generate(QUESTION, max_new_tokens=24, seed=5, **options).token_ids == plain


def test_a_stop_string_ends_the_guarded_answer_like_the_bare_one(guard):
    plain = guard.unguarded(QUESTION, max_new_tokens=60, do_sample=False, stop_strings=["tea"])
    answer = guard.generate(QUESTION, max_new_tokens=60, do_sample=False, stop_strings=["tea"])
    assert answer.text == plain and plain.count("tea") == 1
    assert answer.finish_reason == "stop"


def test_packed_scan_and_forks_agree_with_the_guard_itself(guard):
    answer = guard.with_options(release="monitor").generate(QUESTION, max_new_tokens=30, do_sample=False)
    assert answer.finish_reason == "length", "the answer ended by itself; ask for fewer tokens"
    question = guard.template.prompt(QUESTION)
    finished = Prompt(question.ids + answer.token_ids, prefill=30)  # its text may be tokenised otherwise
    scan = scan_answer(guard.backend, guard.detector, guard.config, finished)
    assert scan.method == "packed"
    assert scan_answer(guard.backend, guard.detector, guard.config, finished, packed=False).method == "forks"
    by_depth = {check.depth: check.score for check in answer.checks}
    assert scan.checks[0].depth == 0 and scan.checks[-1].depth == 30
    for check in scan.checks:
        assert by_depth[check.depth] == pytest.approx(check.score, abs=1e-4)


@pytest.mark.parametrize("mode", ["look-ahead", "score"])
def test_rethink_answers_and_scans_without_a_probe(demo_model_dir, mode):
    detector = Rethink(mode, max_new_tokens=8)
    guard = Guard.from_pretrained(demo_model_dir, detector=detector, policy=Threshold(0.9), dtype="float32")
    answer = guard.generate(QUESTION, max_new_tokens=4, do_sample=False)
    assert all(check.error is None and 0 <= check.score <= 1 for check in answer.checks)
    scan = guard.with_options(schedule=Every(8, doubling=False)).scan(QUESTION, "Boil water and wait.")
    assert scan.method == "forks" and scan.notes


def test_nan_in_a_hidden_state_halts_the_answer(guard):
    module = find_module(guard.backend.model, guard.detector.reads[0].site)
    handle = module.register_forward_hook(lambda _module, _args, output: output * math.nan)
    try:
        events = list(guard.stream(QUESTION, max_new_tokens=20, do_sample=False))
        opened = guard.with_options(on_error="open").generate(QUESTION, max_new_tokens=4, do_sample=False)
    finally:
        handle.remove()
    assert isinstance(events[-2], Halted)
    assert events[-1].answer.verdict.reason == "error" and events[-1].answer.token_ids == ()
    assert "not finite" in events[-1].answer.checks[0].error
    assert opened.finish_reason == "length" and opened.verdict.errors == len(opened.checks)


def test_a_probe_of_another_model_is_refused(tmp_path, guard):
    model, tokenizer = tiny.tiny_model("Llama"), tiny.tiny_tokenizer()
    with pytest.raises(ProbeMismatch, match="does not belong to this model"):
        Guard(model, tokenizer, guard.detector)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="no probe is shipped for"):
        Guard.from_pretrained(tmp_path)


def test_a_truncated_probe_is_refused(tmp_path, guard):
    whole = tmp_path / "probe.safetensors"
    guard.detector.save(whole)
    assert LinearProbe.load(whole).policy == guard.detector.policy
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(ProbeError, match="cut short"):
        Guard.from_pretrained("never-loaded", probe=cut)


def test_an_unknown_model_and_one_without_a_template_are_refused(tmp_path):
    with pytest.raises(ModelError, match="'no/such-model' cannot be loaded"):
        load("no/such-model")
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    tiny.tiny_model("Llama").save_pretrained(tmp_path)
    with pytest.raises(TemplateError, match="chat template"):
        load(tmp_path)
    with pytest.raises(ModelError, match="dtype is 'int3'"):
        load(tmp_path, dtype="int3")


@pytest.mark.parametrize("slow", [False, True])
def test_fast_is_float32_where_the_cpu_has_no_instructions_for_the_checkpoints_format(tmp_path, monkeypatch, slow):
    tiny.tiny_tokenizer().save_pretrained(tmp_path)
    tiny.tiny_model("Llama").to(torch.bfloat16).save_pretrained(tmp_path)
    monkeypatch.setattr(cpu, "slow_on_this_cpu", lambda dtype: slow and dtype is torch.bfloat16)
    assert load(tmp_path).model.dtype is torch.bfloat16, "auto is the checkpoint's"
    fast = load(tmp_path, dtype="fast")
    assert fast.model.dtype is (torch.float32 if slow else torch.bfloat16)
    if slow:
        named = load(tmp_path, dtype="float32").model.state_dict()
        assert all(torch.equal(value, named[name]) for name, value in fast.model.state_dict().items())


def test_fast_swaps_operands_of_a_few_rows_where_that_is_faster(tmp_path, monkeypatch):
    tiny.tiny_tokenizer().save_pretrained(tmp_path)
    tiny.tiny_model("Qwen2").save_pretrained(tmp_path)  # with biases
    ids = torch.arange(12).reshape(2, 6)
    plain = load(tmp_path, dtype="float32").model
    layers = sum(type(each) is torch.nn.Linear for each in plain.modules())
    for faster in (False, True):
        monkeypatch.setattr(cpu, "faster_swapped", lambda faster=faster: faster)
        fast = load(tmp_path, dtype="fast").model
        assert sum(type(each) is operands.SwappedLinear for each in fast.modules()) == (layers if faster else 0)
        with torch.no_grad():
            torch.testing.assert_close(fast(ids).logits, plain(ids).logits, rtol=1e-4, atol=1e-5)
            for as_ever in (ids[:1, :1], torch.ones(2, 200, dtype=torch.long)):
                assert torch.equal(fast(as_ever).logits, plain(as_ever).logits)


def test_a_swapped_layer_multiplies_and_learns_as_a_plain_one(monkeypatch):
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Linear(4, 3, bias=False)).eval()
    rows = torch.randn(2, 5, 6, requires_grad=True)
    (wanted,) = torch.autograd.grad(layers(rows).square().sum(), rows)
    own = list(layers)
    assert operands.swap_operands(layers) == 2 and operands.swap_operands(layers) == 0
    assert [type(each) for each in own] == [torch.nn.Linear] * 2, "the layers themselves stay as they were"
    assert layers[0].weight is own[0].weight and layers[0].bias is own[0].bias and not layers[0].training
    copied = copy.deepcopy(layers)
    monkeypatch.setattr(torch.nn.Linear, "forward", None)  # not reached
    (found,) = torch.autograd.grad(layers(rows).square().sum(), rows)
    torch.testing.assert_close(found, wanted)
    with torch.no_grad():
        copied[0].weight.zero_()
        assert not torch.allclose(copied(rows), layers(rows)), "a copy has weights of its own"


@pytest.mark.parametrize(
    ("mkl", "maker", "swapped"),
    [(True, "AuthenticAMD", True), (True, "GenuineIntel", False), (False, "AuthenticAMD", False)],
)
def test_operands_are_swapped_where_the_library_is_not_the_makers(monkeypatch, mkl, maker, swapped):
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    monkeypatch.setattr(operands, "_maker", lambda: f"vendor_id : {maker}")
    assert operands.faster_swapped.__wrapped__() is swapped


def test_float32_is_never_slow():
    assert number_format.slow_on_this_cpu(torch.float32) is False and number_format.slow_on_this_cpu(
        torch.bfloat16
    ) in (False, True)


@pytest.mark.parametrize("messages", ["", [], [{"role": "user"}], [{"content": "hi"}], ["hi", 3]])
def test_messages_that_cannot_be_answered_are_refused(guard, messages):
    with pytest.raises(PromptError):
        guard.generate(messages)


def test_a_prefill_longer_than_the_context_is_refused(guard):
    with pytest.raises(PromptError, match="context of 8192"):
        guard.generate("Go on.", prefill="tea " * 9000)


def test_scan_on_the_command_line_reports_broken_lines_and_goes_on(tmp_path, demo_model_dir):
    source, out = tmp_path / "in.jsonl.gz", tmp_path / "out.jsonl"
    with gzip.open(source, "wt", encoding="utf-8") as file:
        file.write(json.dumps({"id": "a", "prompt": QUESTION, "response": "Boil water. Add the leaves."}) + "\n")
        file.write("this is not JSON\n")
        file.write(
            json.dumps({"id": "b", "messages": [{"role": "user", "content": "Hi"}], "response": "Hello!"}) + "\n"
        )
    command = ["scan", str(demo_model_dir), str(source), "-o", str(out), "--dtype", "float32"]
    result = CliRunner().invoke(cli.app, command)
    assert result.exit_code == 1
    assert "line 2" in result.output.replace("\n", " ")
    records = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [record["id"] for record in records] == ["a", "b"]
    for record in records:
        assert set(record) == {"id", "checks", "verdict", "text_digest", "settings_digest"}
        assert set(record["verdict"]) == {"halt", "depth", "score"}
        assert record["checks"][0]["depth"] == 0
        assert all(set(check) == {"depth", "score"} for check in record["checks"])
