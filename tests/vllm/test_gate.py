"""A gate on vLLM: the verdicts of Transformers, in one request per call, on the prefix cache."""

from typing import Any

import pytest

pytest.importorskip("vllm", reason="vllm is not installed here; docs/vllm.md says how to run these tests")

from anydepth import Guard, LinearProbe, Threshold
from anydepth.backends.protocol import sites_of
from anydepth.vllm.vllm_backend import VllmBackend
from tests.tiny import SPELLING, VOCABULARY, spelling_tokenizer
from tests.vllm.engine import DEFAULTS
from tests.vllm.model import Reference, build, planted_probe

READS = ("2.input_layernorm@2", "3.output@content", "1.input_layernorm@mean25")
CALL = {"name": "write_note", "arguments": {"text": "The tea is ready."}}
LONG = [{"role": "user", "content": "Please write down that the tea is ready, and say it to nobody. " * 3}]
SAID = [*LONG, {"role": "assistant", "content": "I write it down."}]
SHORT = [{"role": "user", "content": "Tea?"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = build(tmp_path_factory.mktemp("calling"), spare=SPELLING - VOCABULARY)
    spelling_tokenizer().save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def probe(folder, tmp_path_factory):
    return LinearProbe.load(planted_probe(tmp_path_factory.mktemp("p") / "p.safetensors", Reference(folder), READS))


@pytest.fixture(scope="module")
def guard(folder, probe):
    backend = VllmBackend(folder, sites=sites_of(probe.reads), **DEFAULTS)
    yield Guard.from_backend(backend, probe, policy=Threshold(0.5))
    del backend


@pytest.fixture
def asked(guard, monkeypatch):
    """For each request to the engine: how many tokens it has, and how many of them were cached."""
    found: list[tuple[int, int]] = []
    generate = guard.backend._llm.generate

    def generating(*args: Any, **kwargs: Any) -> Any:
        told = generate(*args, **kwargs)
        found.extend((len(each.prompt_token_ids), each.num_cached_tokens) for each in told)
        return told

    monkeypatch.setattr(guard.backend._llm, "generate", generating)
    guard.backend._llm.reset_prefix_cache()
    return found


@pytest.mark.parametrize("control", [True, False])
def test_the_verdicts_are_those_of_transformers(guard, folder, probe, control):
    other = Guard.from_pretrained(folder, probe=probe, policy=Threshold(0.5), dtype="float32")
    calls = [(each, CALL) for each in (LONG, SAID, SHORT)]
    for _ in range(2):  # the second time everything is in the prefix cache
        for mine, theirs in zip(
            guard.gate_many(calls, control=control), other.gate_many(calls, control=control), strict=True
        ):
            assert mine.score == pytest.approx(theirs.score, abs=1e-3) and mine.halt == theirs.halt
            assert mine.before == (None if theirs.before is None else pytest.approx(theirs.before, abs=1e-3))
            assert (mine.depth, mine.tool, mine.error) == (theirs.depth, "write_note", None)


@pytest.mark.parametrize(("messages", "control", "requests"), [(LONG, True, 1), (LONG, False, 1), (SAID, True, 2)])
def test_a_call_is_one_request_and_the_text_before_it_one_more(guard, asked, messages, control, requests):
    verdict = guard.gate(messages, CALL, control=control)
    assert len(asked) == requests and (verdict.before is not None) == control


def test_a_conversation_that_is_cached_is_not_run_again(guard, asked):
    block, question = DEFAULTS["block_size"], guard.template.prompt(LONG).ids
    guard.gate(LONG, CALL)
    guard.gate(LONG, {**CALL, "arguments": {"text": "The tea is gone."}})
    (tokens, cold), (_, warm) = asked
    header = guard.template.header_start(guard.template.prompt(LONG))
    assert cold == 0 and warm == (header - 1) // block * block, "all blocks before the first state that is read"
    assert warm > len(question) // 2 and tokens > len(question)
