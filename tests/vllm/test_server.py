"""vLLM's own OpenAI server behind the guard's front, as `anydepth serve` starts it, by the real client."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("vllm", reason="vllm is not installed here; docs/vllm.md says how to run these tests")

import openai

from anydepth.audit.reading import read_records
from anydepth.audit.verify import verify_audit
from anydepth.guard_report import GuardReport

ROOT = Path(__file__).resolve().parents[2]
REFUSAL = "That is where I stop."
NAME, KEY = "tiny", "secret"
KEYS = {each.name for each in fields(GuardReport)} - {"timeline", "usage", "stages"}
PROMPT = [{"role": "user", "content": "w1 w8 w3"}]
PREFILL = {"role": "assistant", "content": "w20 w21 w22"}
CONTINUED = {"continue_final_message": True, "add_generation_prompt": False}
FLAGS = [
    "--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "16", "--block-size", "32",
]  # fmt: skip
CONFIG = f"""
[model]
path = "{{model}}"
name = "{NAME}"
[guard]
probe = "{{probe}}"
refusal = "{REFUSAL}"
policy = {{{{name = "threshold", threshold = 1.0}}}}
[overrides]
interval = {{{{min = 2, max = 50}}}}
threshold = {{{{min = 0, max = 1}}}}
release = ["monitor"]
checks = true
[limits]
max_tokens = 400
choices = 4
[audit]
kind = "jsonl"
path = "audit.jsonl"
"""


@dataclass
class Server:
    """A running server."""

    url: str
    audit: Path

    @property
    def client(self) -> Any:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=120)

    def ask(self, messages: Any = PROMPT, *, guard: dict[str, Any] | None = None, **options: Any) -> Any:
        extra = {**options.pop("extra_body", {}), **({} if guard is None else {"anydepth": guard})}
        options = {"max_tokens": 40, "temperature": 0, "seed": 5, **options}
        return self.client.chat.completions.create(model=NAME, messages=messages, extra_body=extra, **options)

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        return httpx.post(self.url + path, json=body, headers={"Authorization": f"Bearer {KEY}"} | headers, timeout=120)

    def halting(self) -> tuple[Any, str, int, float]:
        """A question, its whole answer, a depth at which that halts and the threshold that makes it."""
        for number in range(1, 33):
            messages = [{"role": "user", "content": f"w{number} w{number + 7} w{3 * number}"}]
            choice = self.ask(messages, guard={"release": "monitor", "checks": True}).choices[0]
            highest = choice.anydepth["timeline"][0]["score"]
            for check in choice.anydepth["timeline"][1:]:
                if check["score"] > highest + 1e-3 and check["depth"] > 1:
                    return messages, choice.message.content, check["depth"], (check["score"] + highest) / 2
                highest = max(highest, check["score"])
        raise AssertionError("no answer halts later than at its start; take other questions")

    def parting(self, **options: Any) -> tuple[Any, float, int]:
        """A question, a threshold between the peaks of its answers, and how many of them lie above."""
        for number in range(1, 33):
            messages = [{"role": "user", "content": f"w{number} w{number + 7} w{3 * number}"}]
            seen = self.ask(messages, guard={"release": "monitor", "checks": True}, **options).choices
            peaks = sorted(max(check["score"] for check in choice.anydepth["timeline"]) for choice in seen)
            gap, place = max((high - low, place) for place, (low, high) in enumerate(pairwise(peaks), 1))
            if gap > 1e-3:
                return messages, (peaks[place - 1] + peaks[place]) / 2, len(peaks) - place
        raise AssertionError("all answers to a question have the same peak; take other questions")


@pytest.fixture(scope="module")
def server(tiny_folder, probe_file, tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with started(folder, CONFIG.format(model=tiny_folder, probe=probe_file)) as running:
        yield running


@contextmanager
def started(folder: Path, config: str) -> Iterator[Server]:
    """A server with this guard.toml, which is written into `folder`, as is the log."""
    (folder / "guard.toml").write_text(config, encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "anydepth", "serve", "--engine", "vllm", "--config", str(folder / "guard.toml")]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        "ANYDEPTH_API_KEY": KEY,
    }
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--", *FLAGS], env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    running = Server(f"http://127.0.0.1:{port}", folder / "audit.jsonl")
    try:
        for _ in range(600):
            assert process.poll() is None, (folder / "log").read_text()[-3000:]
            try:
                if httpx.get(running.url + "/health", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.5)
        else:
            pytest.fail("the server did not start:\n" + (folder / "log").read_text()[-3000:])
        yield running
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def text_of(chunks: list[Any], index: int = 0) -> str:
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices and c.choices[0].index == index)


def ends_of(chunks: list[Any]) -> dict[int, Any]:
    return {c.choices[0].index: c.choices[0] for c in chunks if c.choices and c.choices[0].finish_reason}


def test_an_answer_and_its_stream(server):
    whole = server.ask()
    choice = whole.choices[0]
    assert choice.message.content and choice.finish_reason in ("stop", "length")
    assert set(choice.anydepth) == KEYS
    assert choice.anydepth["halted"] is False and choice.anydepth["checks"] > 1
    assert choice.anydepth["policy"] == {"name": "threshold", "threshold": 1.0}
    assert not hasattr(whole, "kv_transfer_params")
    chunks = list(server.ask(stream=True, stream_options={"include_usage": True}))
    assert text_of(chunks) == choice.message.content
    assert len([c for c in chunks if c.choices and c.choices[0].delta.content]) > 2, "the answer came in one piece"
    assert ends_of(chunks)[0].anydepth == choice.anydepth
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


@pytest.mark.parametrize("streamed", [False, True])
def test_a_blocked_answer_is_a_success_with_a_refusal(server, streamed):
    messages, unguarded, depth, threshold = server.halting()
    guard = {"threshold": threshold}
    if streamed:
        chunks = list(server.ask(messages, guard=guard, stream=True, stream_options={"include_usage": True}))
        text, end, usage = text_of(chunks), ends_of(chunks)[0], chunks[-1].usage
        assert end.delta.content == "\n\n" + REFUSAL and chunks[-2].choices[0] == end
        assert end.delta.provider_specific_fields == {"anydepth": end.anydepth}
    else:
        reply = server.ask(messages, guard=guard)
        end, usage = reply.choices[0], reply.usage
        text = end.message.content
    assert end.finish_reason == "content_filter"
    released = text.removesuffix(REFUSAL).removesuffix("\n\n")
    assert text == released + "\n\n" + REFUSAL and unguarded.startswith(released) and released != unguarded
    assert end.anydepth["halted"] and end.anydepth["depth"] == depth and end.anydepth["reason"] == "policy"
    assert 0 < end.anydepth["leak_tokens"] == end.anydepth["released_tokens"] < depth
    assert usage.completion_tokens == end.anydepth["released_tokens"] + end.anydepth["withheld_tokens"]


@pytest.mark.parametrize("streamed", [False, True])
def test_an_answer_that_is_halted_before_its_first_token(server, streamed):
    """vLLM's streams leave such an answer out."""
    if streamed:
        chunks = list(server.ask(guard={"threshold": 0.0}, stream=True))
        text, end = text_of(chunks), ends_of(chunks)[0]
    else:
        end = server.ask(guard={"threshold": 0.0}).choices[0]
        text = end.message.content
    assert text == REFUSAL and end.finish_reason == "content_filter"
    assert end.anydepth["depth"] == 0 and end.anydepth["released_tokens"] == 0 and end.anydepth["score"] is not None


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_blocked_stream_ends_with_one_chunk_and_done(server, path):
    prompt = {"messages": PROMPT} if "chat" in path else {"prompt": "w4 w5 w6"}
    body = {"model": NAME, **prompt, "stream": True, "anydepth": {"threshold": 0.0}}
    lines = [line.removeprefix("data: ") for line in server.post(path, body).text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    last = json.loads(lines[-2])["choices"][0]
    assert (last["delta"]["content"] if "chat" in path else last["text"]) == REFUSAL
    assert last["finish_reason"] == "content_filter" and last["anydepth"]["halted"]


@pytest.mark.parametrize("streamed", [False, True])
def test_several_answers_have_verdicts_of_their_own(server, streamed):
    options: dict[str, Any] = {"n": 4, "temperature": 1.0}
    messages, threshold, halted = server.parting(**options)
    if streamed:
        chunks = list(server.ask(messages, guard={"threshold": threshold}, stream=True, **options))
        ends = [ends_of(chunks)[index] for index in range(4)]
        texts = [text_of(chunks, index) for index in range(4)]
    else:
        ends = server.ask(messages, guard={"threshold": threshold}, **options).choices
        texts = [choice.message.content for choice in ends]
    assert [end.finish_reason == "content_filter" for end in ends].count(True) == halted
    for end, text in zip(ends, texts, strict=True):
        assert end.anydepth["halted"] == text.endswith(REFUSAL) == (end.finish_reason == "content_filter")


def test_a_prefill_is_continued_and_checked(server):
    messages = [*PROMPT, PREFILL]
    good = server.ask(messages, extra_body=CONTINUED).choices[0]
    assert not good.anydepth["halted"] and good.message.content
    for streamed in (False, True):
        bad = server.ask(messages, extra_body=CONTINUED, guard={"threshold": 0.0}, stream=streamed)
        end = ends_of(list(bad))[0] if streamed else bad.choices[0]
        assert end.finish_reason == "content_filter" and end.anydepth["released_tokens"] == 0
        if not streamed:
            assert end.message.content == REFUSAL
    prefills = {each["prefill_tokens"] for each in read_records(server.audit) if each["kind"] == "answer"}
    assert prefills == {0, 3}


def test_plain_completions(server):
    ask = server.client.completions.create
    prompts = ["w4 w5 w6", "w7 w8"]
    options: dict[str, Any] = {"model": NAME, "prompt": prompts, "max_tokens": 20, "seed": 3, "n": 2}
    reply = ask(**options)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert all(set(choice.anydepth) == KEYS for choice in reply.choices)
    assert not any(choice.anydepth["halted"] for choice in reply.choices)
    for streamed in (False, True):
        blocked = ask(**options, stream=streamed, extra_body={"anydepth": {"threshold": 0.0}})
        choices = [each.choices[0] for each in blocked if each.choices] if streamed else blocked.choices
        ends = [each for each in choices if each.finish_reason]
        assert [end.finish_reason for end in ends] == ["content_filter"] * 4
        assert "".join(each.text for each in choices) == REFUSAL * 4


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("overrides", "param"),
    [
        ({"interval": 500}, "anydepth.interval"),
        ({"threshold": 2.0}, "anydepth.threshold"),
        ({"policy": "none"}, "anydepth.policy"),
        ({"enabled": False}, "anydepth.enabled"),
        ({"release": "eager"}, "anydepth.release"),
        ({"guard": False}, "anydepth.guard"),
    ],
)
def test_overrides_beyond_what_the_operator_allows_are_refused(server, overrides, param, streamed):
    with pytest.raises(openai.BadRequestError) as caught:
        list(server.ask(guard=overrides, stream=streamed))
    assert caught.value.param == param


