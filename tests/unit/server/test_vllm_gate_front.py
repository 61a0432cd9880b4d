"""`POST /v1/gate` before vLLM: what the engine is asked, and what a client reads, over a scripted application."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from anydepth.audit.trail import AuditError
from anydepth.config import GuardConfig
from anydepth.policy import Threshold
from anydepth.templates.call_formats import choose_format
from anydepth.templates.template import ChatTemplate
from anydepth.types import Score
from anydepth.vllm.engine.gate_feed import GateFeed
from anydepth.vllm.front.middleware import GuardFront
from anydepth.vllm.front.reports import Reports
from anydepth.vllm.gate_question import GateQuestion
from anydepth.vllm.report_field import refusal_report
from tests.tiny import CHATML, spelling_tokenizer

MESSAGES = [{"role": "user", "content": "Tea?"}, {"role": "assistant", "content": "I write it down."}]
CALL = {"type": "function", "function": {"name": "write_note", "arguments": '{"text": "tea"}'}}
ASK = {"messages": MESSAGES, "tool_call": CALL}


class Engine:
    """vLLM with an engine that judges what it is asked: `scores` by depth, in their order."""

    def __init__(self, folder: Any, *, template: str | None = None, **settings: Any) -> None:
        tokenizer = spelling_tokenizer()
        if template is not None:
            tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
        self.template, self.reports = ChatTemplate(tokenizer), Reports()
        self.bodies: list[dict[str, Any]] = []
        self.scores: list[Any] = [Score(0.1), Score(0.9)]
        self.guard = GuardConfig(policy=Threshold(0.5), refusal="No.")
        self.told: dict[str, Any] | None = None
        self.failure: Exception | None = None
        self.response = JSONResponse({"object": "text_completion", "choices": [{"index": 0, "text": ""}]})
        self.app = Starlette(routes=[Route("/v1/completions", self.complete, methods=["POST"])])
        model = SimpleNamespace(
            tokenizer=str(folder),
            tokenizer_revision=None,
            trust_remote_code=False,
            skip_tokenizer_init=False,
            model="m",
        )
        additional = {"anydepth": {"settings": settings}}
        self.app.state.vllm_config = SimpleNamespace(additional_config=additional, model_config=model)
        self.app.add_middleware(GuardFront, reports=self.reports)
        self.client = TestClient(self.app, raise_server_exceptions=False)

    def post(self, body: Any = None, **headers: str) -> Any:
        return self.client.post("/v1/gate", json=ASK if body is None else body, headers=headers)

    def gate(self, status: int = 200, **changes: Any) -> dict[str, Any]:
        response = self.post({**ASK, **changes})
        assert response.status_code == status, response.text
        return response.json()

    @property
    def asked(self) -> dict[str, Any]:
        return json.loads(self.bodies[-1]["vllm_xargs"]["anydepth"])

    async def complete(self, request: Request) -> Response:
        self.bodies.append(await request.json())
        told = self.judge() if self.told is None else self.told
        if told:
            self.reports.note(f"cmpl-{request.headers['x-request-id']}-0", 0, told)
        return self.response

    def judge(self) -> dict[str, Any]:
        question = GateQuestion.read(self.asked["gate"])

        def store(verdict: Any) -> None:
            if self.failure is not None:
                raise self.failure

        feed = GateFeed(self.guard, question.call(self.bodies[-1]["prompt"]), question.control, "served", store)
        feed.begin({})
        for depth, score in zip(feed.depths, self.scores[-len(feed.depths) :], strict=True):
            feed.answer(depth, score)
        return feed.report("probe")


@pytest.fixture
def engine(tmp_path) -> Engine:
    return Engine(tmp_path)


def counted(**labels: str) -> float:
    return REGISTRY.get_sample_value("anydepth_gates_total", labels) or 0.0


def test_the_engine_is_asked_about_the_call_as_the_template_writes_it(engine):
    engine.gate()
    call = engine.template.call_prompt(
        MESSAGES, {"name": "write_note", "arguments": {"text": "tea"}}, written=choose_format("hermes", "")
    )
    body = engine.bodies[-1]
    assert body["prompt"] == list(call.prompt.ids) and body["max_tokens"] == 1 and "model" not in body
    question = engine.asked["gate"]
    assert question["prefill"] == call.prompt.prefill and question["before"] == call.before > 0
    assert question["tool"] == "write_note" and question["control"] is True and set(engine.asked) == {"gate"}
    assert question["arguments"] == "", "only an audit that keeps text needs them"


def test_an_audit_that_keeps_text_gets_the_arguments(tmp_path):
    engine = Engine(tmp_path, audit={"kind": "jsonl", "path": "audit.jsonl", "text": True})
    engine.gate()
    assert engine.asked["gate"]["arguments"] == CALL["function"]["arguments"]


def test_the_reply_is_that_of_the_other_server(engine):
    before = counted(allowed="false", reason="policy")
    reply = engine.gate(model="tea")
    depth = engine.asked["gate"]["prefill"]
    assert reply["id"] == engine.asked["gate"]["id"] and reply["id"].startswith("gate-")
    assert (reply["object"], reply["model"], reply["allowed"], reply["refusal"]) == ("gate", "tea", False, "No.")
    assert reply["why"] == (
        "after the call of write_note the score is 0.9, which reaches the threshold 0.5; before the call the score was "
        "0.1"
    )
    assert reply["anydepth"] == {
        "halted": True, "would_halt": True, "tool": "write_note", "score": 0.9, "before": 0.1, "statistic": 0.9,
        "threshold": 0.5, "depth": depth, "reason": "policy", "policy": {"name": "threshold", "threshold": 0.5},
        "release": "hold", "failed_checks": 0, "method": "forks",
    }  # fmt: skip
    assert engine.bodies[-1]["model"] == "tea" and counted(allowed="false", reason="policy") == before + 1


def test_without_a_control_and_without_a_model(engine):
    engine.scores = [Score(0.2)]
    reply = engine.gate(control=False)
    assert reply["allowed"] is True and reply["refusal"] is None and reply["model"] == "served"
    assert reply["anydepth"]["before"] is None and engine.asked["gate"]["control"] is False


@pytest.mark.parametrize(("on_error", "may"), [("closed", False), ("open", True)])
def test_a_check_that_fails(engine, on_error, may):
    engine.guard = GuardConfig(policy=Threshold(0.5), on_error=on_error)
    engine.scores = [Score(0.1), RuntimeError("words of the conversation")]
    before = counted(allowed=str(may).lower(), reason="error")
    reply = engine.gate()
    assert reply["allowed"] is may and reply["anydepth"]["failed_checks"] == 1
    assert reply["anydepth"]["reason"] == "error" and reply["anydepth"]["score"] is None
    assert "RuntimeError" in reply["why"] and "conversation" not in reply["why"]
    assert counted(allowed=str(may).lower(), reason="error") == before + 1


def test_the_options_of_a_request_go_to_the_engine_and_no_others(engine):
    engine.gate(anydepth={"threshold": 0.3, "release": "monitor"})
    assert engine.asked.pop("gate") and engine.asked | {"gate": None} == {
        "threshold": 0.3, "release": "monitor", "gate": None,
    }  # fmt: skip
    assert engine.gate(400, anydepth={"gate": {"before": 0}})["error"]["param"] == "anydepth.gate"
    assert engine.gate(400, anydepth={"guard": False})["error"]["param"] == "anydepth.guard"


def test_what_the_engine_refuses_is_refused(engine):
    error = ValueError("anydepth.threshold is 2")
    error.param = "anydepth.threshold"  # type: ignore[attr-defined]
    engine.told = refusal_report(error)
    assert engine.gate(400)["error"] == {
        "message": "anydepth.threshold is 2", "type": "invalid_request_error", "param": "anydepth.threshold",
        "code": "invalid_value",
    }  # fmt: skip


def test_a_verdict_that_cannot_be_recorded_is_none(engine):
    engine.failure = AuditError("the disk is full")
    found = engine.gate(503)
    assert found["error"]["code"] == "audit_failed" and "allowed" not in found


@pytest.mark.parametrize("told", [{}, {"halted": True, "reason": "error", "error": "ZeroDivisionError"}])
def test_without_the_engines_word_a_call_is_not_judged(engine, told):
    engine.told = told
    found = engine.gate(500)
    assert found["error"]["code"] == "engine_error" and "do not run it" in found["error"]["message"]


def test_an_error_of_vllms_is_passed_on(engine):
    engine.told = {}
    engine.response = JSONResponse({"error": {"message": "The model `x` does not exist."}}, 404, {"X-Of-Vllm": "1"})
    response = engine.post({**ASK, "model": "x"})
    assert response.status_code == 404 and response.headers["x-of-vllm"] == "1"
    assert "does not exist" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": MESSAGES * 3}, "messages"),
        (
            {"tool_call": {"type": "function", "function": {"name": "f", "arguments": "["}}},
            "tool_call.function.arguments",
        ),
        ({"messages": MESSAGES[1:]}, "messages"),
        ({"temperature": 1}, "temperature"),
        ({"control": "no"}, "control"),
    ],
)
def test_a_request_that_is_wrong_never_comes_to_the_engine(tmp_path, change, param):
    engine = Engine(tmp_path, limits={"messages": 4})
    error = engine.gate(400, **change)["error"]
    assert error["param"] == param and engine.bodies == []


def test_keys_types_and_methods_are_those_of_the_other_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("ANYDEPTH_API_KEY", "secret")
    engine = Engine(tmp_path)
    assert engine.post().status_code == 401
    key = {"Authorization": "Bearer secret"}
    assert engine.post(**key).status_code == 200
    wrong = engine.client.post("/v1/gate", content=json.dumps(ASK), headers={**key, "Content-Type": "text/plain"})
    assert wrong.status_code == 415
    assert (
        engine.client.post("/v1/gate", content="{", headers={**key, "Content-Type": "application/json"}).status_code
        == 400
    )
    got = engine.client.get("/v1/gate", headers=key)
    assert got.status_code == 405 and got.headers["allow"] == "POST"
    assert len(engine.bodies) == 1


def test_a_template_that_writes_no_calls_has_the_format_of_vllms_parser(tmp_path):
    engine = Engine(tmp_path, template=CHATML)
    error = engine.gate(400)["error"]
    assert error["code"] == "invalid_prompt" and "writes no tool calls" in error["message"]
    engine.app.state.args = SimpleNamespace(tool_call_parser="hermes")
    engine.gate()
    text = engine.template.tokenizer.decode(engine.bodies[-1]["prompt"])
    assert text.endswith(
        'I write it down.\n<tool_call>\n{"name": "write_note", "arguments": {"text": "tea"}}\n</tool_call>'
    )


def test_a_client_that_goes_is_not_an_error(engine, caplog):
    """vLLM then cancels the request, and answers nothing of use."""
    told, sent = iter([{"type": "http.request", "body": json.dumps(ASK).encode(), "more_body": False}]), []

    async def receive() -> Any:
        return next(told, {"type": "http.disconnect"})

    async def cancelled(request: Request) -> Response:
        await request.body()
        assert (await request.receive())["type"] == "http.disconnect"
        return JSONResponse(None)

    async def send(message: Any) -> None:
        sent.append(message)

    engine.app.router.routes[:] = [Route("/v1/completions", cancelled, methods=["POST"])]
    scope = {
        "type": "http", "method": "POST", "path": "/v1/gate", "raw_path": b"/v1/gate", "root_path": "",
        "scheme": "http", "query_string": b"", "headers": [(b"content-type", b"application/json")], "app": engine.app,
        "state": {}, "client": ("t", 1), "server": ("t", 80),
    }  # fmt: skip
    asyncio.run(engine.app(scope, receive, send))
    assert sent == [] and engine.reports.responses == {} and "did not judge" not in caplog.text


def test_a_server_below_a_path_of_its_own(engine):
    client = TestClient(engine.app, root_path="/llm", raise_server_exceptions=False)
    assert client.post("/llm/v1/gate", json=ASK).json()["object"] == "gate"


def test_nothing_is_kept_of_a_request(engine):
    engine.gate()
    engine.gate(400, messages=[])
    assert engine.reports.responses == {}
