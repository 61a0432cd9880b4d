"""Let vLLM's model runner read hidden states, and take no draft of ours for one to be verified."""

import logging
import time
from dataclasses import replace
from typing import Any

import numpy as np

from anydepth.backends.protocol import Site
from anydepth.detectors import TextDetector
from anydepth.extras import require
from anydepth.vllm.setup import Setup
from anydepth.vllm.wire import ATTRIBUTE, Findings, Orders
from anydepth.vllm.worker.header_rows import Curtail
from anydepth.vllm.worker.readout import ReadOut, choose, find_blocks

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
        state.read_out = choose(self.get_model(), layers, state.setup.sites, choice=choice, compiled=compiled)
        self.use_aux_hidden_state_outputs = state.read_out.name == "auxiliary hidden states"
        if self.device.type == "cpu" and not compiled:
            state.curtail = Curtail(find_blocks(self.get_model(), layers), state.setup.sites)
            logger.info("anydepth runs the header's tokens to block %d of %d", state.curtail.first, layers)
        state.load_weight(self.device)

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
        self.anydepth.expect(rows, self.device)
        drafts = scheduler_output.scheduled_spec_decode_tokens
        if drafts:
            lengths = [len(drafts.get(request, ())) for request in self.input_batch.req_ids]
            # an ended request runs the header alone; its sample is thrown away, its first row will do
            last = np.maximum(begins + num_scheduled_tokens - 1 - np.array(lengths), begins)
            torch = require("torch", extra="vllm")
            indices = torch.from_numpy(last).to(indices.device, indices.dtype)
            self.anydepth.leave_out(last + 1, begins + num_scheduled_tokens)
        return indices, metadata, count

    def sample_tokens(self: Any, grammar_output: Any) -> Any:
        """Sample as if there were no header, and put what was read beside the tokens."""
        state = self.execute_model_state
        findings = None
        if state is not None:
            findings = self.anydepth.finish(state.aux_hidden_states, state.logits, self.input_batch.req_id_to_index)
            if state.scheduler_output.scheduled_spec_decode_tokens:
                plain = replace(state.scheduler_output, scheduled_spec_decode_tokens={})
                self.execute_model_state = state._replace(scheduler_output=plain)
        output = super().sample_tokens(grammar_output)  # pyright: ignore[reportAttributeAccessIssue]
        if findings is not None:
            setattr(output, ATTRIBUTE, findings)
        return output


class RunnerState:
    """The guard's part of a runner: the probe's weight, the way to the states, the orders of the present step."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.read_out: ReadOut | None = None
        self.curtail: Curtail | None = None
        self.seconds, self.checks = 0.0, 0
        self._orders: Orders | None = None
        self._weight: Any = None
        self._places: dict[Site, list[int]] = {}
        self._openers: list[int] = []
        detector = None if setup.options.collects else setup.detector
        if isinstance(detector, TextDetector):
            self._openers = list(detector.opener_ids or ())

    def load_weight(self, device: Any) -> None:
        """Bring a linear detector's weight to the device, in float64: sums over many widths keep their digits."""
        if not self.setup.options.collects and self.setup.weight is not None:
            torch = require("torch", extra="vllm")
            self._weight = torch.from_numpy(self.setup.weight.astype(np.float64)).to(device)

    def begin(self, orders: Orders | None) -> None:
        """Take the orders of a step; what is left of an earlier one is dropped."""
        self._orders, self._places = orders, {}
        if self.curtail is not None:
            self.curtail.end()

    def expect(self, rows: dict[str, int], device: Any) -> None:
        """Say which rows of the batch the orders mean; `rows` has the first row of each request."""
        if self._orders is None or self.read_out is None:
            return
        begun = time.perf_counter()
        torch = require("torch", extra="vllm")
        wanted: dict[Site, list[int]] = {}
        for place, (request, offset, site) in enumerate(self._sited(self._orders)):
            wanted.setdefault(site, []).append(rows[request] + offset)
            self._places.setdefault(site, []).append(place)
        self.read_out.expect({site: torch.tensor(each, device=device) for site, each in wanted.items()})
        self.seconds += time.perf_counter() - begun

    def leave_out(self, begins: np.ndarray, ends: np.ndarray) -> None:
        """Name the rows that nothing reads behind the last site: ranges of batch rows, from begin to before end."""
        if self.curtail is None:
            return
        torch = require("torch", extra="vllm")
        keep = np.ones(ends[-1], dtype=bool)
        for begin, end in zip(begins, ends, strict=True):
            keep[begin:end] = False
        self.curtail.begin(torch.from_numpy(np.flatnonzero(keep)), len(keep))

    def _sited(self, orders: Orders) -> list[tuple[str, int, Site]]:
        """Reads and states as (request, offset, site), reads first."""
        reads = [(request, offset, self.setup.reads[read].site) for request, offset, read in orders.reads]
        return reads + [(request, offset, self.setup.sites[site]) for request, offset, site in orders.states]

    def finish(self, aux: Any, logits: Any, index: dict[str, int]) -> Findings | None:
        """What was read; None if nothing was wanted."""
        orders, self._orders = self._orders, None
        if self.curtail is not None:
            self.curtail.end()
        if not orders:
            return None
        begun = time.perf_counter()
        torch = require("torch", extra="vllm")
        findings = Findings()
        with torch.inference_mode():
            if self._places and self.read_out is not None:
                self._take(orders, self.read_out.take(aux), findings)
            if orders.openers:
                chosen = logits[[index[request] for request in orders.openers]].float().log_softmax(-1)
                findings.openers = chosen[:, self._openers].exp().sum(-1).tolist()
        self.seconds += time.perf_counter() - begun
        self.checks += len(orders.reads) or len(orders.openers)
        return findings

    def _take(self, orders: Orders, states: dict[Site, Any], findings: Findings) -> None:
        values: list[Any] = [None] * (len(orders.reads) + len(orders.states))
        for site, places in self._places.items():
            found = states[site]
            if self._weight is None:
                rows = found.float().cpu().numpy()
            else:
                weight = self._weight[[orders.reads[place][2] for place in places]]
                rows = (found.double() * weight).sum(-1).tolist()
            for place, value in zip(places, rows, strict=True):
                values[place] = value
        findings.reads, findings.states = values[: len(orders.reads)], values[len(orders.reads) :]