def test_overrides_within_it(server):
    report = server.ask(guard={"release": "monitor", "checks": True, "interval": 5, "threshold": 0}).choices[0].anydepth
    assert report["would_halt"] and not report["halted"] and report["release"] == "monitor"
    assert {0, 1, 2, 4, 5, 10} <= {check["depth"] for check in report["timeline"]}


def test_the_engines_own_field_cannot_be_reached(server):
    for name, value in (("anydepth", '{"guard": false}'), ("anydepth", '{"release": "eager"}')):
        choice = server.ask(extra_body={"vllm_xargs": {name: value}}).choices[0]
        assert choice.anydepth["release"] == "hold" and choice.anydepth["checks"] > 1


@pytest.mark.parametrize(
    "path", ["/v1/responses", "/v1/messages", "/inference/v1/generate", "/invocations", "/v1/chat/completions/batch"]
)
def test_what_cannot_show_a_halt_is_not_there(server, path):
    response = server.post(path, {"model": NAME, "messages": PROMPT, "input": "w1", "max_tokens": 5})
    assert response.status_code == 404 and "/v1/chat/completions" in response.json()["error"]["message"]


def test_errors(server):
    with pytest.raises(openai.NotFoundError):
        server.client.chat.completions.create(model="another", messages=PROMPT)
    for change in ({"max_tokens": 401}, {"n": 5}, {"max_tokens": "5"}, {"use_beam_search": True}, {"temperature": -1}):
        assert server.post("/v1/chat/completions", {"model": NAME, "messages": PROMPT, **change}).status_code == 400
    assert httpx.post(server.url + "/v1/chat/completions", json={}).status_code == 401
    assert [model.id for model in server.client.models.list()] == [NAME]


def test_sampling_options_of_vllm(server):
    choice = server.ask(logprobs=True, top_logprobs=2, stop=["w"], extra_body={"min_p": 0.02}).choices[0]
    assert choice.finish_reason == "stop" and choice.logprobs.content is not None
    assert choice.anydepth["halted"] is False


def test_the_audit_trail_accounts_for_every_answer(server):
    """The last test: it reads what the others have left."""
    server.ask()
    report = verify_audit(server.audit)
    assert report.ok and sum(report.answers.values()) > 20 and report.blocked > 5, report.violations
