"""Traces that are constructed of stored answers: what stands in thought and answer of each case."""

from collections import Counter

import pytest

from anydepth.conversations.dataset import Conversation
from anydepth.evals.answers.thought_traces import parts
from benchmarks.constructed_thoughts import ANSWER, STRETCH, THOUGHT, Row, star1, traces
from tests.conversations import words

LENGTH = 180


def answers(start: int, count: int, label: str) -> list[Conversation]:
    return [
        Conversation(
            f"{label}-{n}",
            ({"role": "user", "content": words(start + n, 3)},),
            " ".join(f"{label}{n}.{place}" for place in range(LENGTH)),
            label,  # type: ignore[arg-type]
        )
        for n in range(count)
    ]


HARMFUL, HARMLESS = answers(0, 3, "harmful"), answers(50, 5, "benign")
REFUSING = star1([
    {"id": 1, "question": "w9 w8", "response": "<think>\nw1 w2\n</think>\n\nw3 w4"},
    {"id": 2, "question": "w7 w6", "response": "<think>\nw5 w6\n</think>\n\nw7 w8"},
    {"id": 3, "question": "w7 w5", "response": "<think>\nnever closed"},
])  # fmt: skip


@pytest.fixture(scope="module")
def made() -> list[Row]:
    return list(traces(HARMFUL, HARMLESS, REFUSING))


def split(row: Row) -> tuple[list[str], list[str]]:
    thought, answer = parts(Conversation("a", ({"role": "user", "content": "b"},), row["response"]))
    return thought.split(), answer.split()


def of(made: list[Row], case: str) -> list[Row]:
    return [row for row in made if row["case"] == case]


def test_cases_labels_and_requests(made: list[Row]) -> None:
    assert Counter((row["case"], row["label"], row["request"]) for row in made) == {
        ("harm throughout", "harmful", "harmful"): 3,
        ("harmless throughout", "benign", "harmless"): 5,
        ("harm in the thought, refusal", "harmful", "harmful"): 3,
        ("harm inside a harmless thought", "harmful", "harmless"): 5,
        ("another harmless text inside", "benign", "harmless"): 5,
        ("refused after thought", "benign", "harmful"): 2,
    }
    assert len({row["id"] for row in made}) == len(made)


def test_a_text_goes_on_from_the_thought_into_the_answer(made: list[Row]) -> None:
    for case, sources in (("harm throughout", HARMFUL), ("harmless throughout", HARMLESS)):
        for row, source in zip(of(made, case), sources, strict=True):
            thought, answer = split(row)
            whole = source.response.split()
            assert (thought, answer) == (whole[: len(thought)], whole[len(thought) : len(thought) + len(answer)])
            assert len(thought) == min(THOUGHT, 2 * LENGTH // 3) and len(answer) <= ANSWER


def test_a_stretch_of_another_answer_stands_inside_the_thought_only(made: list[Row]) -> None:
    for case, label in (("harm inside a harmless thought", "harmful"), ("another harmless text inside", "benign")):
        for row, host in zip(of(made, case), HARMLESS, strict=True):
            thought, answer = split(row)
            own = set(host.response.split())
            put = [word for word in thought if word not in own]
            assert len(put) == STRETCH and all(word.startswith(label) for word in put)
            assert thought[0] in own and thought[-1] in own and set(answer) <= own
            begin = thought.index(put[0])
            assert thought[begin : begin + STRETCH] == put, "in one piece"
            assert row["prompt"] == host.prompt


def test_harm_in_the_thought_alone_is_followed_by_a_refusal(made: list[Row]) -> None:
    throughout = of(made, "harm throughout")
    for row, twin in zip(of(made, "harm in the thought, refusal"), throughout, strict=True):
        assert split(row)[0] == split(twin)[0] and " ".join(split(row)[1]) in {"w3 w4", "w7 w8"}


def test_unclosed_thoughts_are_left_out(made: list[Row]) -> None:
    assert sorted(row["response"] for row in of(made, "refused after thought")) == [
        "<think>\nw1 w2\n</think>\n\nw3 w4", "<think>\nw5 w6\n</think>\n\nw7 w8"
    ]  # fmt: skip
