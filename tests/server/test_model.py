"""The command itself, on a tiny random model: what clients get is what the library gives."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from anydepth import Guard, LinearProbe
from anydepth.audit.verify import verify_audit
from anydepth.backends.transformers import load
from tests.server import tiny_model
from tests.server.process import ROOT, ServerProcess

GUARD = """
[guard]
interval = 10
refusal = "No."

[limits]
max_tokens = 200

[audit]
kind = "jsonl"
path = "audit.jsonl"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_model.build(tmp_path_factory.mktemp("tiny"), blocked=0.3)
    (folder / "guard.toml").write_text(GUARD)
    return folder


@pytest.fixture(scope="module")
def guard(folder: Path) -> Guard:
    from anydepth import Every

    probe = LinearProbe.load(folder / tiny_model.PROBE)
    return Guard.from_backend(load(folder), probe, schedule=Every(10), refusal="No.")


@pytest.fixture(scope="module")
def server(folder: Path):
    command = ["-m", "anydepth", "serve", str(folder), "--probe", str(folder / tiny_model.PROBE)]
    with ServerProcess([*command, "--config", str(folder / "guard.toml"), "--port", "0", "--name", "tiny"]) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> openai.OpenAI:
    return server.client()


def ask(client: openai.OpenAI, text: str, **options: Any) -> Any:
    options = {"max_tokens": 40, "temperature": 0, **options}
    return client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": text}], **options)


def test_answers_are_those_of_the_library(client, guard):
    halted = 0
    for prompt in tiny_model.PROMPTS[:8]:
        expected = guard.generate(prompt, max_new_tokens=40, do_sample=False)
        choice = ask(client, prompt).choices[0]
        assert choice.message.content == expected.text
        assert choice.finish_reason == expected.finish_reason
        assert choice.anydepth["depth"] == expected.verdict.depth
        assert choice.anydepth["score"] == pytest.approx(expected.verdict.score, abs=1e-4)
        halted += expected.halted
    assert 0 < halted < 8


def test_a_seed_repeats_an_answer_whatever_else_goes_on(client, guard):
    def go(number: int) -> str:
        return ask(client, tiny_model.PROMPTS[number], temperature=0.9, seed=number).choices[0].message.content

    alone = [
        guard.generate(tiny_model.PROMPTS[n], max_new_tokens=40, do_sample=True, temperature=0.9, seed=n).text
        for n in range(6)
    ]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(go, range(6))) == alone


def test_answers_of_one_request_differ(client):
    reply = ask(client, tiny_model.PROMPTS[0], n=3, temperature=1.5, seed=1)
    assert len({choice.message.content for choice in reply.choices}) > 1
    again = ask(client, tiny_model.PROMPTS[0], n=3, temperature=1.5, seed=1)
    assert [c.message.content for c in again.choices] == [c.message.content for c in reply.choices]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_stop_string_ends_the_answer_and_is_not_in_it(client, guard, streamed):
    prompt, whole = next(
        (p, a.text)
        for p in tiny_model.PROMPTS
        if not (a := guard.generate(p, max_new_tokens=40, do_sample=False)).halted
    )
    words = whole.split(" ")
    stop = " ".join(words[12:15])  # over several tokens
    if streamed:
        chunks = list(ask(client, prompt, stop=stop, stream=True))
        text = "".join(c.choices[0].delta.content or "" for c in chunks)
        reason = chunks[-1].choices[0].finish_reason
    else:
        choice = ask(client, prompt, stop=["never written", stop]).choices[0]
        text, reason = choice.message.content, choice.finish_reason
    assert text == whole[: whole.index(stop)]
    assert reason == "stop"


def test_a_prefill(client, guard):
    messages: Any = [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3 w4 w5"}]
    reply = client.chat.completions.create(model="tiny", messages=messages, max_tokens=30, temperature=0)
    expected = guard.generate("w1 w2", prefill="w3 w4 w5", max_new_tokens=30, do_sample=False)
    assert reply.choices[0].message.content == expected.text
    assert reply.usage.prompt_tokens == expected.prompt_tokens + expected.prefill_tokens


def test_a_scan_takes_one_pass(client, guard):
    answer = " ".join(f"w{n}" for n in range(60))
    messages = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": answer}]
    report = client.moderations.create(input=messages).results[0].anydepth
    assert report["method"] == "packed"
    assert report["score"] == pytest.approx(guard.scan("w1", answer).verdict.score, abs=1e-4)


def test_a_prompt_that_does_not_fit(client):
    with pytest.raises(openai.BadRequestError, match="context"):
        ask(client, " ".join(["w1"] * 600))
    with pytest.raises(openai.BadRequestError, match="context"):
        list(ask(client, " ".join(["w1"] * 600), stream=True))


def test_extreme_sampling_does_not_break_it(client):
    for options in ({"temperature": 1e-300}, {"temperature": 2, "top_p": 0}, {"temperature": 1, "top_p": 1e-300}):
        assert ask(client, "w1", **options).choices
    body = {"top_k": 0, "min_p": 1.0, "repetition_penalty": 0.1}
    assert ask(client, "w1", temperature=0.02, extra_body=body).choices


def test_the_trail_accounts_for_everything(server, client, folder):
    recorded = sum(verify_audit(folder / "audit.jsonl").answers.values())
    body = {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "w1"}], "max_tokens": 200}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body) as response:
        next(response.iter_lines())
    # a thread of its own writes the record, once nobody waits for it
    server.until(lambda: sum(verify_audit(folder / "audit.jsonl").answers.values()) > recorded)
    report = verify_audit(folder / "audit.jsonl")
    assert report.ok, report.violations
    assert report.released > 100 and report.blocked > 0 and report.unchecked == 0


def test_a_second_server_on_the_same_trail_does_not_start(server, folder):
    command = [sys.executable, "-m", "anydepth", "serve", str(folder), "--config", str(folder / "guard.toml")]
    command += ["--probe", str(folder / tiny_model.PROBE), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT / "src")})
    assert done.returncode == 2 and "Traceback" not in done.stderr
    words = " ".join(done.stderr.split())
    assert "another server writes it; give each server a path of its own, or stop the other one" in words
