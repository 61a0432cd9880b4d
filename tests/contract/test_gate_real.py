"""A gate on real (tiny) models reads what a scan of the same turn reads at its end, packed and on forks."""

from typing import Any

import numpy as np
import pytest

from anydepth import Guard, LinearProbe, Rethink
from anydepth.backends.protocol import Read, Site
from anydepth.backends.transformers import TransformersBackend
from anydepth.detectors import ProbeCard
from anydepth.schedule import Listed
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
