"""Keep track of which value of the worker's belongs to which check."""

from collections.abc import Mapping
from typing import Any

from anydepth.vllm.engine.check_requests import Child
from anydepth.vllm.engine.guarded_request import Ward
from anydepth.vllm.engine.pending_check import Inquiry
from anydepth.vllm.engine.positions import end_places
from anydepth.vllm.setup import Setup
from anydepth.vllm.wire import Findings, Orders


class Board:
    """Writes the orders of a step and hands out its findings."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._asked: list[tuple[Inquiry, int]] = []
        self._openers: list[str] = []

    def ride(self, ward: Ward) -> Inquiry:
        """The check that rides behind the last token of a request."""
        return Inquiry(ward.watch.due or 0, end_places(ward.request.num_tokens, self._setup.reads))

    def orders(
        self, output: Any, requests: Mapping[str, Any], wards: Mapping[str, Ward], children: Mapping[str, Child]
    ) -> Orders:
        """What the worker is to read in the step that vLLM has scheduled."""
        orders, self._asked, self._openers = Orders(), [], []
        for name, count in output.num_scheduled_tokens.items():
            ward, child = wards.get(name), children.get(name)
            if ward is not None:
                inquiries = [each for each in (ward.start, ward.ride) if each is not None]
            elif child is not None:
                inquiries = child.inquiries
            else:
                continue
            begin = requests[name].num_computed_tokens - count  # vLLM has counted the step's tokens already
            for inquiry in inquiries:
                for offset, read in inquiry.within(begin, count):
                    orders.reads.append((name, offset, read))
                    self._asked.append((inquiry, read))
            if child is not None and child.openers and begin + count == requests[name].num_prompt_tokens:
                orders.openers.append(name)
        self._openers = orders.openers
        return orders

    def collect(self, findings: Findings | None, children: Mapping[str, Child]) -> None:
        """Write the findings of the step into the checks they belong to; what is not there stays missing."""
        asked, self._asked = self._asked, []
        openers, self._openers = self._openers, []
        if findings is None:
            return
        for (inquiry, read), value in zip(asked, findings.reads, strict=True):
            inquiry.values[read] = value
        for name, mass in zip(openers, findings.openers, strict=True):
            if name in children:
                children[name].mass = mass
