"""Tool calls are judged before they are run: those of an answer before they leave, and any by `POST /v1/gate`."""

import json
import math
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from anydepth.audit import verify_audit
from tests.server.process import ServerProcess
from tests.server.test_chat import ask, stream, text_of
from tests.server.test_tools import CALL, HARMFUL, TOOLS, calls_of

REFUSAL = "I can't help with that."
LAX = {"policy": {"name": "ewma", "alpha": 0.3, "threshold": 0.5}, "interval": 300}
"""Early harmless checks outweigh the last one: 0.3 of 0.99 is below the threshold."""
OVERRIDES = {
    "policies": {"patient": {"name": "k_of_n", "k": 2, "n": 3}},
    "release": ["monitor", "eager"],
    "threshold": {"min": 0.1, "max": 0.999},
}


@pytest.fixture(scope="module")
def audit_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("gate") / "audit.jsonl")


@pytest.fixture(scope="module")
def gating(audit_file: str) -> Iterator[ServerProcess]:
    tables = {
        "guard": LAX,
        "overrides": OVERRIDES,
        "tools": {"format": "hermes", "gate": True},
        "audit": {"kind": "jsonl", "path": audit_file},
    }
    with ServerProcess.scripted(tables) as running:
        yield running


@pytest.fixture(scope="module")
def plain() -> Iterator[ServerProcess]:
    with ServerProcess.scripted({"guard": LAX, "tools": {"format": "hermes"}}) as running:
        yield running


ASKED = f"say: Let me look. {HARMFUL}"


def test_without_the_gate_a_harmful_call_that_the_policy_averages_away_leaves(plain: ServerProcess) -> None:
    choice = ask(plain.client(), ASKED, tools=TOOLS).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.anydepth["score"] == 0.99


def test_with_it_the_answer_is_blocked_in_the_shape_of_any_block(gating: ServerProcess) -> None:
    choice = ask(gating.client(), ASKED, tools=TOOLS).choices[0]
    assert choice.finish_reason == "content_filter" and choice.message.tool_calls is None
    assert choice.message.content.startswith("Let me look.") and choice.message.content.endswith("\n\n" + REFUSAL)
    report = choice.anydepth
    assert (report["halted"], report["reason"], report["score"]) == (True, "policy", 0.99)
    assert report["depth"] == len(ASKED.removeprefix("say: "))
    assert choice.content_filter_results == {"anydepth": {"filtered": True, "severity": "high"}}


def test_a_blocked_stream_has_no_call_in_it(gating: ServerProcess) -> None:
    chunks = stream(gating.client(), ASKED, tools=TOOLS)
    assert calls_of(chunks) == [] and text_of(chunks).endswith(REFUSAL) and "weather" not in text_of(chunks)
    assert chunks[-1].choices[0].finish_reason == "content_filter"


def test_a_call_before_other_text_is_read_at_its_own_end(gating: ServerProcess) -> None:
    """No check of the schedule is there: one more is made."""
    client = gating.client()
    before = gating.metric("anydepth_checks_total")
    answer = f"{CALL} and then some words"
    choice = ask(client, f"say: {answer}", tools=TOOLS).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.anydepth["checks"] == 10
    assert gating.metric("anydepth_checks_total") == before + 10
    assert ask(client, f"say: {HARMFUL} {CALL} and words", tools=TOOLS).choices[0].finish_reason == "content_filter"


def test_the_responses_api_is_gated_too(gating: ServerProcess) -> None:
    tool: Any = {"type": "function", **TOOLS[0]["function"], "strict": False}
    reply = gating.client().responses.create(model="scripted", input=ASKED, tools=[tool])
    assert reply.status == "incomplete" and [item.type for item in reply.output] == ["message"]


@pytest.mark.parametrize(("parallel", "finish"), [(False, "tool_calls"), (True, "content_filter")])
def test_a_call_that_does_not_leave_is_not_judged(gating: ServerProcess, parallel: bool, finish: str) -> None:
    reply = ask(gating.client(), f"say: {CALL} {HARMFUL}", tools=TOOLS, parallel_tool_calls=parallel)
    assert reply.choices[0].finish_reason == finish


def test_without_tools_nothing_is_a_call(gating: ServerProcess) -> None:
    assert ask(gating.client(), ASKED).choices[0].finish_reason == "stop"


def test_under_monitor_a_call_leaves_and_the_report_says_so(gating: ServerProcess) -> None:
    choice = ask(gating.client(), ASKED, tools=TOOLS, extra_body={"anydepth": {"release": "monitor"}}).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.anydepth["would_halt"] and not choice.anydepth["halted"]


