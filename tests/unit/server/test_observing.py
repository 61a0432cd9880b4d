"""Traces, logs, and turns of a guard."""

import asyncio
import json
import logging
import re
import sys

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from anydepth import Every, Guard
from anydepth.audit.trail import Audit
from anydepth.server.answer.compose import Reading
from anydepth.server.engine.engine import Job
from anydepth.server.engine.transformers_engine import TransformersEngine
from anydepth.server.service import Ask, Service
from anydepth.server.telemetry import tracing
from anydepth.server.telemetry.logs import set_up_logging
from anydepth.settings import LoggingTable, Settings
from anydepth.templates.template import Prompt
from anydepth.testing import END, ScriptedBackend, ScriptedDetector
from anydepth.types import Checked, Finished, Released

PROMPT = Prompt((257, 104, 256, 258))


def test_a_guard_uses_the_model_once_per_turn():
    """A decode or a check, and what follows from it without the model."""
    backend = ScriptedBackend(["abcd"])
    guard = Guard.from_backend(backend, ScriptedDetector({0: 0.1}), schedule=Every(2, doubling=False))
    turns = list(guard.turns([PROMPT], max_new_tokens=10))
    assert [[type(event) for _, event in turn] for turn in turns] == [
        [Checked], [], [Checked, Released], [], [Checked, Released], [], [Checked, Released, Finished],
    ]  # fmt: skip
    (session,) = backend.sessions
    assert len(session.checked) == 4 and len(session.decoded) == 3
    unfinished = guard.turns([PROMPT], max_new_tokens=10)
    next(unfinished)
    unfinished.close()
    assert backend.sessions[-1].closed


def test_spans_follow_the_conventions(monkeypatch):
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_tracer", trace.get_tracer("anydepth", tracer_provider=provider))

    async def run() -> None:
        guard = Guard.from_backend(ScriptedBackend(["hello there"]), ScriptedDetector({0: 0.1, 4: 0.9}))
        engine = TransformersEngine(guard, model="m", end_token_ids=frozenset({END}))
        await engine.start()
        service = Service(engine, Settings(), Audit(None))
        parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        ask = Ask("chat", (Job(PROMPT, guard.config, 20),), (Reading("No."),), headers={"traceparent": parent})
        assert len([piece async for piece in service.run(ask)]) > 3
        await engine.stop()

    asyncio.run(run())
    (span,) = exporter.get_finished_spans()
    assert span.name == "chat m" and span.attributes is not None
    assert span.attributes["gen_ai.operation.name"] == "chat"
    assert span.attributes["gen_ai.request.max_tokens"] == 20
    assert span.attributes["gen_ai.response.finish_reasons"] == ("content_filter",)
    assert span.attributes["anydepth.halted"] is True
    assert f"{span.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert [event.attributes["anydepth.depth"] for event in span.events] == [0, 1, 2, 4]
    assert "hello" not in span.to_json()


@pytest.fixture
def root():
    """The loggers are as they were afterwards."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)
    logging.getLogger("anydepth.driver").setLevel(logging.NOTSET)


@pytest.fixture
def marked_records():
    """Every log record carries a mark of a library, as after an import of Ray."""
    before = logging.getLogRecordFactory()

    def factory(*args, **kwargs):
        record = before(*args, **kwargs)
        record.__dict__["_library_timestamp"] = 17
        return record

    logging.setLogRecordFactory(factory)
    yield
    logging.setLogRecordFactory(before)


@pytest.mark.parametrize("terminal", [False, True])
def test_marks_of_libraries_stay_out_of_the_log(root, marked_records, capsys, monkeypatch, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    set_up_logging(LoggingTable())
    logging.getLogger("anydepth.server").error("it failed", extra={"id": "x"})
    written = capsys.readouterr().err
    assert "it failed" in written and "x" in written and "_library_timestamp" not in written


@pytest.mark.parametrize("log_text", [False, True])
def test_logs_on_a_terminal_are_plain_lines(root, capsys, monkeypatch, log_text):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    set_up_logging(LoggingTable(log_text=log_text))
    try:
        raise ValueError("what the user wrote")
    except ValueError as error:
        logging.getLogger("anydepth.server").error("it failed", exc_info=error, extra={"id": "x"})
    logging.getLogger("httpx").info("a request of the client, with its headers")
    logging.getLogger("openai").debug("the whole request")
    written = capsys.readouterr().err
    assert re.match(r"\d\d:\d\d:\d\d ERROR it failed id=x\n", written)
    assert ("wrote" in written) is log_text and "request" not in written


@pytest.mark.parametrize("log_text", [False, True])
def test_logs_are_json_and_keep_text_out(root, capsys, log_text):
    set_up_logging(LoggingTable(log_text=log_text))
    try:
        raise ValueError("what the user wrote")
    except ValueError as error:
        logging.getLogger("anydepth.server").error("it failed", exc_info=error, extra={"id": "x"})
    logging.getLogger("anydepth.driver").warning("check at depth 3 failed: %s", "what the model wrote")
    written = capsys.readouterr().err
    lines = [json.loads(line) for line in written.splitlines()]
    assert lines[0]["message"] == "it failed" and lines[0]["id"] == "x" and lines[0]["level"] == "ERROR"
    assert "ValueError" in lines[0]["exc_info"] and "test_observing.py" in lines[0]["exc_info"]
    assert ("wrote" in written) is log_text
    assert len(lines) == 1 + log_text
