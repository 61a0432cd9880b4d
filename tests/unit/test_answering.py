"""Answers of a guard as other programs take them."""

from typing import Any

import pytest

from anydepth import Every, Guard
from anydepth.integrations.answering import Answering
from anydepth.server.answer.compose import End
from anydepth.testing import ScriptedBackend, ScriptedDetector

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}


@pytest.mark.parametrize(("answer", "calls"), [(CALL, True), ("all is well here, and on it goes for a while", False)])
def test_a_call_does_not_leave_if_a_check_failed_though_the_guard_fails_open(answer: str, calls: bool) -> None:
    """As on the server: an agent runs a call as soon as it has it."""

    def score(_row: int, depth: int) -> Any:
        return 0.0 if depth < 30 else RuntimeError("down")

    detector = ScriptedDetector(score)
    guard = Guard.from_backend(ScriptedBackend([answer]), detector, on_error="open", schedule=Every(25))
    asked = [{"role": "user", "content": "look"}]
    tools = [{"type": "function", "function": WEATHER}]
    pieces = list(Answering(guard, "hermes").pieces(asked, tools=tools))
    assert isinstance(pieces[-1], End) and pieces[-1].answer.verdict.errors > 0
    assert pieces[-1].answer.halted is calls
    assert not any(getattr(piece, "calls", None) for piece in pieces)