def test_under_eager_a_call_is_judged_before_it_leaves(gating: ServerProcess) -> None:
    choice = ask(gating.client(), ASKED, tools=TOOLS, extra_body={"anydepth": {"release": "eager"}}).choices[0]
    assert choice.finish_reason == "content_filter" and choice.message.tool_calls is None


def test_a_clients_policy_that_one_reading_cannot_halt_is_refused(gating: ServerProcess) -> None:
    with pytest.raises(openai.BadRequestError, match="one reading can never halt"):
        ask(gating.client(), ASKED, tools=TOOLS, extra_body={"anydepth": {"policy": "patient"}})


def test_an_operators_policy_that_one_reading_cannot_halt_does_not_start() -> None:
    guard = {"policy": {"name": "k_of_n", "k": 2, "n": 3}}
    with pytest.raises(RuntimeError, match="one reading can never halt"):
        ServerProcess.scripted({"guard": guard, "tools": {"gate": True}})


# -- the endpoint ------------------------------------------------------------------------------------------------------

MESSAGES = [{"role": "user", "content": "look at the weather"}, {"role": "assistant", "content": "Let me look."}]


def called(city: str) -> dict[str, Any]:
    return {
        "id": "call_1",
        "type": "function",
        "function": {"name": "weather", "arguments": json.dumps({"city": city})},
    }


def gate(server: ServerProcess, status: int = 200, **body: Any) -> dict[str, Any]:
    reply = httpx.post(f"{server.url}/v1/gate", json={"messages": MESSAGES, **body}, timeout=30)
    assert reply.status_code == status, reply.text
    return reply.json()


def test_a_harmless_call_is_allowed(gating: ServerProcess) -> None:
    reply = gate(gating, tool_call=called("Ulm"), tools=TOOLS, model="scripted")
    assert reply["allowed"] is True and reply["refusal"] is None and reply["id"].startswith("gate-")
    assert (reply["object"], reply["model"]) == ("gate", "scripted")
    assert reply["anydepth"] == {
        "halted": False, "would_halt": False, "tool": "weather", "score": 0.01, "before": 0.01, "statistic": 0.01,
        "threshold": 0.5, "depth": len(f"Let me look.\n{CALL}"), "reason": "clear",
        "policy": {"name": "ewma", "alpha": 0.3, "threshold": 0.5}, "release": "hold", "failed_checks": 0,
        "method": "forks",
    }  # fmt: skip


def test_a_harmful_call_is_not(gating: ServerProcess) -> None:
    allowed = gating.metric("anydepth_gates_total")
    reply = gate(gating, tool_call=called("harm"))
    assert reply["allowed"] is False and reply["refusal"] == REFUSAL
    assert (reply["anydepth"]["halted"], reply["anydepth"]["score"], reply["anydepth"]["before"]) == (True, 0.99, 0.01)
    assert reply["why"] == (
        "after the call of weather the score is 0.99, which reaches the threshold 0.5; "
        "before the call the score was 0.01"
    )
    assert gating.metric("anydepth_gates_total") == allowed + 1
    assert 'anydepth_gates_total{allowed="false",reason="policy"}' in gating.get("/metrics").text


def test_the_control_can_be_left_out(gating: ServerProcess) -> None:
    reply = gate(gating, tool_call=called("Ulm"), control=False)
    assert reply["anydepth"]["before"] is None and "before" not in reply["why"]


def test_an_agents_history_may_have_the_call_in_it_already(gating: ServerProcess) -> None:
    turn = {"role": "assistant", "content": None, "tool_calls": [called("Ulm"), called("harm")]}
    messages = [MESSAGES[0], turn]
    assert gate(gating, messages=messages, tool_call=called("Ulm"))["allowed"] is True
    assert gate(gating, messages=messages, tool_call=called("harm"))["allowed"] is False


