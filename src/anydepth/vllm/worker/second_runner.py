"""Let vLLM's second model runner (`vllm.v1.worker.gpu`) read hidden states, and take no draft of ours for one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from anydepth.vllm.wire import ATTRIBUTE
from anydepth.vllm.worker.later_output import LaterOutput
from anydepth.vllm.worker.runner_state import RunnerState


class SecondGuardedRunner:
    """Comes before vLLM's second model runner in the order of its bases.

    That runner gives each draft a row of logits, which all go to the sampler where there is no speculative
    configuration. So it is not told of the header: it prepares a step of so many tokens and one row of logits a
    request. The tokens and the row are then put right on the device, and the header counts as rejected.
    """

    anydepth: RunnerState

    def load_model(self: Any, *args: Any, **kwargs: Any) -> None:
        """Choose how to read once the model is loaded, before it is compiled."""
        super().load_model(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        self.anydepth.set_up(self)

    def execute_model(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        """Note which states are to be read, then run the model."""
        self.anydepth.begin(getattr(scheduler_output, ATTRIBUTE, None), scheduler_output.scheduled_spec_decode_tokens)
        plain = replace(scheduler_output, scheduled_spec_decode_tokens={})
        return super().execute_model(plain, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    def prepare_inputs(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        """Put the header's tokens in, point the sampler at the last real token and the read-out at its rows."""
        headers, states = self.anydepth.headers, self.req_states
        if headers:  # behind the end of an answer, the device has counted a step that was taken back
            index = np.array([states.req_id_to_index[name] for name in headers])
            counts = torch.from_numpy(states.num_computed_tokens_np[index])
            counted = states.num_computed_tokens.gpu
            counted[torch.from_numpy(index).to(counted.device)] = counts.to(counted.device, counted.dtype)
        batch = super().prepare_inputs(  # pyright: ignore[reportAttributeAccessIssue]
            scheduler_output, *args, **kwargs
        )
        begins = batch.query_start_loc_np[: batch.num_reqs]
        self.anydepth.expect({name: int(begins[row]) for row, name in enumerate(batch.req_ids)})
        if headers:
            last = place_headers(batch, headers, states)
            self.anydepth.leave_out(last + 1, begins + batch.num_scheduled_tokens)
        return batch

    def sample(self: Any, hidden_states: Any, input_batch: Any, grammar_output: Any) -> Any:
        """Sample as if there were no header; it counts as rejected, so that its cache slots are written again."""
        output, sampled, rejected = super().sample(  # pyright: ignore[reportAttributeAccessIssue]
            hidden_states, input_batch, grammar_output
        )
        if headers := self.anydepth.headers:
            lengths = [len(headers.get(name, ())) for name in input_batch.req_ids]
            rejected = rejected + torch.tensor(lengths).to(rejected.device, rejected.dtype)
        return output, sampled, rejected

    def sample_tokens(self: Any, grammar_output: Any) -> Any:
        """Sample, and put what was read beside the tokens."""
        state, found = self.execute_model_state, None
        if state is not None:
            batch = state.input_batch
            index = {name: row for row, name in enumerate(batch.req_ids)}

            def logits() -> Any:
                return self.model.compute_logits(state.hidden_states[batch.logits_indices])

            found = self.anydepth.finish(state.aux_hidden_states, logits, index)
        output = super().sample_tokens(grammar_output)  # pyright: ignore[reportAttributeAccessIssue]
        return output if found is None else LaterOutput(output, self.anydepth, found)


def place_headers(batch: Any, headers: Mapping[str, Sequence[int]], states: Any) -> np.ndarray:
    """Put the headers behind the last real tokens of their requests, on the device.

    Args:
        batch: The `InputBatch` of a step that was prepared without drafts. Its `input_ids` and `logits_indices` are
            changed in place.
        headers: Request id -> tokens at the end of what the step computes of it.
        states: The runner's `RequestState`: the real tokens come from there, those included that the step before has
            sampled and the host does not know yet.

    Returns:
        For each request of the batch the row of the last real token, int64 `[num_reqs]`; the first row where there is
        none, in an answer that has ended: its sample is thrown away.
    """
    begins = batch.query_start_loc_np[: batch.num_reqs].astype(np.int64)
    counts = np.asarray(batch.num_scheduled_tokens, np.int64)
    lengths = np.array([len(headers.get(name, ())) for name in batch.req_ids])
    last = np.maximum(begins + counts - 1 - lengths, begins)
    rows: list[int] = []
    tokens: list[int] = []
    real: list[tuple[int, int, int]] = []
    for row in np.flatnonzero(lengths):
        name, known = batch.req_ids[row], int(counts[row] - lengths[row])
        slot = states.req_id_to_index[name]
        computed = int(states.num_computed_tokens_np[slot])
        real += [(int(begins[row]) + place, slot, computed + place) for place in range(known)]
        rows += range(int(begins[row]) + known, int(begins[row] + counts[row]))
        tokens += headers[name]
    ids, device = batch.input_ids, batch.input_ids.device
    ids.index_copy_(0, torch.tensor(rows, device=device), torch.tensor(tokens, dtype=ids.dtype, device=device))
    if real:
        places, slots, positions = torch.tensor(real, device=device).T
        ids.index_copy_(0, places, states.all_token_ids.gpu[slots, positions].to(ids.dtype))
    batch.logits_indices.copy_(torch.from_numpy(last).to(device))
    return last
