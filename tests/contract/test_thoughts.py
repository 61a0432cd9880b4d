"""Thoughts are checked at the depths of the answer, behind a header in the open thought, on a real tiny model."""

from typing import Any

import numpy as np
import pytest
import torch

from anydepth import Every, Guard, Threshold
from anydepth.backends.transformers import TransformersBackend
from anydepth.detectors import LinearProbe
from anydepth.scan import scan_answer
from anydepth.server.answer.segments import begins_thinking
from anydepth.templates.template import Prompt
from tests import tiny
from tests.evaluations import random_probe
from tests.unit.test_template import HARMONY, OPENED, THINK

TOKENS = 30
DEPTHS = [1, 2, 4, 5, 10, 15, 20, 25, 30]
"""Where the schedule of the tests checks, in tokens behind the prefill."""
OPENERS = {"think": "<think>\n", "opened": "<think>\n", "harmony": "<|channel|>analysis<|message|>"}
TEMPLATES = {"think": THINK, "opened": OPENED, "harmony": HARMONY}


def backend_of(kind: str) -> TransformersBackend:
    """A tiny random model with a template that sets thoughts apart; it never ends its turn."""
    tokenizer = tiny.spelling_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|Assistant|>", "<|start|>", "<|end|>", "<think>"]})
    tokenizer.chat_template = TEMPLATES[kind]
    model = tiny.tiny_model("Llama", len(tokenizer))
    model.generation_config.eos_token_id = None
    return TransformersBackend(model, tokenizer)


def score_of(backend: TransformersBackend, probe: LinearProbe, ids: tuple[int, ...]) -> float:
    """The probe's score of a text with the header behind it, by one forward pass over all of it."""
    header, (read,) = backend.header, probe.reads
    with torch.no_grad():
        output = backend.model(torch.tensor([[*ids, *header.ids]]), output_hidden_states=True)
    before = output.hidden_states[read.site.block]
    state = (
        backend.model.model.layers[read.site.block].input_layernorm(before)[0, len(ids) + header.read_index].detach()
    )
    weight = np.frombuffer(probe.numbers, np.float32)[: state.shape[0]]
    return float(1 / (1 + np.exp(-(state.numpy() @ weight))))


@pytest.mark.parametrize("kind", OPENERS)
def test_an_open_thought_is_read_at_every_depth(kind: str) -> None:
    backend = backend_of(kind)
    probe = random_probe(backend, 2)
    guard = Guard.from_backend(backend, probe, schedule=Every(5), policy=Threshold(1.0))
    prompt = backend.template.prompt("hi", prefill=OPENERS[kind])
    assert begins_thinking(backend.template, prompt)
    begun = prompt.prefill
    answer = guard.generate("hi", prefill=OPENERS[kind], max_new_tokens=TOKENS)
    text = backend.tokenizer.decode([*prompt.ids, *answer.token_ids], skip_special_tokens=False)
    assert not answer.halted and "</think>" not in text, "the whole answer is one open thought"
    found = {check.depth - begun: check.score for check in answer.checks if check.depth > begun}
    assert list(found) == DEPTHS
    for depth, score in found.items():
        ids = (*prompt.ids, *answer.token_ids[:depth])
        assert score == pytest.approx(score_of(backend, probe, ids), abs=1e-4), depth


def halting_in_the_thought(backend: TransformersBackend) -> tuple[Guard, int]:
    """A guard whose first score above its threshold is well inside the thought, and that depth."""
    for seed in range(60):
        guard = Guard.from_backend(backend, random_probe(backend, seed), schedule=Every(5), policy=Threshold(1.0))
        checks = guard.generate("hi", prefill="<think>\n", max_new_tokens=TOKENS).checks
        late = [check for check in checks if check.depth >= 20]
        first = max(late, key=lambda check: check.score)
        early = max(check.score for check in checks if check.depth < first.depth)
        if first.score > early + 1e-3:
            return guard.with_options(policy=Threshold((first.score + early) / 2)), first.depth
    raise AssertionError("no random direction stands out late in the thought; draw more")


@pytest.mark.parametrize("release", ["hold", "monitor"])
def test_a_halt_in_a_thought_is_a_halt_of_the_answer(release: Any) -> None:
    guard, depth = halting_in_the_thought(backend_of("opened"))
    answer = guard.with_options(release=release).generate("hi", prefill="<think>\n", max_new_tokens=TOKENS)
    assert answer.verdict.halt and answer.verdict.depth == depth
    if release == "hold":
        assert answer.halted and len(answer.token_ids) <= depth - 1, "the window of the halt stays inside"
    else:
        assert not answer.halted and len(answer.token_ids) == TOKENS


def test_a_scan_reads_a_finished_thought_as_the_guard_read_it() -> None:
    guard, depth = halting_in_the_thought(backend_of("think"))
    live = guard.with_options(release="monitor").generate("hi", prefill="<think>\n", max_new_tokens=TOKENS)
    prompt = guard.template.prompt("hi", prefill="<think>\n")
    whole = Prompt((*prompt.ids, *live.token_ids), prompt.prefill + len(live.token_ids))
    scanned = {
        check.depth: check.score for check in scan_answer(guard.backend, guard.detector, guard.config, whole).checks
    }
    both = {check.depth: check.score for check in live.checks if check.depth in scanned}
    assert {0, 1, 2, depth} <= set(both)
    assert both == pytest.approx({each: scanned[each] for each in both}, abs=1e-4)
