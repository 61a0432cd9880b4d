"""The other endpoints: plain completions, scans, health, metrics."""

import openai
import pytest

from tests.server.process import ServerProcess

REFUSAL = "I can't help with that."


def test_a_plain_completion(client):
    reply = client.completions.create(model="scripted", prompt="say: and on")
    assert reply.choices[0].text == "and on" and reply.choices[0].finish_reason == "stop"
    assert reply.usage.prompt_tokens == len("say: and on")


def test_several_prompts_in_a_stream(client):
    prompts = ["say: one", "say: two and harm"]
    chunks = list(client.completions.create(model="scripted", prompt=prompts, stream=True, n=2))
    texts = ["".join(c.choices[0].text for c in chunks if c.choices[0].index == i) for i in range(4)]
    assert texts[:2] == ["one", "one"]
    assert all(text.endswith(REFUSAL) and "harm" not in text for text in texts[2:])


def test_usage_counts_each_prompt_once(client):
    reply = client.completions.create(model="scripted", prompt=["say: one", "say: three"], n=2)
    assert reply.usage.prompt_tokens == len("say: one") + len("say: three")
    assert reply.usage.completion_tokens == 2 * 4 + 2 * 6


@pytest.mark.parametrize(
    ("scanned", "flagged"),
    [
        ("a question", [False]),
        ("harm: a question", [True]),
        (["a question", "harm"], [False, True]),
        ([{"type": "text", "text": "harm"}], [True]),
        ([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a fine answer"}], [False]),
        ([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a fine answer with harm in it"}], [True]),
    ],
)
def test_a_scan(client, scanned, flagged):
    reply = client.moderations.create(model="scripted", input=scanned)
    assert [result.flagged for result in reply.results] == flagged


def test_a_request_that_no_answer_follows_is_judged_without_the_weight_of_requests():
    policy = {"name": "ewma", "alpha": 0.5, "threshold": 0.75, "request": 0.7}
    answer = [{"role": "user", "content": "harm"}, {"role": "assistant", "content": "a"}]
    with ServerProcess.scripted({"guard": {"policy": policy}}) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
        for scanned, flagged in (("harm", True), ("a question", False)):
            (result,) = client.moderations.create(model="scripted", input=scanned).results
            assert result.flagged is flagged
            assert "request" not in result.anydepth["policy"]
        (result,) = client.moderations.create(model="scripted", input=answer).results
        assert result.anydepth["policy"] == policy


def test_a_scan_checks_every_depth(client):
    answer = "a fine answer with harm in it"
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]
    report = client.moderations.create(input=messages, extra_body={"anydepth": {"checks": True}}).results[0].anydepth
    assert [check["depth"] for check in report["timeline"]] == [0, 1, 2, 4, 8, 16, 25, len(answer)]
    assert report["reason"] == "policy"


def test_a_scan_of_what_cannot_be_scanned(client):
    for bad in ([{"role": "user", "content": "q"}, "text"], [{"type": "image_url", "image_url": {"url": "x"}}], []):
        with pytest.raises(openai.BadRequestError):
            client.moderations.create(input=bad)


def test_health(server):
    assert server.get("/healthz").status_code == 200
    assert server.get("/readyz").json() == {"status": "ok"}


def test_metrics(server, client):
    before = {name: server.metric(name) for name in ("anydepth_checks_total", "anydepth_blocked_total")}
    client.completions.create(model="scripted", prompt="say: nice, and then the harm")
    assert server.metric("anydepth_checks_total") > before["anydepth_checks_total"]
    assert server.metric("anydepth_blocked_total") == before["anydepth_blocked_total"] + 1
    assert server.metric("anydepth_check_seconds_count") > 0
    assert server.metric("anydepth_leak_tokens_count") > 0
    assert server.metric("anydepth_live_answers") == 0
    assert 'path="/v1/completions",status="200"' in server.get("/metrics").text


def test_safe_headers(server):
    headers = server.get("/v1/models").headers
    assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["x-request-id"].startswith("req_") and "server" not in headers
