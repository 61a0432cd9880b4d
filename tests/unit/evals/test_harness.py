"""Questions are asked and marked by `lm_eval`."""

import sys
from collections.abc import Mapping
from typing import Any

import pytest

from anydepth.conversations.dataset import Conversation
from anydepth.errors import MissingExtra
from anydepth.evals.instruments.harness import TASKS, mark, task_of

GOLD = {
    "gsm8k": ("gsm8k", "1,250"),
    "math": ("math500", r"\frac{1}{2}"),
    "mmlu": ("mmlu-marketing", "C"),
    "bbh-letter": ("bbh-snarks", "(B)"),
    "bbh-yes-no": ("bbh-navigate", "Yes"),
    "bbh-truth": ("bbh-boolean_expressions", "False"),
    "bbh-validity": ("bbh-formal_fallacies", "invalid"),
    "bbh-number": ("bbh-object_counting", "-7"),
    "bbh-text": ("bbh-word_sorting", "apple pear quince"),
}
"""Task -> a source and a reference answer that it takes."""


def question(source: str, answer: str, number: int = 0) -> Conversation:
    messages = ({"role": "user", "content": f"A question, number {number}."},)
    return Conversation(f"{source}-{number}", messages, source=source, tags={"answer": answer})


def marked(task: str, answer: str) -> bool:
    row = question(*GOLD[task])
    return mark([row], lambda asked: dict.fromkeys(asked, answer))[row.id]


@pytest.mark.parametrize("task", GOLD)
def test_a_question_goes_to_its_task(task: str) -> None:
    found = task_of(question(*GOLD[task]))
    assert found is not None and found.name == task


def test_every_task_is_tried() -> None:
    assert set(GOLD) == {task.name for task in TASKS}


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        ("gsm8k", "There are 3 of 5.\nAnswer: 1250"),
        ("gsm8k", "So the answer is $1,250."),
        ("math", r"Half of it: $\boxed{\frac12}$."),
        ("math", r"First \boxed{3}, then \boxed{\frac{1}{2}}"),
        ("mmlu", "C. Because it is so."),
        ("mmlu", "The correct answer is **C**: a reason."),
        ("mmlu", "A lot is known about this. Answer: C"),
        ("bbh-letter", "(A) is wrong.\nAnswer: (B)"),
        ("bbh-letter", "The answer is B."),
        ("bbh-yes-no", "No? We come back.\nAnswer: yes"),
        ("bbh-truth", "True and False is\nAnswer: False."),
        ("bbh-validity", "It looks valid, but it is invalid."),
        ("bbh-number", "Answer: -7"),
        ("bbh-text", "Sorted:\nAnswer: apple pear quince"),
        ("bbh-text", "apple pear quince"),
    ],
)
def test_right_answers(task: str, answer: str) -> None:
    assert marked(task, answer)


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        *[(task, wrong) for task in GOLD for wrong in ("", "I can't help with that.")],
        ("gsm8k", "1250, no: 1251"),
        ("math", r"\boxed{\frac{1}{3}}"),
        ("math", r"\boxed{\frac{1}{2}"),
        ("mmlu", "Cows are animals."),
        ("mmlu", "A. Because C is not."),
        ("bbh-letter", "(B), or rather (C)"),
        ("bbh-yes-no", "Yes. Answer: no"),
        ("bbh-validity", "valid"),
        ("bbh-number", "7"),
        ("bbh-text", "apple pear quince\nand so on"),
    ],
)
def test_wrong_answers(task: str, answer: str) -> None:
    assert not marked(task, answer)


def test_all_questions_are_asked_at_once_as_they_are_meant() -> None:
    rows = [question(*GOLD[task], number) for number, task in enumerate(GOLD)]
    seen: list[Mapping[str, str]] = []

    def answers(asked: Mapping[str, str]) -> dict[str, str]:
        seen.append(dict(asked))
        return dict.fromkeys(asked, "Answer: C")

    right = mark(rows, answers)
    assert len(seen) == 1 and set(seen[0]) == set(right) == {row.id for row in rows}
    for number, task in enumerate(TASKS):
        (row,) = [row for row in rows if task_of(row) == task]
        assert seen[0][row.id] == f"{row.prompt}\n\n{task.ask}".strip()
        assert right[row.id] == (task.name == "mmlu"), number


def test_what_no_task_takes_is_left_out() -> None:
    code = question("humaneval", "add")
    assert task_of(code) is None
    assert mark([code], lambda asked: pytest.fail("asked")) == {}


def test_nothing_is_shown_and_what_answering_shows_is(capfd: pytest.CaptureFixture[str]) -> None:
    def answers(asked: Mapping[str, str]) -> dict[str, str]:
        sys.stderr.write("working")
        return dict.fromkeys(asked, "1250")

    mark([question(*GOLD["gsm8k"])], answers)
    assert capfd.readouterr() == ("", "working")


def test_without_the_package_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.evaluator", None)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtra, match=r"pip install 'anydepth\[eval\]'"):
        mark([question(*GOLD["gsm8k"])], lambda asked: dict(asked))


def test_an_answer_that_is_missing_is_an_error() -> None:
    def answers(asked: Mapping[str, str]) -> dict[str, Any]:
        return {}

    with pytest.raises(KeyError):
        mark([question(*GOLD["gsm8k"])], answers)
