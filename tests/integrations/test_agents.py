"""The agents of docs/integrations/agents.md, in an environment of their real programs, before a server that gates."""

import json
import os
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.server.process import ROOT, ServerProcess
from tests.server.venvs import python_with

pytestmark = [pytest.mark.registry, pytest.mark.slow]

HERE = Path(__file__).parent
PAGE = ROOT / "docs" / "integrations" / "agents.md"
PROGRAMS = [
    "mcp",
    "openai-agents",
    "openai-agents, stop",
    "langchain",
    "langchain, async",
    "inspect",
    "inspect, terminate",
]
STOPPING = ("openai-agents, stop", "inspect, terminate")
"""Programs whose run ends at a blocked call."""


@pytest.fixture(scope="module")
def audit_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("agents") / "audit.jsonl"


@pytest.fixture(scope="module")
def gate(audit_file: Path) -> Iterator[ServerProcess]:
    audit = {"kind": "jsonl", "path": str(audit_file), "text": True}
    with ServerProcess.scripted({"tools": {"format": "hermes"}, "audit": audit}) as running:
        yield running


@cache
def seen_by(program: str, url: str) -> dict[str, tuple[list[str], str]]:
    """By case: the files that were deleted, and what was told of it."""
    python = python_with("agents", HERE / "agents.txt")
    paths = {"PYTHONPATH": str(ROOT / "examples" / "agents"), "PYTHONDONTWRITEBYTECODE": "1"}
    quiet = {"OPENAI_AGENTS_DISABLE_TRACING": "1", "OPENAI_API_KEY": "none", "INSPECT_LOG_LEVEL": "error"}
    done = subprocess.run(
        [python, HERE / "agent_cases.py", program, PAGE, url],
        capture_output=True, text=True, timeout=600, check=False, env={**os.environ, **quiet, **paths},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    cases = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"case"')]
    return {each["case"]: (each["ran"], each["told"]) for each in cases}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_call_that_the_gate_allows_is_run_once(gate: ServerProcess, program: str) -> None:
    ran, told = seen_by(program, gate.url)["allowed"]
    assert ran == ["old.txt"], told
    assert "blocked" not in told


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("case", ["blocked", "no gate", "down"])
def test_a_call_that_is_blocked_or_was_not_judged_is_not_run(gate: ServerProcess, program: str, case: str) -> None:
    ran, told = seen_by(program, gate.url)[case]
    assert ran == [], told


TOLD = {
    "mcp": ("True blocked: {why}", "False deleted"),
    "openai-agents": ("blocked: {why}", "deleted"),
    "openai-agents, stop": ("stopped: {why}", "Let me look."),
    "langchain": ("error blocked: {why}", "success deleted"),
    "langchain, async": ("error blocked: {why}", "success deleted"),
    "inspect": ("success approval {why}", "success deleted"),
    "inspect, terminate": ("success user assistant", "success user assistant tool assistant"),
}
"""What is told of a blocked and of an allowed call."""
WHY = (
    "after the call of delete_file the score is 0.99, which reaches the threshold 0.5; "
    "before the call the score was 0.01"
)
DOWN = (
    "the call of delete_file was not judged (URLError: <urlopen error [Errno 111] Connection refused>), "
    "so it is not run"
)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_block_is_told_in_the_programs_own_terms(gate: ServerProcess, program: str) -> None:
    blocked, allowed = TOLD[program]
    seen = seen_by(program, gate.url)
    assert seen["blocked"][1] == blocked.format(why=WHY)
    assert seen["allowed"][1] == allowed
    assert seen["down"][1] == blocked.format(why=DOWN)
    assert program in STOPPING or "was not judged (there is no path '/nothing/v1/gate'" in seen["no gate"][1]


def test_a_conversation_with_an_image_in_it_is_not_judged_without_it(gate: ServerProcess) -> None:
    for ran, told in seen_by("inspect, image", gate.url).values():
        assert (ran, told) == ([], "reject messages with image in them cannot be judged")


@pytest.mark.parametrize(("program", "start"), [
    ("mcp", [["user", "Look after the files of the support team."]]),
    ("openai-agents", [["system", "Look after the files."], ["user", "tidy up"]]),
    ("langchain", [["system", "Look after the files."], ["user", "tidy up"], ["assistant", "Let me look."]]),
    ("inspect", [["user", "Tidy up."], ["assistant", "Let me look."]]),
])  # fmt: skip
def test_the_gate_reads_the_conversation(gate: ServerProcess, audit_file: Path, program: str, start: Any) -> None:
    seen_by.cache_clear()
    seen_by(program, gate.url)
    records = [json.loads(line) for line in audit_file.read_text("utf-8").splitlines()]
    judged = [record for record in records if record["kind"] == "gate"][-1]
    assert json.loads(judged["arguments"]) == {"path": "harm.txt"} and judged["tool"] == "delete_file"
    assert [[each["role"], each["content"]] for each in judged["messages"]] == start
