"""`ChatAnydepth` under the real LangChain, over a scripted guard."""

from functools import cache
from typing import Any

import pytest

from tests.integrations.program_runs import example, outcomes, run

pytestmark = [pytest.mark.registry, pytest.mark.slow]

FINE = "all is well here, and it stays so"
BLOCKED = "all is w\n\nNo."  # checked each 8 tokens, halted at depth 16


@cache
def seen() -> dict[str, Any]:
    return outcomes("langchain_cases.py", "apps")


def test_an_answer_has_its_finish_reason_report_and_usage():
    usage = {"input_tokens": 4, "output_tokens": 34, "total_tokens": 38}  # the end of turn is a token
    assert seen()["fine"] == [FINE, "stop", False, 0, usage]


@pytest.mark.parametrize("case", ["late", "async"])
def test_a_block_is_visible_and_nothing_left_before_its_check(case):
    assert seen()[case] == [BLOCKED, "content_filter", True, 16]


def test_a_request_that_is_blocked_at_once_shows_the_refusal_only():
    assert seen()["first"] == ["No.", "content_filter", True, 0]


def test_streams_show_the_same_and_callbacks_hear_no_more():
    pieces, reason, halted, depth, heard = seen()["late, streamed"]
    assert "".join(pieces) == BLOCKED and (reason, halted, depth) == ("content_filter", True, 16)
    assert heard == pieces and len(pieces) > 2
    assert seen()["late, streamed, async"] == [BLOCKED, "content_filter"]
    pieces, reason, *_ = seen()["streamed"]
    assert "".join(pieces) == FINE and reason == "stop"


def test_a_stream_that_is_left_closes_its_session():
    assert seen()["stopped"] == "closed"


def test_a_monitored_answer_is_whole_and_a_failed_check_halts():
    assert seen()["monitored"] == [FINE, "stop", False, 16]
    assert seen()["failed check"] == ["all \n\nNo.", "content_filter", True, 8]


def test_requests_from_several_threads_take_turns():
    assert seen()["batch"] == [FINE] * 4


def test_tool_calls_leave_with_an_answer_that_ended_unhalted():
    assert seen()["call"] == ["Let me look. ", [["weather", {"city": "Ulm"}]], "tool_calls"]
    assert seen()["call, late"] == ["Let me look. \n\nNo.", [], "content_filter"]


@pytest.mark.parametrize("case", ["agent", "agent, streamed"])
def test_an_agent_runs_no_call_of_a_blocked_answer(case):
    assert seen()[case] == [[], "Let me look. \n\nNo."]


def test_messages_and_options_reach_the_guard():
    prompt, prefill, options = seen()["prompt"]
    assert prompt == (
        "<|system|>be kind<|end|><|user|>a \nb<|end|><|assistant|><|end|><|tool|>sunny<|end|><|user|>and now?<|end|>"
        "<|assistant|>"
    )
    assert prefill == 0
    assert options == {"max_new_tokens": 512, "seed": None, "temperature": 0.5, "stop_strings": ["stay"]}


def test_a_last_message_of_the_assistant_is_a_prefill():
    prompt, prefill, options = seen()["prefill"]
    assert prompt == "<|user|>q<|end|><|assistant|>Well" and prefill == 4
    assert options == {"max_new_tokens": 4, "seed": 3}


def test_a_stop_text_is_no_part_of_the_answer():
    assert seen()["stop"][:2] == ["all is well here", "stop"]


def test_the_global_cache_hands_out_no_answer_of_another_guard():
    assert seen()["cached"] == "content_filter"


@pytest.mark.parametrize(
    ("case", "error", "words"),
    [
        ("picture", "PromptError", "only text parts can be guarded"),
        ("forced", "ConfigError", "tool_choice is 'any'"),
        ("forced later", "ConfigError", "tool_choice is 'weather'"),
        ("json", "ConfigError", "tool_choice is 'any'"),
        ("no format", "ConfigError", "tool_format is 'auto', which gives no format of calls"),
    ],
)
def test_what_cannot_be_done_is_an_error(case, error, words):
    assert seen()[case]["error"] == error and words in seen()[case]["text"]


def test_the_example_of_the_page_prints_what_the_page_says():
    code, prints = example("langchain")
    done = run(["-c", code], "apps")
    assert done.returncode == 0, done.stderr
    assert done.stdout == prints
