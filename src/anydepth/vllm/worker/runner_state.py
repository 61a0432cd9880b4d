"""Keep the guard's part of a model runner: the way to the states, and the orders of the present step."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from anydepth.vllm.setup import Setup
from anydepth.vllm.wire import OPENERS, Findings, Key, Orders
from anydepth.vllm.worker.fed_rows import feed_instead
from anydepth.vllm.worker.header_rows import HeaderRows
from anydepth.vllm.worker.readout import HookReadOut, ReadOut, choose, find_blocks
from anydepth.vllm.worker.step_reader import StepReader, StepValues

logger = logging.getLogger("vllm.anydepth")

Found = tuple[StepValues | None, list[Key], Any]
"""What a step has read, on the device: hidden states; keys and probabilities, `[keys]`, of the openers."""


class RunnerState:
    """The guard's part of a runner: the way to the states, the orders of the present step.

    Attributes:
        headers: Request id -> the header that the present step computes behind its last token.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.read_out: ReadOut | None = None
        self.reader: StepReader | None = None
        self.header_rows: HeaderRows | None = None
        self.seconds, self.checks = 0.0, 0
        self.headers: Mapping[str, Sequence[int]] = {}
        self._orders = Orders()
        self._openers = [] if setup.options.collects else list(setup.openers)

    def set_up(self, runner: Any) -> None:
        """Choose how to read from the model that vLLM's runner has loaded."""
        if not self.setup.sites:
            return
        config, model = runner.model_config, runner.get_model()
        layers = config.hf_config.get_text_config(decoder=True).num_hidden_layers
        choice, compiled = self.setup.options.read_out, not config.enforce_eager
        if self.setup.embeddings is not None:
            feed_instead(model, self.setup.header_ids, self.setup.embeddings, compiled=compiled)
        self.read_out = choose(model, layers, self.setup.sites, choice=choice, compiled=compiled)
        self.reader = StepReader(self.setup, self.read_out, runner.device)
        runner.use_aux_hidden_state_outputs = self.read_out.name == "auxiliary hidden states"
        if runner.device.type == "cpu" and not compiled:
            self.header_rows = HeaderRows(find_blocks(model, layers), self.setup.header_sites)
            logger.info("anydepth runs the header's tokens to block %d of %d", self.header_rows.first, layers)

    def prove(self, run: Callable[[], object], device: Any) -> None:
        """Refuse, before the first request, a site that hooks cannot read; `run` runs the model on some token."""
        if isinstance(self.read_out, HookReadOut):
            self.read_out.prove(run, torch.zeros(1, dtype=torch.int64, device=device))

    def begin(self, orders: Orders | None, headers: Mapping[str, Sequence[int]]) -> None:
        """Take the orders and the headers of a step; what is left of an earlier one is dropped."""
        self._orders, self.headers = orders or Orders(), headers
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

    def finish(self, aux: Any, logits: Callable[[], Any], index: dict[str, int]) -> Found | None:
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
                chosen = logits()[[index[request] for request, *_ in asked]].float().log_softmax(-1)
                openers = chosen[:, self._openers].exp().sum(-1)
        self.seconds += time.perf_counter() - begun
        self.checks += len(orders.states) + len(self.setup.span_reads) * sum(e.size for e in orders.spans.values())
        return values, asked, openers

    def findings(self, found: Found) -> Findings:
        """What `finish` has read, brought to the host."""
        begun = time.perf_counter()
        values, asked, openers = found
        findings = Findings() if values is None else values.findings()
        if asked:
            findings.states |= zip(asked, openers.tolist(), strict=True)
        self.seconds += time.perf_counter() - begun
        return findings
