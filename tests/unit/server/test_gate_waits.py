"""A gate that asks an external guard leaves the model to others until the reply is there, and tells what it cost."""

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from anydepth import Guard
from anydepth.audit.file import JsonlFile
from anydepth.audit.trail import Audit
from anydepth.detectors import Cascade, ExternalGuard
from anydepth.server.engine.engine import Job
from anydepth.server.engine.transformers_engine import TransformersEngine
from anydepth.server.http.app import build_app
from anydepth.server.service import Service
from anydepth.settings import parse_settings
from anydepth.templates.call_formats import choose_format
from anydepth.testing import END, ScriptedBackend, ScriptedDetector
from anydepth.types import Checked, Finished, GateVerdict
from tests.fake_guard import FakeGuard

CALL = {"name": "delete", "arguments": {"table": "old"}}
TURN = '<tool_call>\n{"name": "delete", "arguments": {"table": "old"}}\n</tool_call>'


@pytest.fixture
def endpoint() -> Iterator[FakeGuard]:
    found = FakeGuard()
    yield found
    found.close()


def guard_of(endpoint: FakeGuard, scores: dict[int, float], *texts: str) -> Guard:
    """A guard whose endpoint is asked where the scripted score is 0.5."""
    external = ExternalGuard(endpoint.url, "g", retries=0, timeout=30)
    cascade = Cascade(ScriptedDetector(scores), external, 0.2, 0.8)
    return Guard.from_backend(ScriptedBackend(texts or ["hello there"]), cascade)


def engine_of(guard: Guard) -> TransformersEngine:
    return TransformersEngine(guard, model="m", end_token_ids=frozenset({END}))


async def answer(engine: TransformersEngine, **options: Any) -> list[Any]:
    job = Job(engine.facts.template.prompt("hi"), engine.facts.guard, 20, **options)
    return [event async for event in engine.submit(job)]


async def test_another_request_is_finished_while_a_gate_waits_for_the_endpoint(endpoint: FakeGuard) -> None:
    engine = engine_of(guard_of(endpoint, {0: 0.1, len(TURN): 0.5}))
    endpoint.verdict = lambda text: "unsafe"
    asked, replies = endpoint.held()
    call = engine.facts.template.call_prompt("tidy up", CALL, written=choose_format("hermes", ""))
    gate = asyncio.create_task(engine.gate(call, engine.facts.guard))
    assert await asyncio.to_thread(asked.wait, 30)
    assert isinstance((await answer(engine))[-1], Finished) and not gate.done()
    replies.set()
    verdict = await gate
    assert verdict.halt and verdict.reason == "policy" and [check.depth for check in verdict.checks] == [0, len(TURN)]
    await engine.stop()


async def test_another_request_is_finished_while_the_gate_of_an_answer_waits(endpoint: FakeGuard) -> None:
    engine = engine_of(guard_of(endpoint, {0: 0.1, 3: 0.5, 4: 0.1}))
    asked, replies = endpoint.held()
    gated = asyncio.create_task(answer(engine, call_ends=lambda ids: [3]))
    assert await asyncio.to_thread(asked.wait, 30)
    assert isinstance((await answer(engine))[-1], Finished) and not gated.done()
    replies.set()
    events = await gated
    assert not events[-1].answer.halted and events[-1].answer.text == "hello there"
    (check,) = [e.check for e in events if isinstance(e, Checked) and e.check.depth == 3]
    assert [stage.name for stage in check.stages] == ["scripted", "external"]
    await engine.stop()


@pytest.mark.parametrize(("verdict", "halted"), [("safe", False), ("unsafe", True)])
def test_a_batch_whose_gates_wait_goes_on_with_the_replies(endpoint: FakeGuard, verdict: str, halted: bool) -> None:
    guard = guard_of(endpoint, {0: 0.1, 3: 0.5, 4: 0.1}, "hello there", "good day")
    endpoint.verdict = lambda text: verdict
    prompts = [guard.template.prompt("one"), guard.template.prompt("two")]
    turns = guard.turns(prompts, max_new_tokens=20, call_ends=lambda ids: [3])
    ended = [event.answer for turn in turns for _, event in turn if isinstance(event, Finished)]
    assert [answer.halted for answer in ended] == [halted, halted] and len(endpoint.asked) == 2


