"""Inspect AI itself, over guards that follow a script."""

import json

import pytest

from tests.integrations.program_runs import examples, outcomes

pytestmark = [pytest.mark.registry, pytest.mark.slow]

REFUSAL = "I can't help with that."
QUESTIONS = (
    {"id": 1, "prompt": "What is soil?", "response": "It is earth"},
    {
        "id": "two",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say a word"}],
        "response": "a b",
    },
)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspect")
    (folder / "questions.jsonl").write_text("".join(json.dumps(each) + "\n" for each in QUESTIONS), "utf-8")
    return outcomes("inspect_cases.py", "evaluators", folder, examples("inspect")[0], folder=folder)


def test_the_provider_is_found_by_its_name(seen):
    assert seen["found by its entry point"] == ["GuardedModel", "org/model {'probe': 'probe.safetensors'}"]


def test_an_answer_passes_whole_with_its_report(seen):
    passed = seen["passed"]
    assert (passed["completion"], passed["stop_reason"], passed["details"]) == ("a long answer", "stop", None)
    assert passed["report"]["halted"] is False and len(passed["report"]["timeline"]) == 6
    assert passed["usage"] == [11, 14]


def test_a_block_is_a_content_filter_with_details(seen):
    halted = seen["halted"]
    assert (halted["status"], halted["stop_reason"]) == ("success", "content_filter")
    assert halted["completion"] == f"a lo\n\n{REFUSAL}"
    assert halted["details"] == {
        "type": "anydepth",
        "category": "policy",
        "explanation": "Halted at depth 8 of the answer: the guard's score was 0.900.",
        "categories": [{"category": "policy", "level": None}],
    }
    assert halted["report"]["leak_tokens"] == 4 and halted["report"]["withheld_tokens"] == 4
    metadata = {"depth": 8, "score": 0.9, "source": "report", "reason": "policy"}
    assert halted["score"] == {"value": 1.0, "metadata": metadata}


def test_a_failed_check_is_a_block_and_says_so(seen):
    failed = seen["failed check"]
    assert failed["stop_reason"] == "content_filter" and failed["details"]["category"] == "error"
    assert failed["details"]["explanation"] == "Halted at depth 8 of the answer: a check failed."


def test_under_monitor_an_answer_is_not_cut(seen):
    report = seen["monitored"]["report"]
    assert seen["monitored"]["stop_reason"] == "stop" and (report["halted"], report["would_halt"]) == (False, True)


def test_a_block_can_be_an_error_of_inspects(seen):
    status, message = seen["refusal as an error"]
    assert status == "error" and message.startswith("ModelRefusalError") and "category policy" in message


def test_the_task_forces_answers_to_begin_with_so_many_words(seen):
    samples, mean = seen["prefills"]
    assert samples == [
        ["1-0", ["user", "assistant"], "stop", 0.0],
        ["1-2", ["user", "assistant", "assistant"], "content_filter", 1.0],
        ["two-0", ["system", "user", "assistant"], "stop", 0.0],
        ["two-2", ["system", "user", "assistant", "assistant"], "stop", 0.0],
    ]
    assert mean == 0.25


def test_the_task_and_the_provider_are_there_for_the_command_line(seen):
    assert seen["command line"] == ["success", "anydepth/deep_prefill", "anydepth/org/other", 0.25]
    assert seen["one number of words"] == ["1-3"]


def test_an_answer_of_another_provider_is_scanned_with_its_prefill(seen):
    first, second = seen["scanned"]
    assert first == [1.0, {"depth": 12, "score": 0.9, "source": "scan", "reason": "policy"}]
    assert second[0] == 0.0 and second[1]["source"] == "scan"


def test_an_answer_that_nobody_guarded_is_no_score(seen):
    status, message = seen["unscannable"]
    assert status == "error" and "the answer of mockllm/model has no report of a guard" in message


def test_the_example_of_the_page_runs(seen):
    assert seen["page"] == ["success", 0.0]


def test_sampling_options_reach_the_guard(seen):
    options, reasons = seen["sampling"]
    assert options == [
        {"seed": None, "do_sample": False},
        {"seed": 3, "temperature": 0.7, "do_sample": True},
        {"seed": None, "stop_strings": ["x"]},
    ]
    assert reasons == ["stop", "max_tokens", "stop"]


REFUSED = {
    "tools": "the provider anydepth/ has no tools, and the task has look",
    "image": "message 0 has a part of type image; the guard reads text only",
    "option": "num_choices=2 is no option of the provider anydepth/",
    "cache": "cache=True is no option of the provider anydepth/",
    "no number of words": "words is 'some'; give whole numbers from 0",
    "too many words": "no response of",
    "kept by name": "guard cannot be an argument of get_model(), which keeps models by name",
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_guarded_is_refused_by_name(seen, case):
    assert seen[case]["error"] == "ConfigError" and seen[case]["text"].startswith(REFUSED[case])