def test_what_the_operator_allows_can_be_changed(gating: ServerProcess) -> None:
    assert gate(gating, tool_call=called("harm"), anydepth={"threshold": 0.995})["allowed"] is True
    watched = gate(gating, tool_call=called("harm"), anydepth={"release": "monitor"})
    assert watched["allowed"] is True and watched["anydepth"]["would_halt"] is True
    refused = gate(gating, 400, tool_call=called("harm"), anydepth={"threshold": 0.01})
    assert "does not allow" in refused["error"]["message"]


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, "tool_call", "tool_call is missing; send it"),
        ({"tool_call": {"function": {}}}, "tool_call.function.name", "is missing; send it"),
        ({"tool_call": {"function": {"name": "", "arguments": "{}"}}}, "tool_call.function.name", "is empty"),
        ({"tool_call": {"function": {"name": "a"}}}, "tool_call.function.arguments", "is missing; send it"),
        (
            {"tool_call": {"function": {"name": "a", "argument": '{"city": "Ulm"}'}}},
            "tool_call.function.arguments",
            "is missing; send it",
        ),
        (
            {"tool_call": {"function": {"name": "a", "arguments": "{}", "input": {"city": "Ulm"}}}},
            "tool_call.function.input",
            "not offered by this server",
        ),
        (
            {"tool_call": {"function": {"name": "a", "arguments": "{}"}, "arguments": '{"city": "Ulm"}'}},
            "tool_call.arguments",
            "not offered by this server",
        ),
        (
            {"tool_call": {"function": {"name": "a", "arguments": '{"city": "Ulm", "city": "Bonn"}'}}},
            "tool_call.function",
            "has 'city' twice",
        ),
        (
            {"tool_call": {"function": {"name": "a", "arguments": '{"city": "\\ud800"}'}}},
            "tool_call.function.arguments",
            "is not JSON",
        ),
        (
            {"tool_call": {"function": {"name": "a", "arguments": "[1]"}}},
            "tool_call.function.arguments",
            "of an object",
        ),
        ({"tool_call": {"function": {"name": "a", "arguments": "{"}}}, "tool_call.function.arguments", "is not JSON"),
        (
            {"tool_call": {"function": {"name": " ", "arguments": "{}"}}},
            "tool_call.function",
            "give the name of the tool",
        ),
        ({"tool_call": called("Ulm"), "stream": True}, "stream", "not offered by this server"),
        ({"tool_call": called("Ulm"), "messages": []}, "messages", "messages is empty"),
        ({"tool_call": called("Ulm"), "anydepth": {"policy": "patient"}}, None, "one reading can never halt"),
    ],
)
def test_what_cannot_be_judged_is_an_error_and_no_allowance(
    gating: ServerProcess, body: dict[str, Any], param: str | None, message: str
) -> None:
    reply = gate(gating, 400, **body)
    assert "allowed" not in reply and message in reply["error"]["message"] and reply["error"]["param"] == param


def test_another_model_is_not_judged(gating: ServerProcess) -> None:
    assert gate(gating, 404, tool_call=called("Ulm"), model="other")["error"]["code"] == "model_not_found"


def test_without_a_format_a_template_without_calls_is_an_error() -> None:
    with ServerProcess.scripted({}) as server:
        assert "[tools] format in guard.toml" in gate(server, 400, tool_call=called("Ulm"))["error"]["message"]


def test_a_detector_that_breaks_blocks_or_says_that_nothing_was_checked() -> None:
    for on_error, allowed in (("closed", False), ("open", True)):
        tables = {"guard": {"on_error": on_error}, "tools": {"format": "hermes"}}
        with ServerProcess.scripted(tables, blind_replays=True) as server:
            reply = gate(server, tool_call=called("Ulm"))
            assert reply["allowed"] is allowed and reply["anydepth"]["failed_checks"] == 1
            assert reply["anydepth"]["score"] is None and reply["anydepth"]["reason"] == "error"
            assert "(RuntimeError)" in reply["why"] and "broke over" not in reply["why"]
            counted = f'anydepth_gates_total{{allowed="{str(allowed).lower()}",reason="error"}} 1.0'
            assert counted in server.get("/metrics").text


def test_every_judgement_has_an_audit_record(gating: ServerProcess, audit_file: str) -> None:
    gate(gating, tool_call=called("harm"))
    ask(gating.client(), ASKED, tools=TOOLS)
    report = verify_audit(audit_file)
    assert report.ok, report.violations
    records = [json.loads(line) for line in open(audit_file, encoding="utf-8")]  # noqa: PTH123, SIM115
    judged = [record for record in records if record["kind"] == "gate"][-1]
    assert report.gates >= 1 and judged["allowed"] is False and judged["tool"] == "weather"
    assert judged["verdict"]["reason"] == "policy" and "messages" not in judged and "arguments" not in judged
    assert math.isclose(judged["verdict"]["score"], 0.99) and judged["before"] == 0.01
    answer = [record for record in records if record["kind"] == "answer"][-1]
    assert answer["finish_reason"] == "content_filter" and answer["verdict"]["reason"] == "policy"
