"""A gate on real (tiny) models reads what a scan of the same turn reads at its end, packed and on forks."""

from typing import Any

import numpy as np
import pytest

from anydepth import Guard, LinearProbe, Rethink
from anydepth.backends.protocol import Read, Site
from anydepth.backends.transformers import TransformersBackend
from anydepth.detectors import ProbeCard
from anydepth.schedule import Listed
from anydepth.types import Finished
from tests.contract.test_kept_texts import fed_to
from tests.tiny import SPELLING, spelling_tokenizer, tiny_model
from tests.unit.test_proposed_call import CALL, QWEN, WRITTEN, said


def backend_of(family: str) -> TransformersBackend:
    tokenizer = spelling_tokenizer()
    tokenizer.chat_template = QWEN
    return TransformersBackend(tiny_model(family, SPELLING), tokenizer)


@pytest.mark.parametrize(("family", "method"), [("Llama", "packed"), ("Mamba-2", "forks")])
def test_a_gate_reads_the_end_of_the_turn_as_a_scan_does(family: str, method: str) -> None:
    backend = backend_of(family)
    site, width = Site(2, "output"), backend.identity.hidden_size
    card = ProbeCard(backend.identity, backend.header.ids, (Read(site, backend.header.read_index),))
    probe = LinearProbe(np.random.default_rng(0).normal(size=width) / width, 0.0, card)
    guard = Guard.from_backend(backend, probe)
    found = guard.gate(said("Let me look."), CALL)
    scanned = guard.with_options(schedule=Listed((len("Let me look."),))).scan(said("")[:1], f"Let me look.\n{WRITTEN}")
    by_depth = {check.depth: check.score for check in scanned.checks}
    assert found.method == method and found.depth == len(
        f"Let me look.\n{WRITTEN}".replace("<tool_call>", "1").replace("</tool_call>", "2")
    )
    assert found.score == pytest.approx(by_depth[found.depth], abs=1e-5)
    assert found.before == pytest.approx(by_depth[len("Let me look.")], abs=1e-5)
    assert found.before != pytest.approx(found.score, abs=1e-4), "the call changes the reading"


def test_a_look_ahead_is_made_after_the_call() -> None:
    guard = Guard.from_backend(backend_of("Llama"), Rethink())
    found: Any = guard.gate(said(""), CALL)
    assert found.score in (0.0, 1.0) and found.detail and found.method == "forks"


def test_a_gate_goes_on_from_the_answer_that_proposed_the_call() -> None:
    backend = backend_of("Llama")
    guard = Guard.from_backend(backend, never_halts(backend))
    guard.generate(said(""), max_new_tokens=4, do_sample=False)
    with fed_to(backend) as fed:
        found = guard.gate(said(""), CALL, control=False)
    call = backend.template.call_prompt(said(""), CALL)
    assert found.reason == "clear" and len(fed) == 1
    assert fed[0] < call.prompt.prefill + len(backend.header.ids), "the conversation is not run again"
    backend.kept.clear()
    assert guard.gate(said(""), CALL, control=False).score == pytest.approx(found.score, abs=1e-5)


def test_the_calls_of_an_answer_are_read_on_its_own_cache() -> None:
    backend = backend_of("Llama")
    guard = Guard.from_backend(backend, never_halts(backend))
    prompt = backend.template.prompt(said(""))
    with fed_to(backend) as fed:
        turns = guard.turns(
            [prompt], max_new_tokens=12, whole=True, call_ends=lambda _: (7,), has_calls=lambda _: True, do_sample=False
        )
        (finished,) = [event for turn in turns for _, event in turn if isinstance(event, Finished)]
    assert finished.answer.finish_reason == "length"
    header = backend.header.read_index + 1
    assert fed[-1] == header, "depth 7 was not scheduled; the header is read on the cache, taken back to it"
    assert sum(each == len(prompt.ids) for each in fed) == 1


def never_halts(backend: TransformersBackend) -> LinearProbe:
    card = ProbeCard(backend.identity, backend.header.ids, (Read(Site(2, "output"), backend.header.read_index),))
    return LinearProbe(np.zeros(backend.identity.hidden_size, np.float32), -3.0, card)
