"""Let vLLM's model runner read hidden states, and take no draft of ours for one to be verified."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from anydepth.vllm.wire import ATTRIBUTE
from anydepth.vllm.worker.later_output import AsyncModelRunnerOutput, LaterOutput
from anydepth.vllm.worker.runner_state import RunnerState


class GuardedRunner:
    """Comes before vLLM's model runner in the order of its bases.

    The scheduler schedules the header as draft tokens behind a request's last token. There is no speculative
    configuration: no rejection sampler exists, and each request is sampled from the logits of its last real token, as
    without a guard. The scheduler takes the header's tokens back, and the next real token overwrites their cache slots.
    """

    anydepth: RunnerState

    def _setup_eagle3_aux_hidden_state_outputs(self: Any) -> None:
        """Choose how to read once the model is loaded; vLLM calls this at the end of loading."""
        self.anydepth.set_up(self)

    def execute_model(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        """Note which states are to be read, then run the model."""
        self.anydepth.begin(getattr(scheduler_output, ATTRIBUTE, None), scheduler_output.scheduled_spec_decode_tokens)
        for request in self.requests.values():
            request.prev_num_draft_len = 0  # the scheduler has taken the header back already
        return super().execute_model(scheduler_output, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    def _prepare_inputs(self: Any, scheduler_output: Any, num_scheduled_tokens: np.ndarray) -> Any:
        """Point the sampler at the last real token of each request, and the read-out at its rows."""
        indices, metadata, count = super()._prepare_inputs(  # pyright: ignore[reportAttributeAccessIssue]
            scheduler_output, num_scheduled_tokens
        )
        begins = np.cumsum(num_scheduled_tokens) - num_scheduled_tokens
        rows = {request: int(begins[index]) for request, index in self.input_batch.req_id_to_index.items()}
        self.anydepth.expect(rows)
        drafts = scheduler_output.scheduled_spec_decode_tokens
        if drafts:
            lengths = [len(drafts.get(request, ())) for request in self.input_batch.req_ids]
            # an ended request runs the header alone; its sample is thrown away, its first row will do
            last = np.maximum(begins + num_scheduled_tokens - 1 - np.array(lengths), begins)
            indices = torch.from_numpy(last).to(indices.device, indices.dtype)
            self.anydepth.leave_out(last + 1, begins + num_scheduled_tokens)
        return indices, metadata, count

    def _prepare_input_ids(self: Any, scheduler_output: Any, num_reqs: int, total: int, *args: Any) -> None:
        """Have the header's tokens on the device, where vLLM expects a drafter to have put them.

        With asynchronous scheduling it fills in the tokens that the step before has sampled, and copies the others from
        the host only if some request of the step has tokens that are no drafts.
        """
        if scheduler_output.scheduled_spec_decode_tokens:
            self.input_ids.copy_to_gpu(total)
        super()._prepare_input_ids(scheduler_output, num_reqs, total, *args)  # pyright: ignore[reportAttributeAccessIssue]

    def sample_tokens(self: Any, grammar_output: Any) -> Any:
        """Sample as if there were no header, and put what was read beside the tokens."""
        state = self.execute_model_state
        found = None
        if state is not None:
            index = self.input_batch.req_id_to_index
            found = self.anydepth.finish(state.aux_hidden_states, lambda: state.logits, index)
            if state.scheduler_output.scheduled_spec_decode_tokens:
                plain = replace(state.scheduler_output, scheduled_spec_decode_tokens={})
                self.execute_model_state = state._replace(scheduler_output=plain)
        output = super().sample_tokens(grammar_output)  # pyright: ignore[reportAttributeAccessIssue]
        if found is None:
            return output
        if isinstance(output, AsyncModelRunnerOutput):  # the device still runs
            return LaterOutput(output, self.anydepth, found)
        setattr(output, ATTRIBUTE, self.anydepth.findings(found))  # only now: the sampler has waited for the device
        return output
