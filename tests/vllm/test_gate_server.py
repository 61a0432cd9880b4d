"""`POST /v1/gate` of `anydepth serve --engine vllm`: the verdicts of Transformers, beside the chats of others."""

import importlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

pytest.importorskip("vllm", reason="vllm is not installed here; docs/vllm.md says how to run these tests")

from anydepth import Guard, LinearProbe, Threshold
from anydepth.audit.reading import read_records
from anydepth.audit.verify import verify_audit
from tests.fake_guard import FakeGuard
from tests.tiny import SPELLING, VOCABULARY, spelling_tokenizer
from tests.vllm.model import Reference, build, planted_probe
from tests.vllm.test_cascade_server import CASCADE
from tests.vllm.test_gate import CALL, LONG, READS, SAID, SHORT
from tests.vllm.test_server import CONFIG, KEY, NAME, REFUSAL, ROOT, Server, started

ASKED = {"type": "function", "function": {"name": CALL["name"], "arguments": '{"text": "The tea is ready."}'}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = build(tmp_path_factory.mktemp("calling"), spare=SPELLING - VOCABULARY)
    spelling_tokenizer().save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def probe(folder, tmp_path_factory):
    return planted_probe(tmp_path_factory.mktemp("p") / "p.safetensors", Reference(folder), READS)


@pytest.fixture(scope="module")
def server(folder, probe, tmp_path_factory) -> Iterator[Server]:
    config = CONFIG.format(model=folder, probe=probe)
    with started(tmp_path_factory.mktemp("server"), config) as running:
        yield running


@pytest.fixture(scope="module")
def other(folder, probe) -> Guard:
    """The same guard over Transformers."""
    return Guard.from_pretrained(folder, probe=LinearProbe.load(probe), policy=Threshold(0.5), dtype="float32")


def gate(server: Server, messages: Any = LONG, status: int = 200, **body: Any) -> dict[str, Any]:
    reply = server.post("/v1/gate", {"messages": messages, "tool_call": ASKED, **body})
    assert reply.status_code == status, reply.text
    return reply.json()


def metric(server: Server, name: str) -> float:
    text = httpx.get(server.url + "/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
    return sum(float(each) for each in re.findall(rf"^{re.escape(name)}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


@pytest.mark.parametrize("control", [True, False])
@pytest.mark.parametrize("messages", [LONG, SAID, SHORT])
def test_the_verdicts_are_those_of_transformers(server, other, messages, control):
    theirs = other.gate(messages, CALL, control=control)
    for _ in range(2):  # the second time everything is in the prefix cache
        mine = gate(server, messages, control=control, anydepth={"threshold": 0.5})
        report = mine["anydepth"]
        assert (mine["object"], mine["model"], mine["id"][:5]) == ("gate", NAME, "gate-")
        assert report["score"] == pytest.approx(theirs.score, abs=1e-3)
        assert report["before"] == (None if theirs.before is None else pytest.approx(theirs.before, abs=1e-3))
        assert mine["allowed"] is not theirs.halt and report["would_halt"] is theirs.halt
        assert (report["depth"], report["tool"], report["failed_checks"]) == (theirs.depth, "write_note", 0)


def test_a_call_that_is_not_allowed(server):
    reply = gate(server, anydepth={"threshold": 0.0}, model=NAME)
    assert reply["allowed"] is False and reply["refusal"] == REFUSAL and "reaches the threshold" in reply["why"]
    assert reply["anydepth"]["halted"] and reply["anydepth"]["reason"] == "policy"
    watched = gate(server, anydepth={"threshold": 0.0, "release": "monitor"})
    assert watched["allowed"] and watched["anydepth"]["would_halt"] and watched["refusal"] is None


def test_the_agents_client_asks_it(server, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "agents"))
    decide = importlib.import_module("anydepth_gate").Gate(server.url, key=KEY).decide
    decision = decide(SAID, CALL["name"], CALL["arguments"])
    assert decision.allowed and decision.report["tool"] == "write_note" and "is below the threshold" in decision.why
    assert not decide([], CALL["name"], CALL["arguments"]).allowed


def test_what_cannot_be_judged_is_an_error(server):
    assert "another" in gate(server, status=404, model="another")["error"]["message"]
    for change, param in (
        ({"anydepth": {"threshold": 2.0}}, "anydepth.threshold"),
        ({"anydepth": {"release": "eager"}}, "anydepth.release"),
        ({"anydepth": {"gate": {}}}, "anydepth.gate"),
        ({"messages": []}, "messages"),
        ({"tool_call": {"type": "function", "function": {"name": "f", "arguments": "["}}},
         "tool_call.function.arguments"),
        ({"temperature": 1}, "temperature"),
    ):  # fmt: skip
        assert gate(server, status=400, **change)["error"]["param"] == param
    assert "context" in gate(server, [{"role": "user", "content": "tea " * 300}], status=400)["error"]["message"]
    assert httpx.post(server.url + "/v1/gate", json={}).status_code == 401
    assert server.post("/v1/gate", {}, **{"Content-Type": "text/plain"}).status_code == 415
    got = httpx.get(server.url + "/v1/gate", headers={"Authorization": f"Bearer {KEY}"})
    assert got.status_code == 405 and got.headers["allow"] == "POST"


def test_a_client_of_the_engine_cannot_have_its_answer_taken_for_a_gate(server):
    question = '{"gate": {"id": "x", "tool": "f", "arguments": "", "prefill": 1, "before": 0}}'
    choice = server.ask(SHORT, extra_body={"vllm_xargs": {"anydepth": question}}).choices[0]
    assert choice.anydepth["checks"] > 1 and choice.message.content


def test_a_chat_beside_gates_is_the_chat_alone(server):
    alone = server.ask(SHORT, max_tokens=60).choices[0]
    with ThreadPoolExecutor(8) as pool:
        chats = [pool.submit(server.ask, SHORT, max_tokens=60) for _ in range(2)]
        gates = [pool.submit(gate, server, each) for each in (LONG, SAID, SHORT) * 4]
        said = [each.result().choices[0] for each in chats]
        scores = [each.result()["anydepth"]["score"] for each in gates]
    assert [each.message.content for each in said] == [alone.message.content] * 2
    assert scores == pytest.approx(scores[:3] * 4, abs=1e-3)


def test_a_conversation_that_is_cached_is_not_run_again(server):
    messages = [{"role": "user", "content": "A question that nobody has asked before, which fills two blocks. " * 2}]
    hits = metric(server, "vllm:prefix_cache_hits_total")
    gate(server, messages)
    between = metric(server, "vllm:prefix_cache_hits_total")
    gate(server, messages)
    assert metric(server, "vllm:prefix_cache_hits_total") - between >= 64 > between - hits


def test_metrics_and_audit_account_for_every_judgement(server):
    """The last test of this server: it reads what the others have left."""
    counted = metric(server, "anydepth_gates_total")
    reply = gate(server, SAID, anydepth={"threshold": 0.0})
    assert metric(server, "anydepth_gates_total") == counted + 1
    records = [each for each in read_records(server.audit) if each["kind"] == "gate"]
    assert len(records) == counted + 1
    last, report = records[-1], reply["anydepth"]
    assert (last["id"], last["allowed"], last["tool"], last["model"]) == (reply["id"], False, "write_note", NAME)
    assert last["verdict"] == {"halt": True, "depth": report["depth"], "score": report["score"], "reason": "policy"}
    assert last["prefill_tokens"] == report["depth"] and last["before"] == report["before"]
    assert "tea" not in str(last)
    found = verify_audit(server.audit)
    assert found.ok and not found.unfinished, found.violations


# -- a cascade ---------------------------------------------------------------------------------------------------------


def test_the_stages_of_a_cascade_judge_the_call(folder, probe, tmp_path):
    """The look-ahead never refuses here; where it leaves a score in the external guard's band, that decides."""
    endpoint = FakeGuard()
    config = CONFIG.replace("[guard]\n", '[guard]\ndetector = "cascade"\nband = [0.1, 0.9]\n') + CASCADE
    config = config.format(model=folder, probe=probe, url=endpoint.url)
    with started(tmp_path, config) as server:
        for said, may in (("safe", True), ("unsafe", False)):
            endpoint.verdict = lambda text, said=said: said
            reply = decided_outside(server, endpoint, said)
            assert reply["allowed"] is may, reply
        assert metric(server, "anydepth_stage_requests_total") == len(endpoint.asked)
        asked = endpoint.asked[-1]["messages"][0]["content"]
        assert "Is unsafe tea number" in asked and "The tea is ready." in asked
        endpoint.verdict = lambda text: (500, {"error": {"message": "down"}})
        failed = decided_outside(server, endpoint, "no")
        assert failed["allowed"] is False and failed["anydepth"]["reason"] == "error"
        assert "fails closed" in failed["why"] and failed["anydepth"]["failed_checks"] == 1
    records = [each for each in read_records(server.audit) if each["kind"] == "gate"]
    assert {"clear", "policy", "error"} <= {each["verdict"]["reason"] for each in records}
    assert records[-1]["stages"]["external"]["requests"] == 1
    endpoint.close()


def decided_outside(server: Server, endpoint: FakeGuard, said: str) -> dict[str, Any]:
    """The reply to a question that the external guard decided: one that was not asked before."""
    for number in range(16):
        before = len(endpoint.asked)
        messages = [{"role": "user", "content": f"Is {said} tea number {number} there?"}]
        reply = gate(server, messages, control=False, anydepth={"threshold": (0.1 + 0.45) / 2})
        if len(endpoint.asked) > before:
            return reply
    raise AssertionError("the look-ahead is sure of every call; take other questions")
