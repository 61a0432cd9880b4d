"""Keep what vLLM's engine tells of each answer until the front end has written it."""

import functools
import re
from collections.abc import Mapping
from typing import Any

from anydepth.extras import require
from anydepth.vllm.report_field import KEY, parse_stop_reason

Told = Mapping[str, Any]
"""What the engine says of one answer: see `backends.vllm.report`."""

Page = dict[tuple[int, int], Told]
"""What is told of one response: place of the prompt, place of the answer among its `n` -> report."""

_ID = re.compile(r"(?:chatcmpl|cmpl)-([0-9a-f]{32})(?:-(\d+))?")
"""Ids that vLLM makes of the one that the front end gave it; plain completions add the place of the prompt."""


class Ledger:
    """The pages of the responses that are being written.

    Neither vLLM's streams nor its responses with several answers have a place for the report of each answer: a stream
    leaves out an answer that was halted before its first token, a response with `n` keeps one report of them all.
    """

    def __init__(self) -> None:
        self._pages: dict[str, Page] = {}

    def open(self, name: str) -> Page:
        """The page of a response that is going to be written."""
        return self._pages.setdefault(name, {})

    def close(self, name: str) -> None:
        """Forget a response."""
        self._pages.pop(name, None)

    def note(self, request_id: str, choice: int, told: Told) -> None:
        """Write down what is told of an answer, unless nobody waits for it."""
        found = _ID.fullmatch(request_id)
        if found is not None and (page := self._pages.get(found[1])) is not None:
            page[int(found[2] or 0), choice] = told


def listen(ledger: Ledger) -> None:
    """Note what the engine tells, as vLLM's front end takes it in: before any part of the answer's end is written."""
    processor: Any = require("vllm.v1.engine.output_processor", extra="vllm").OutputProcessor
    original = processor.process_outputs

    @functools.wraps(original)
    def process_outputs(self: Any, engine_core_outputs: Any, *args: Any, **kwargs: Any) -> Any:
        for output in engine_core_outputs:
            told = (output.kv_transfer_params or {}).get(KEY) or parse_stop_reason(output.stop_reason)
            if told is not None and (state := self.request_states.get(output.request_id)) is not None:
                asked = state.parent_req or state
                ledger.note(asked.external_req_id, state.request_index, told)
        return original(self, engine_core_outputs, *args, **kwargs)

    processor.process_outputs = process_outputs
