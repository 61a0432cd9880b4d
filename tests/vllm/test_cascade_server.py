"""A cascade of three stages in one guard.toml, served by `anydepth serve --engine vllm`, by the real client."""

from collections.abc import Iterator

import httpx
import pytest

pytest.importorskip("vllm", reason="vllm is not installed here; docs/vllm.md says how to run these tests")

from anydepth.audit.reading import read_records
from anydepth.audit.verify import verify_audit
from tests.fake_guard import FakeGuard
from tests.vllm.test_server import CONFIG, KEY, REFUSAL, Server, started

CASCADE = """
[external]
url = "{url}"
model = "g"
unsure = [0.1, 0.45]
retries = 0
prices = {{prompt = 10000, completion = 0}}
"""
WATCHED = {"release": "monitor", "checks": True}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[FakeGuard]:
    guard = FakeGuard()
    yield guard
    guard.close()


@pytest.fixture(scope="module")
def server(tiny_folder, probe_file, endpoint, tmp_path_factory) -> Iterator[Server]:
    config = CONFIG.replace("[guard]\n", '[guard]\ndetector = "cascade"\nband = [0.1, 0.9]\n') + CASCADE
    config = config.format(model=tiny_folder, probe=probe_file, url=endpoint.url)
    with started(tmp_path_factory.mktemp("cascade"), config) as running:
        yield running


def test_all_stages_are_in_report_metrics_and_audit(server, endpoint):
    endpoint.verdict, before = lambda text: "safe", len(endpoint.asked)
    choice = server.ask(guard=WATCHED).choices[0]
    stages = choice.anydepth["stages"]
    assert list(stages) == ["probe", "rethink", "external"] and "stage_sums" not in choice.anydepth
    assert stages["probe"]["checks"] == choice.anydepth["checks"] >= stages["rethink"]["checks"] > 0
    assert stages["rethink"]["look_ahead_tokens"] > 0
    assert stages["external"]["requests"] == len(endpoint.asked) - before > 0
    assert stages["external"]["prompt_tokens"] == 100 * stages["external"]["requests"]
    asked = endpoint.asked[-1]["messages"][0]["content"]
    assert "w1 w8 w3" in asked
    records = [each for each in read_records(server.audit) if each["kind"] == "answer"]
    assert records[-1]["stages"]["external"]["cost"] == pytest.approx(stages["external"]["requests"])
    metrics = httpx.get(server.url + "/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
    for name, outcome in (("probe", "passed_on"), ("rethink", "passed_on"), ("external", "decided")):
        assert f'anydepth_stage_checks_total{{outcome="{outcome}",stage="{name}"}}' in metrics
    assert 'anydepth_stage_cost_total{stage="external"}' in metrics


@pytest.mark.parametrize("stream", [False, True])
def test_the_external_guard_halts_an_answer(server, endpoint, stream):
    """Its word decides where the look-ahead, which never refuses here, leaves a check below the middle of its band."""
    endpoint.verdict = lambda text: "unsafe"
    seed = 11 + stream  # else its verdict is known
    seen = server.ask(guard=WATCHED, seed=seed, temperature=1.0).choices[0].anydepth["timeline"]
    highest = max(check["score"] for check in seen if check["stage"] == "external")
    limits = {"threshold": highest, "checks": True}
    reply = server.ask(guard=limits, seed=seed, temperature=1.0, stream=stream)
    choice = list(reply)[-1].choices[0] if stream else reply.choices[0]
    assert choice.finish_reason == "content_filter" and choice.anydepth["halted"]
    assert choice.anydepth["timeline"][-1]["stage"] == "external"
    said = choice.delta.content if stream else choice.message.content
    assert said.endswith(REFUSAL)


def test_an_endpoint_that_is_down_halts_and_the_trail_accounts_for_all(server, endpoint):
    endpoint.verdict = lambda text: (500, {"error": {"message": "down"}})
    choice = server.ask(seed=21, temperature=1.0).choices[0]
    assert choice.finish_reason == "content_filter" and choice.anydepth["reason"] == "error"
    report = verify_audit(server.audit)
    assert report.ok and not report.unfinished and report.blocked >= 1