def test_the_calls_of_a_batch_are_asked_about_together(endpoint: FakeGuard) -> None:
    guard = guard_of(endpoint, {0: 0.1, len(TURN): 0.5})
    both = threading.Barrier(2, timeout=30)
    endpoint.before = both.wait
    other = {"name": "delete", "arguments": {"table": "new"}}
    found = guard.gate_many([("tidy up", CALL), ("tidy up", other)], format="hermes")
    assert [each.halt for each in found] == [False, False], "each request waited for the other to be made"


@pytest.mark.parametrize("on_error", ["closed", "open"])
def test_an_endpoint_that_fails_is_told_in_the_verdict(endpoint: FakeGuard, on_error: str) -> None:
    guard = guard_of(endpoint, {0: 0.1, len(TURN): 0.5}).with_options(on_error=on_error)
    endpoint.verdict = lambda text: (503, {"error": {"message": "out of order"}})
    found = guard.gate("tidy up", CALL, format="hermes")
    assert (found.halt, found.reason) == (on_error == "closed", "error") and "503" in (found.error or "")
    stages = found.stages or {}
    assert {name: (sums["checks"], sums["decided"]) for name, sums in stages.items()} == {
        "scripted": (2, 1),
        "external": (1, 0),
    }


def test_what_the_stages_of_a_gate_did_is_in_its_verdict(endpoint: FakeGuard) -> None:
    found = guard_of(endpoint, {0: 0.1, len(TURN): 0.5}).gate("tidy up", CALL, format="hermes")
    assert isinstance(found, GateVerdict) and found.stages is not None
    assert found.stages["external"]["prompt_tokens"] == 100 and found.stages["external"]["requests"] == 1
    alone = Guard.from_backend(ScriptedBackend(["x"]), ScriptedDetector({0: 0.1})).gate("a", CALL, format="hermes")
    assert alone.stages is None and len(alone.checks) == 2


async def asked_over_http(guard: Guard, path: Path, **tables: Any) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """Ask `/v1/gate` about the call: the reply, the metrics and the audit record."""
    audit = Audit(JsonlFile(path, 10**6, 2))
    service = Service(engine_of(guard), parse_settings({"tools": {"format": "hermes"}, **tables}), audit)
    await service.engine.start()
    transport = httpx.ASGITransport(build_app(service, []))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        function = {"name": CALL["name"], "arguments": json.dumps(CALL["arguments"])}
        body = {"messages": [{"role": "user", "content": "tidy up"}], "tool_call": {"function": function}}
        reply = await client.post("/v1/gate", json=body)
        metrics = (await client.get("/metrics")).text
    await service.engine.stop()
    audit.close()
    return reply.json(), metrics, json.loads(path.read_text("utf-8").splitlines()[-1])


async def test_the_stages_of_a_gate_are_counted_and_recorded(endpoint: FakeGuard, tmp_path: Path) -> None:
    guard = guard_of(endpoint, {0: 0.1, len(TURN): 0.5})
    reply, metrics, record = await asked_over_http(guard, tmp_path / "audit.jsonl")
    assert reply["allowed"] is True and record["kind"] == "gate"
    assert record["stages"]["scripted"]["checks"] == 2 and record["stages"]["external"]["requests"] == 1
    assert 'anydepth_stage_checks_total{outcome="decided",stage="external"} 1.0' in metrics
    assert 'anydepth_stage_checks_total{outcome="passed_on",stage="scripted"} 1.0' in metrics
    assert 'anydepth_stage_tokens_total{kind="prompt",stage="external"} 100.0' in metrics
    assert 'anydepth_gates_total{allowed="true",reason="clear"} 1.0' in metrics


@pytest.mark.parametrize(("on_error", "allowed"), [("closed", "false"), ("open", "true")])
async def test_a_gate_that_failed_is_counted_as_such(
    endpoint: FakeGuard, tmp_path: Path, on_error: str, allowed: str
) -> None:
    guard = guard_of(endpoint, {0: 0.1, len(TURN): 0.5}).with_options(on_error=on_error)
    endpoint.verdict = lambda text: (503, {"error": {"message": "out of order"}})
    reply, metrics, record = await asked_over_http(guard, tmp_path / "audit.jsonl")
    assert str(reply["allowed"]).lower() == allowed and reply["anydepth"]["reason"] == "error"
    assert record["verdict"] | {"depth": 0} == {
        "halt": on_error == "closed", "depth": 0, "score": None, "reason": "error",
    }  # fmt: skip
    assert record["error"] and record["stages"]["external"]["decided"] == 0
    assert f'anydepth_gates_total{{allowed="{allowed}",reason="error"}} 1.0' in metrics
    assert 'anydepth_stage_checks_total{outcome="failed",stage="external"} 1.0' in metrics
