"""The header's tokens and the row that is sampled, put into a step of vLLM's second model runner, without vLLM."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch


class _AsyncModelRunnerOutput:
    """Stands for vLLM's class of that name."""


@pytest.fixture
def second_runner(monkeypatch):
    """The module, also where vLLM is not installed."""
    outputs = ModuleType("vllm.v1.outputs")
    outputs.AsyncModelRunnerOutput = _AsyncModelRunnerOutput  # pyright: ignore[reportAttributeAccessIssue]
    for name in ("vllm", "vllm.v1"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "vllm.v1.outputs", outputs)
    for name in ("later_output", "second_runner"):
        monkeypatch.delitem(sys.modules, f"anydepth.vllm.worker.{name}", raising=False)
    from anydepth.vllm.worker import second_runner

    yield second_runner
    for name in ("later_output", "second_runner"):
        sys.modules.pop(f"anydepth.vllm.worker.{name}", None)


HEADER = [90, 91, 92]


def a_step():
    """Four requests: a plain one, one with a check, one that has ended, one whose last two tokens are computed again.

    The real tokens of slot n are 10 n, 10 n + 1, ...; the step was prepared without drafts, so that the row before the
    end of each request is the one that is sampled.
    """
    counts = [1, 4, 3, 5]
    begins = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    batch = SimpleNamespace(
        req_ids=["plain", "check", "ended", "again"],
        num_reqs=4,
        num_scheduled_tokens=np.array(counts, np.int32),
        query_start_loc_np=begins,
        input_ids=torch.full((16,), 7, dtype=torch.int32),
        logits_indices=torch.from_numpy(begins[1:] - 1).to(torch.int64),
    )
    states = SimpleNamespace(
        req_id_to_index={"plain": 3, "check": 0, "ended": 2, "again": 1},
        num_computed_tokens_np=np.array([4, 5, 6, 8], np.int32),
        num_computed_tokens=SimpleNamespace(gpu=torch.tensor([4, 5, 7, 8], dtype=torch.int32)),
        all_token_ids=SimpleNamespace(gpu=torch.arange(40, dtype=torch.int32).reshape(4, 10)),
    )
    return batch, states


def test_the_header_stands_behind_the_last_real_token_which_is_the_one_that_is_sampled(second_runner):
    batch, states = a_step()
    last = second_runner.place_headers(batch, dict.fromkeys(["check", "ended", "again"], HEADER), states)
    assert batch.input_ids.tolist() == [7, 4, *HEADER, *HEADER, 15, 16, *HEADER, 7, 7, 7]
    assert batch.logits_indices.tolist() == last.tolist() == [0, 1, 5, 9]


class _Base:
    """Stands for vLLM's runner: notes what it is given."""

    def __init__(self, batch, states, state):
        self.batch, self.req_states, self.anydepth, self.seen = batch, states, state, {}

    def execute_model(self, scheduler_output, intermediate_tensors=None, dummy_run=False):
        self.seen["drafts"] = scheduler_output.scheduled_spec_decode_tokens
        return self.prepare_inputs(scheduler_output, None, None, 0)

    def prepare_inputs(self, scheduler_output, batch_req_state, batch_desc, num_active_loras):
        self.seen["computed"] = self.req_states.num_computed_tokens.gpu.tolist()
        return self.batch

    def sample(self, hidden_states, input_batch, grammar_output):
        return "output", torch.ones(4, dtype=torch.int32), torch.zeros(4, dtype=torch.int32)


def test_vllm_is_not_told_of_the_header_which_then_counts_as_rejected(second_runner):
    from dataclasses import dataclass, field

    from anydepth.vllm.worker.runner_state import RunnerState

    @dataclass
    class Step:
        scheduled_spec_decode_tokens: dict = field(default_factory=dict)

    batch, states = a_step()
    setup = SimpleNamespace(options=SimpleNamespace(collects=True), sites=(), span_reads=())
    runner_class = type("Runner", (second_runner.SecondGuardedRunner, _Base), {})
    runner = runner_class(batch, states, RunnerState(setup))
    runner.execute_model(Step({"check": HEADER, "ended": HEADER, "again": HEADER}))
    assert runner.seen == {"drafts": {}, "computed": [4, 5, 6, 8]}  # a step behind the end was taken back
    assert batch.input_ids.tolist()[:5] == [7, 4, *HEADER]
    output, sampled, rejected = runner.sample(None, batch, None)
    assert output == "output" and sampled.tolist() == [1] * 4 and rejected.tolist() == [0, 3, 3, 3]
    assert rejected.dtype == torch.int32
    runner.execute_model(Step())
    assert runner.sample(None, batch, None)[2].tolist() == [0] * 4
