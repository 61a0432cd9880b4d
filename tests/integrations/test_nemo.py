"""NeMo Guardrails itself, with the configuration of examples/nemo, a scripted model and a guarded server."""

import json

import pytest

from tests.integrations.program_runs import ROOT, examples, outcomes
from tests.server.process import ServerProcess

pytestmark = [pytest.mark.registry, pytest.mark.slow]

CONFIG = ROOT / "examples" / "nemo" / "config"
FINE = "all is well here and goes on for a while"
REFUSAL = "I can't help with that."
UNCHECKED = "I can't answer now: the message could not be checked."
INTERNAL = "I'm sorry, an internal error has occurred."


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nemo")
    (folder / "examples").symlink_to(ROOT / "examples")
    with ServerProcess.scripted() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYDEPTH_API_BASE", f"{server.url}/v1")
        patch.setenv("UPSTREAM_API_KEY", "none")
        return outcomes("nemo_cases.py", "evaluators", CONFIG, examples("nemo")[0], folder=folder)


def frame(chunk: str) -> tuple[str, str]:
    error = json.loads(chunk)["error"]
    return error["type"], error["code"]


def test_what_is_harmless_passes(seen):
    assert seen["fine"] == ["assistant", FINE, 1]
    chunks, calls = seen["fine, streamed"]
    assert "".join(chunks) == FINE and len(chunks) == 10 and calls == 1


def test_a_flagged_answer_is_the_refusal(seen):
    assert seen["late"] == ["assistant", REFUSAL, 1]


def test_a_flagged_answer_leaves_no_token_of_a_stream(seen):
    (only,), calls = seen["late, streamed"]
    assert frame(only) == ("guardrails_violation", "content_blocked") and calls == 1


def test_a_flagged_message_reaches_no_model(seen):
    assert seen["request"] == ["assistant", REFUSAL, 0]
    assert seen["request, streamed"] == [[REFUSAL], 0]


def test_a_block_can_be_an_exception_of_nemos(seen):
    said = {
        "exception": "answer was flagged by anydepth.",
        "exception of a request": "message was flagged by anydepth, or",
    }
    for case, kind in (("exception", "OutputRailException"), ("exception of a request", "InputRailException")):
        role, event, _ = seen[case]
        assert (role, event["type"]) == ("exception", kind) and said[case] in event["message"]


def test_without_a_server_no_model_is_asked(seen):
    assert seen["nobody"] == ["assistant", UNCHECKED, 0]
    (only,), calls = seen["nobody, streamed"]  # the rail of the answer reads what the bot says instead, in vain
    assert frame(only) == ("internal_error", "rail_execution_failure") and calls == 0


def test_an_answer_that_cannot_be_scanned_does_not_leave(seen):
    assert seen["no scan of the answer"] == ["assistant", INTERNAL, 1]
    (only,), _ = seen["no scan of the answer, streamed"]
    assert frame(only) == ("internal_error", "rail_execution_failure")


REFUSED = {
    "parallel": "rails.output.parallel is true",
    "parallel input": "rails.input.parallel is true",
    "stream first": "rails.output.streaming.stream_first is true",
    "exceptions and streams": "enable_rails_exceptions is true and rails.output.streaming.enabled too",
    "large context": "rails.output.streaming.context_size is 10 and chunk_size 10",
    "no context": "rails.output.streaming.context_size is 0 and chunk_size 10",
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_configuration_that_lets_text_pass_is_refused(seen, case):
    assert seen[case]["error"] == "ValueError" and seen[case]["text"].startswith(REFUSED[case])


def test_windows_are_warned_of_and_end_where_one_is_flagged(seen):
    (warning,), chunks = seen["windows"]
    assert "chunk_size is 4: each window of a stream is read without the beginning" in warning
    assert "".join(chunks[:-1]) == "all is well here, and then comes "
    assert frame(chunks[-1]) == ("guardrails_violation", "content_blocked")


def test_the_example_of_the_page_runs(seen):
    reply, streamed = seen["page"]
    assert reply == FINE and frame(streamed) == ("guardrails_violation", "content_blocked")
