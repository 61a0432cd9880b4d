"""Let vLLM's model runner read hidden states, and take no draft of ours for one to be verified."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from anydepth.detectors import TextDetector
from anydepth.vllm.setup import Setup
from anydepth.vllm.wire import ATTRIBUTE, OPENERS, Findings, Key, Orders
from anydepth.vllm.worker.header_rows import HeaderRows
from anydepth.vllm.worker.readout import HookReadOut, ReadOut, choose, find_blocks
from anydepth.vllm.worker.step_reader import StepReader, StepValues

logger = logging.getLogger("vllm.anydepth")


class GuardedRunner:
    """Comes before vLLM's model runner in the order of its bases.

    The scheduler schedules the header as draft tokens behind a request's last token. There is no speculative
    configuration: no rejection sampler exists, and each request is sampled from the logits of its last real token, as
    without a guard. The scheduler takes the header's tokens back, and the next real token overwrites their cache slots.
    """

    anydepth: "RunnerState"

    def _setup_eagle3_aux_hidden_state_outputs(self: Any) -> None:
        """Choose how to read once the model is loaded; vLLM calls this at the end of loading."""
        state = self.anydepth
        if not state.setup.sites:
            return
        layers = self.model_config.hf_config.get_text_config(decoder=True).num_hidden_layers
        choice = state.setup.options.read_out
        compiled = not self.model_config.enforce_eager
        read_out = choose(self.get_model(), layers, state.setup.sites, choice=choice, compiled=compiled)
        state.read_out, state.reader = read_out, StepReader(state.setup, read_out, self.device)
        self.use_aux_hidden_state_outputs = read_out.name == "auxiliary hidden states"
        if self.device.type == "cpu" and not compiled:
            state.header_rows = HeaderRows(find_blocks(self.get_model(), layers), state.setup.header_sites)
            logger.info("anydepth runs the header's tokens to block %d of %d", state.header_rows.first, layers)

    def execute_model(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        """Note which states are to be read, then run the model."""
        self.anydepth.begin(getattr(scheduler_output, ATTRIBUTE, None))
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

    def sample_tokens(self: Any, grammar_output: Any) -> Any:
        """Sample as if there were no header, and put what was read beside the tokens."""
        state = self.execute_model_state
        found = None
        if state is not None:
            found = self.anydepth.finish(state.aux_hidden_states, state.logits, self.input_batch.req_id_to_index)
            if state.scheduler_output.scheduled_spec_decode_tokens:
                plain = replace(state.scheduler_output, scheduled_spec_decode_tokens={})
                self.execute_model_state = state._replace(scheduler_output=plain)
        output = super().sample_tokens(grammar_output)  # pyright: ignore[reportAttributeAccessIssue]
        if found is not None:  # only now: the sampler has waited for the device already
            setattr(output, ATTRIBUTE, self.anydepth.findings(*found))
        return output


Found = tuple[StepValues | None, list[Key], Any]
"""What a step has read, on the device: hidden states; keys and probabilities, `[keys]`, of the openers."""


class RunnerState:
    """The guard's part of a runner: the way to the states, the orders of the present step."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.read_out: ReadOut | None = None
        self.reader: StepReader | None = None
        self.header_rows: HeaderRows | None = None
        self.seconds, self.checks = 0.0, 0
        self._orders = Orders()
        self._openers: list[int] = []
        detector = None if setup.options.collects else setup.detector
        if isinstance(detector, TextDetector):
            self._openers = list(detector.opener_ids or ())

    def prove(self, run: Callable[[], object], device: Any) -> None:
        """Refuse, before the first request, a site that hooks cannot read; `run` runs the model on some token."""
        if isinstance(self.read_out, HookReadOut):
            self.read_out.prove(run, torch.zeros(1, dtype=torch.int64, device=device))

    def begin(self, orders: Orders | None) -> None:
        """Take the orders of a step; what is left of an earlier one is dropped."""
        self._orders = orders or Orders()
        if self.header_rows is not None:
            self.header_rows.end()

    def expect(self, rows: dict[str, int]) -> None:
        """Say which rows of the batch the orders mean; `rows` has the first row of each request."""
        if not self._orders or self.reader is None:
            return
        begun = time.perf_counter()
        self.reader.expect(self._orders, rows)
        self.seconds += time.perf_counter() - begun

    def leave_out(self, begins: np.ndarray, ends: np.ndarray) -> None:
        """Say which rows nothing reads behind the last site: ranges of the batch's rows, from begin to before end."""
        if self.header_rows is None:
            return
        keep = np.ones(ends[-1], dtype=bool)
        for begin, end in zip(begins, ends, strict=True):
            keep[begin:end] = False
        self.header_rows.begin(torch.from_numpy(np.flatnonzero(keep)), len(keep))

    def finish(self, aux: Any, logits: Any, index: dict[str, int]) -> Found | None:
        """What was read, not waited for, since the sampler may change the logits; None if nothing was ordered."""
        orders, self._orders = self._orders, Orders()
        if self.header_rows is not None:
            self.header_rows.end()
        if not orders:
            return None
        begun = time.perf_counter()
        openers = None
        with torch.inference_mode():
            values = None if self.reader is None else self.reader.take(aux)
            if asked := [key for key in orders.states if key[2] == OPENERS]:
                chosen = logits[[index[request] for request, *_ in asked]].float().log_softmax(-1)
                openers = chosen[:, self._openers].exp().sum(-1)
        self.seconds += time.perf_counter() - begun
        self.checks += len(orders.states) + len(self.setup.span_reads) * sum(e.size for e in orders.spans.values())
        return values, asked, openers

    def findings(self, values: StepValues | None, asked: list[Key], openers: Any) -> Findings:
        """What `finish` has read, brought to the host."""
        begun = time.perf_counter()
        findings = Findings() if values is None else values.findings()
        if asked:
            findings.states |= zip(asked, openers.tolist(), strict=True)
        self.seconds += time.perf_counter() - begun
        return findings
