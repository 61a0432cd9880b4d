"""Real clients, in an environment of their own, and a guarded server that counts what they ask; see docs/clients.md."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.server.process import ServerProcess
from tests.server.venvs import node_with, python_with

pytestmark = [pytest.mark.registry, pytest.mark.slow]

HERE = Path(__file__).parent
REFUSAL = "I can't help with that."
SETTINGS = {"tools": {"format": "hermes"}}
CLIENTS = ["openai", "langchain", "pydantic-ai", "litellm", "llama-index", "ai-sdk"]


@pytest.fixture(scope="module")
def answering() -> Iterator[ServerProcess]:
    with ServerProcess.scripted(SETTINGS, forms=True) as running:
        yield running


@pytest.fixture(scope="module")
def failing() -> Iterator[ServerProcess]:
    with ServerProcess.scripted({**SETTINGS, "blocked": {"style": "error"}}) as running:
        yield running


def _asking(client: str) -> list[str | Path]:
    """The command that asks as a client does, but for the address."""
    if client == "ai-sdk":  # Node looks for packages beside the script
        folder = node_with("clients", HERE / "clients.json")
        return ["node", shutil.copy(HERE / "client_cases.mjs", folder)]
    requirements = f"clients-{client}.txt" if client == "llama-index" else "clients.txt"
    return [python_with(Path(requirements).stem, HERE / requirements), HERE / "client_cases.py", client]


@cache
def seen_by(client: str, url: str) -> dict[str, tuple[int, Any]]:
    """Requests and outcome of each case of a client."""
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "CRITICAL", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [*_asking(client), url]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False, env={**os.environ, **quiet, "PYTHONPATH": ""}
    )
    assert done.returncode == 0, done.stderr
    cases = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"case"')]
    return {each["case"]: (each["requests"], each["outcome"]) for each in cases}


@pytest.mark.parametrize("client", CLIENTS)
def test_a_blocked_chat_costs_one_request_and_shows_all_of_its_text(answering, client):
    seen = seen_by(client, answering.url)
    requests, (text, *_) = seen["late"]
    assert requests == 1 and text.startswith("all is well here") and text.endswith("\n\n" + REFUSAL), seen["late"]
    assert seen["first"][0] == 1 and seen["first"][1][0] == REFUSAL, seen["first"]


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_can_tell_that_it_was_blocked(answering, client):
    seen = seen_by(client, answering.url)
    assert seen["late"][1][1] == seen["first"][1][1] == ("content-filter" if client == "ai-sdk" else "content_filter")


@pytest.mark.parametrize("client", ["openai", "langchain", "litellm", "llama-index", "ai-sdk"])
def test_a_blocked_stream_shows_the_same(answering, client):
    seen = seen_by(client, answering.url)
    (requests, (text, reason, *_)), whole = seen["late, streamed"], seen["late"][1][0]
    assert requests == 1 and text == whole
    assert reason in ("content_filter", ["content_filter"], "content-filter")


@pytest.mark.parametrize("client", ["openai", "litellm", "llama-index", "ai-sdk"])
def test_the_report_reaches_those_who_look_for_it(answering, client):
    seen = seen_by(client, answering.url)
    assert seen["late"][1][2] is True
    if client in ("openai", "litellm"):
        assert seen["late, streamed"][1][2] in (True, [True])
    if client == "openai":
        assert seen["parse"] == (1, True)


@pytest.mark.parametrize(
    ("client", "case"),
    [
        ("langchain", "agent"),
        ("langchain", "agent, streamed"),
        ("pydantic-ai", "agent"),
        ("llama-index", "agent"),
        ("ai-sdk", "agent"),
    ],
)
def test_an_agent_runs_no_call_of_a_blocked_answer(answering, client, case):
    requests, (ran, text) = seen_by(client, answering.url)[case]
    assert requests == 1 and ran == [] and text.startswith("Let me look.") and text.endswith(REFUSAL)


FORMS = [
    ("openai", "json", "ContentFilterFinishReasonError"),
    ("langchain", "json", "ContentFilterFinishReasonError"),
    ("langchain", "call", "OpenAIRefusalError"),
    ("pydantic-ai", "json", "ContentFilterError"),
    ("pydantic-ai", "call", "ContentFilterError"),
    ("llama-index", "call", "ValueError"),
    ("ai-sdk", "json", "AI_NoObjectGeneratedError"),
]


@pytest.mark.parametrize(("client", "case", "error"), FORMS)
def test_json_and_forced_calls_are_read_and_a_block_of_one_costs_one_request(answering, client, case, error):
    seen = seen_by(client, answering.url)
    assert seen[case] == (1, ["Ulm", 12])
    requests, outcome = seen[f"{case}, late"]
    assert requests == 1 and outcome["error"] == error, outcome


def test_a_failed_generation_is_asked_for_once(answering):
    requests, outcome = seen_by("openai", answering.url)["broken"]
    assert requests == 1 and outcome["error"] == "InternalServerError"


@pytest.mark.parametrize(
    ("client", "error"),
    [
        ("openai", "BadRequestError"),
        ("langchain", "OpenAIInvalidRequestError"),
        ("pydantic-ai", "ModelRequestRejectedError"),
        ("litellm", "BadRequestError"),
        ("llama-index", "BadRequestError"),
        ("ai-sdk", "AI_APICallError"),
    ],
)
@pytest.mark.parametrize("case", ["late", "first"])
def test_a_block_as_an_error_costs_one_request_too(failing, client, error, case):
    requests, outcome = seen_by(client, failing.url)[case]
    assert requests == 1 and outcome["error"] == error and REFUSAL in outcome["text"]


def test_a_stream_is_an_error_only_if_nothing_has_left(failing):
    seen = seen_by("openai", failing.url)
    assert seen["first, streamed"][0] == 1 and seen["first, streamed"][1]["error"] == "BadRequestError"
    requests, (text, reason, halted) = seen["late, streamed"]
    assert requests == 1 and text.endswith("\n\n" + REFUSAL) and reason == "content_filter" and halted
