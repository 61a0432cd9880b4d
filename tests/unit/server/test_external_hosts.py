"""A proxy whose cascade asks an external guard: what leaves, and what is told of the stages."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from anydepth.audit.reading import read_records
from anydepth.audit.verify import verify_audit
from tests.fake_guard import FakeGuard
from tests.unit.apis.fake_api import NO, YES
from tests.unit.server.proxy_hosts import REFUSAL, ProxyHost, until

CHECKS = {"extra_body": {"anydepth": {"checks": True}}}


@pytest.fixture
def endpoint() -> Iterator[FakeGuard]:
    found = FakeGuard()
    yield found
    found.close()


@pytest.fixture
def proxy(endpoint: FakeGuard, tmp_path: Path) -> Iterator[ProxyHost]:
    host = ProxyHost(
        guard={"detector": "cascade"},
        external={"url": endpoint.url, "model": "g", "retries": 0, "prices": {"prompt": 10.0, "completion": 0.0}},
        audit={"kind": "jsonl", "path": str(tmp_path / "audit.jsonl")},
    )
    yield host
    host.stop()


def asked(proxy: ProxyHost, **more: Any) -> Any:
    return proxy.ask(**{**CHECKS, **more})


def test_the_external_guard_decides_where_the_look_ahead_does_not_refuse(
    proxy: ProxyHost, endpoint: FakeGuard, tmp_path: Path
) -> None:
    endpoint.verdict = lambda text: "unsafe" if "four" in text else "safe"
    proxy.follow(look_ahead=lambda partial: YES)
    reply = asked(proxy)
    assert reply.choices[0].finish_reason == "content_filter"
    assert reply.choices[0].message.content == f"one two \n\n{REFUSAL}"
    report = reply.choices[0].anydepth
    stages = report["stages"]
    assert {name: (sums["checks"], sums["decided"]) for name, sums in stages.items()} == {
        "rethink": (3, 0),
        "external": (3, 3),
    }
    assert stages["external"]["requests"] == 3 and stages["external"]["prompt_tokens"] == 300
    assert stages["rethink"]["look_ahead_tokens"] == 21 and "cost" not in stages["external"]
    assert [check["stage"] for check in report["timeline"]] == ["external"] * 3
    record = json.loads((tmp_path / "audit.jsonl").read_text().splitlines()[-1])
    record = record.get("record", record)
    assert record["stages"]["external"]["cost"] == pytest.approx(0.003)
    assert [check["stage"] for check in record["checks"]] == ["external"] * 3


def test_a_refusal_asks_no_further(proxy: ProxyHost, endpoint: FakeGuard) -> None:
    proxy.follow(look_ahead=lambda partial: NO)
    reply = asked(proxy)
    assert reply.choices[0].message.content == REFUSAL and endpoint.asked == []


def test_without_leave_a_client_is_told_no_stages(proxy: ProxyHost) -> None:
    proxy.follow(look_ahead=lambda partial: YES)
    reply = asked(proxy, extra_body={})
    assert "stages" not in json.dumps(reply.model_dump())


def test_an_endpoint_that_fails_halts_with_an_error_and_not_as_the_upstream(
    proxy: ProxyHost, endpoint: FakeGuard
) -> None:
    endpoint.verdict = lambda text: (503, {"error": {"message": "out of order"}})
    proxy.follow(look_ahead=lambda partial: YES)
    reply = asked(proxy)
    assert reply.choices[0].finish_reason == "content_filter" and reply.choices[0].message.content == REFUSAL


def test_the_metrics_of_the_stages(proxy: ProxyHost, endpoint: FakeGuard) -> None:
    proxy.follow(look_ahead=lambda partial: NO if "four" in partial else YES)
    asked(proxy)
    lines = proxy.metrics()
    assert lines['anydepth_stage_checks_total{outcome="decided",stage="rethink"}'] == 1
    assert lines['anydepth_stage_checks_total{outcome="passed_on",stage="rethink"}'] == 2
    assert lines['anydepth_stage_checks_total{outcome="decided",stage="external"}'] == 2
    assert lines['anydepth_stage_requests_total{stage="external"}'] == 2
    assert lines['anydepth_stage_tokens_total{kind="prompt",stage="external"}'] == 200
    assert lines['anydepth_stage_tokens_total{kind="look_ahead",stage="rethink"}'] == 21
    assert lines['anydepth_stage_cost_total{stage="external"}'] == pytest.approx(0.002)
    assert lines['anydepth_stage_seconds_total{stage="external"}'] > 0


def test_a_scan_has_stages_too(proxy: ProxyHost, endpoint: FakeGuard, tmp_path: Path) -> None:
    proxy.follow(look_ahead=lambda partial: YES)
    endpoint.verdict = lambda text: "unsafe" if "three" in text else "safe"
    messages = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "one two three"}]
    before = proxy.metrics()
    reply = httpx.post(f"{proxy.url}/v1/moderations", json={"input": messages, "anydepth": {"checks": True}}).json()
    (result,) = reply["results"]
    assert result["flagged"] and result["anydepth"]["depth"] == 3
    assert [check["stage"] for check in result["anydepth"]["timeline"]] == ["external"] * 3
    record = json.loads((tmp_path / "audit.jsonl").read_text().splitlines()[-1])
    assert record["kind"] == "scan" and record["stages"]["external"]["requests"] == 3
    asked = 'anydepth_stage_requests_total{stage="external"}'
    assert proxy.metrics()[asked] - before.get(asked, 0) == 3


def test_an_answer_that_is_not_finished_has_the_stages_of_its_checks(
    proxy: ProxyHost, endpoint: FakeGuard, tmp_path: Path
) -> None:
    proxy.follow(look_ahead=lambda partial: YES, break_after=3)
    with pytest.raises(openai.APIStatusError):
        asked(proxy)
    path = tmp_path / "audit.jsonl"
    until(lambda: verify_audit(path).answers["error"] == 1)  # a thread of its own writes it
    (record,) = [each for each in read_records(path) if each["kind"] == "answer"]
    assert record["outcome"] == "error" and record["stages"]["external"]["checks"] == 2
