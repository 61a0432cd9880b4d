"""Keep the engine's report of each answer until the front end has written the answer."""

import functools
import re
from collections.abc import Mapping
from typing import Any

from anydepth.patches import OUTPUTS
from anydepth.vllm.report_field import KEY, parse_stop_reason

EngineReport = Mapping[str, Any]
"""What the engine reports of one answer: `anydepth.vllm.engine.answer_report`, or a refusal."""

ResponseReports = dict[tuple[int, int], EngineReport]
"""The reports of one response, by place of the prompt and place of the answer among its `n`."""

_ID = re.compile(r"(?:chatcmpl|cmpl)-([0-9a-f]{32})(?:-(\d+))?")
"""Ids that vLLM makes of the one that the front end gave it; plain completions add the place of the prompt."""


class Reports:
    """The reports of the responses that are being written, by the id of each.

    Neither vLLM's streams nor its responses with several answers have a place for the report of each answer: a stream
    leaves out an answer that was halted before its first token, a response with `n` keeps one report of them all.
    """

    def __init__(self) -> None:
        self.responses: dict[str, ResponseReports] = {}

    def note(self, request_id: str, choice: int, told: EngineReport) -> None:
        """Keep the report of an answer, unless its response is not being written."""
        found = _ID.fullmatch(request_id)
        if found is not None and (page := self.responses.get(found[1])) is not None:
            page[int(found[2] or 0), choice] = told


def listen(reports: Reports) -> None:
    """Note reports as vLLM's front end takes them in: before any part of the answer's end is written."""
    processor: Any = OUTPUTS.check().OutputProcessor
    original = processor.process_outputs

    @functools.wraps(original)
    def process_outputs(self: Any, engine_core_outputs: Any, *args: Any, **kwargs: Any) -> Any:
        for output in engine_core_outputs:
            told = (output.kv_transfer_params or {}).get(KEY) or parse_stop_reason(output.stop_reason)
            if told is not None and (state := self.request_states.get(output.request_id)) is not None:
                asked = state.parent_req or state
                reports.note(asked.external_req_id, state.request_index, told)
        return original(self, engine_core_outputs, *args, **kwargs)

    OUTPUTS.replace(processor, "process_outputs", process_outputs)
