"""The guarantees of the README on the library and the server."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from anydepth import Every, Guard, Threshold
from tests.contract.hosts import REFUSAL, Host, Library, Server
from tests.contract.promises import *  # noqa: F403 - the tests themselves
from tests.vllm import model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model.build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def probe(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model.planted_probe(tmp_path_factory.mktemp("probe") / "probe.safetensors", model.Reference(folder))


@pytest.fixture(scope="module", params=["library", "server"])
def host(request: pytest.FixtureRequest, folder: Path, probe: Path, tmp_path_factory: pytest.TempPathFactory) -> Host:
    if request.param == "library":
        return Library(folder, probe)
    return Server(folder, probe, tmp_path_factory.mktemp("audit"))


CALL = '<tool_call>{"name":"look","arguments":{}}</tool_call>'
LENGTH = 40
FIVE = {"interval": 5}


@dataclass(frozen=True)
class Caller:
    """A server whose model writes a call in answer to `request`.

    Attributes:
        end: Depth behind the call.
        threshold: What no check reaches until one has passed all of the call, and a later check reaches.
    """

    server: Server
    request: str
    end: int
    threshold: float


def place_of_call(guard: Guard) -> tuple[str, int, int, float]:
    """A request, a token that its answer has once, the depth behind that, and the threshold."""
    for message in model.PROMPTS:
        request = message[0]["content"]
        answer = guard.generate(request, max_new_tokens=LENGTH, do_sample=False)
        scores = {check.depth: check.score for check in answer.checks}
        for end in range(2, 20):
            word = answer.token_ids[end - 1]
            passed = next(depth for depth in scores if depth >= end)
            before = max(score for depth, score in scores.items() if depth <= passed)
            later = max((score for depth, score in scores.items() if depth > passed), default=0.0)
            if answer.token_ids.count(word) == 1 and later > before + 1e-3:
                return request, word, end, (before + later) / 2
    raise AssertionError("no answer of the tiny model has room for a call; plant another probe")


@pytest.fixture(scope="module")
def caller(folder: Path, probe: Path, tmp_path_factory: pytest.TempPathFactory) -> Caller:
    """One word of an answer has another name in this model's tokenizer: a tool call."""
    guard = Guard.from_pretrained(folder, probe=probe, schedule=Every(5), policy=Threshold(1.0))
    request, word, end, threshold = place_of_call(guard)
    place = tmp_path_factory.mktemp("calling") / "model"
    shutil.copytree(folder, place)
    file = place / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {CALL if number == word else name: number for name, number in vocabulary.items()}
    file.write_text(json.dumps(content))
    assert AutoTokenizer.from_pretrained(place).decode([word]) == CALL
    return Caller(Server(place, probe, tmp_path_factory.mktemp("audit")), request, end, threshold)


def test_a_call_leaves_whole_once_its_answer_has_ended(caller: Caller) -> None:
    seen = caller.server.answer(caller.request, tokens=LENGTH, guard=FIVE, tools=["look"])
    assert [call["function"] for call in seen.calls] == [{"name": "look", "arguments": "{}"}]
    assert not seen.halted and "tool_call" not in seen.text


@pytest.mark.parametrize("release", ["hold", "eager"])
def test_a_call_in_an_answer_that_is_halted_never_leaves(caller: Caller, release: str) -> None:
    """Also where checks have passed all of the call's tokens before the halt."""
    policy = {"name": "threshold", "threshold": caller.threshold}
    guard = {**FIVE, "release": release, "policy": policy}
    seen = caller.server.answer(caller.request, tokens=LENGTH, guard=guard, tools=["look"])
    assert seen.halted and seen.text.endswith(REFUSAL)
    assert seen.depths[-1] > next(depth for depth in seen.depths if depth >= caller.end), "halted within the call"
    assert not seen.calls
