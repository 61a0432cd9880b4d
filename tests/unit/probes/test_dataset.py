"""Rows become conversations, or an error that says where and why, without a word of what they hold."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anydepth.conversations.dataset import Columns, Conversation, Origin, conversations, normalise
from anydepth.errors import ConfigError, RecordError

ORIGIN = Origin("garden.jsonl", "garden")


def read(*rows: dict, columns: Columns | None = None, origin: Origin = ORIGIN) -> list[Conversation]:
    return conversations(
        ((f"line {number}", row) for number, row in enumerate(rows, start=1)), columns=columns, origin=origin
    )


def test_the_normalised_form_is_read() -> None:
    (found,) = read(
        {"id": 7, "source": "pond", "prompt": "How deep?", "response": "A metre.", "label": "Benign", "goal": "depth"}
    )
    assert (found.id, found.source, found.prompt, found.response) == ("7", "pond", "How deep?", "A metre.")
    assert (found.label, found.licence, found.tags) == ("benign", "unknown", {"goal": "depth"})


def test_a_goal_beside_a_prompt_is_a_tag() -> None:
    assert read({"prompt": "wrapped", "response": "x", "goal": "plain"})[0].prompt == "wrapped"
    assert read({"goal": "plain", "target": "Sure"})[0].tags == {"target": "Sure"}


def test_what_a_row_does_not_say_comes_from_the_origin() -> None:
    origin = Origin("x", "garden", {"garden": "MIT"}.get, {"revision": "abc"})
    (found,) = read({"prompt": "How deep?"}, origin=origin)
    assert (found.source, found.licence, found.response, found.label) == ("garden", "MIT", "", None)
    assert found.tags == {"revision": "abc"}
    assert read({"prompt": "q", "license": "CC0-1.0"}, origin=origin)[0].licence == "CC0-1.0"


def test_messages_end_with_the_user_and_a_last_answer_is_the_response() -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "How"}, {"type": "text", "text": "deep?"}], "ip": "1.2"},
        {"role": "assistant", "content": "A metre."},
    ]
    (found,) = read({"messages": turns})
    assert found.messages == ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "How\ndeep?"})
    assert (found.prompt, found.response) == ("How\ndeep?", "A metre.")
    assert read({"messages": json.dumps(turns)})[0].messages == found.messages
    (shared,) = read({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]})
    assert (shared.prompt, shared.response) == ("q", "a")


def test_known_layouts_need_no_columns() -> None:
    two = {"prompt": "q", "response_0": "a", "response_1": "b", "is_response_0_safe": True, "is_response_1_safe": False}
    assert [(row.response, row.label) for row in read(two)] == [("a", "benign"), ("b", "harmful")]
    assert read({"prompt": "q", "response": "a", "is_safe": False, "category": {}})[0].label == "harmful"
    (alpaca,) = read({"instruction": "Sort.", "input": "c a b", "output": "a b c"})
    assert (alpaca.prompt, alpaca.response) == ("Sort.\n\nc a b", "a b c")


def test_columns_say_which_is_which() -> None:
    rows = read(
        {"n": 1, "hard": None, "easy": "e", "reply": "a", "bad": 1.0, "choices": ["x", "y"], "level": 3, "rest": "r"},
        {"n": 2, "hard": "h", "easy": "e", "reply": "a", "bad": False, "choices": [], "level": None},
        columns=Columns(
            prompt=("hard", "easy"), response="reply", label="bad", labels={"1": "harmful", "false": None}, id="n",
            tags=("choices", "level", "absent"),
        ),
    )  # fmt: skip
    assert [(row.prompt, row.label) for row in rows] == [("e", "harmful"), ("h", None)]
    assert rows[0].tags == {"choices": '["x", "y"]', "level": "3"}


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"text": "hello"}, "the columns text; needs either prompt or messages"),
        ({"prompt": "secret", "messages": []}, "needs either prompt or messages"),
        ({"prompt": " "}, "column 'prompt' is empty"),
        ({"prompt": 3.5}, "column 'prompt' is a float, not text"),
        ({"prompt": ["secret"]}, "column 'prompt' is a list, not text"),
        ({"prompt": "secret", "response": {"a": 1}}, "column 'response' is a dict, not text"),
        ({"prompt": "secret", "label": "maybe"}, "column 'label' is 'maybe', which is not one of harmful"),
        ({"prompt": "secret", "label": 1}, "column 'label' is '1'"),
        ({"prompt": "secret \ud800"}, "column 'prompt' holds half a surrogate pair"),
        ({"prompt": "secret", "label": ["harmful"]}, "column 'label' is a list, not one of harmful"),
        ({"prompt": "secret", "label": {"harmful": True}}, "column 'label' is a dict, not one of harmful"),
        ({"prompt": float("nan")}, "the columns prompt; needs either prompt or messages"),
        ({"messages": [{"role": "assistant", "content": "secret"}]}, "has no user turn"),
        ({"messages": [{"role": "user", "content": {"secret": 1}}]}, "message 1 (role user) has a content that is not"),
        ({"messages": [{"content": "secret"}]}, 'is not an object with "role"'),
        ({"messages": "secret"}, "not a JSON list of messages"),
        (
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "response": "b"},
            "ends with an answer and there is a response",
        ),
    ],
)
def test_errors_name_the_place_and_never_quote_the_text(row: dict, told: str) -> None:
    with pytest.raises(RecordError) as caught:
        read({"prompt": "fine"}, row)
    assert str(caught.value).startswith("garden.jsonl, line 2: ")
    assert told in str(caught.value)
    assert "secret" not in str(caught.value)


def test_what_is_empty_is_missing() -> None:
    nothing = float("nan")
    rows = read(
        {"prompt": "x", "messages": None, "label": None},
        {"prompt": "y", "messages": nothing, "response": nothing, "label": nothing, "id": nothing},
        {"prompt": "z", "label": " "},
        {"prompt": "w", "label": " Benign "},
    )
    assert [(row.prompt, row.response, row.label) for row in rows] == [
        ("x", "", None), ("y", "", None), ("z", "", None), ("w", "", "benign"),
    ]  # fmt: skip


def test_one_text_with_two_labels_is_refused() -> None:
    first = {"prompt": "secret", "response": "a", "label": "benign"}
    assert len(read(first, {**first, "id": "again"}, {**first, "label": None}, {**first, "response": "b"})) == 4
    with pytest.raises(RecordError) as caught:
        read(first, {"prompt": "other"}, {**first, "label": "harmful", "id": "x"})
    assert "garden.jsonl, line 3: the same text as line 1, which says benign where this says harmful" in str(
        caught.value
    )
    assert "secret" not in str(caught.value)


def test_where_annotators_disagree_the_text_has_no_label(caplog: pytest.LogCaptureFixture) -> None:
    row = {"prompt": "q", "response": "a", "label": "benign"}
    rows = read(
        row, {**row, "label": "harmful"}, {"prompt": "r", "label": "harmful"}, origin=replace(ORIGIN, annotated=True)
    )
    assert [each.label for each in rows] == [None, None, "harmful"]
    assert "garden.jsonl: 1 texts are labelled harmful and benign" in caplog.text


def test_the_tables_that_harmbench_and_strongreject_publish_are_read() -> None:
    (harmbench,) = read(
        {"Behavior": "Name a pond.", "FunctionalCategory": "standard", "SemanticCategory": "ponds", "Tags": None,
         "ContextString": None, "BehaviorID": "name_a_pond"},
    )  # fmt: skip
    assert (harmbench.prompt, harmbench.id, harmbench.label) == ("Name a pond.", "name_a_pond", None)
    assert harmbench.tags == {"FunctionalCategory": "standard", "SemanticCategory": "ponds"}
    (strongreject,) = read({"category": "ponds", "source": "us", "forbidden_prompt": "Name a pond."})
    assert (strongreject.prompt, strongreject.source) == ("Name a pond.", "garden")
    assert strongreject.tags == {"category": "ponds", "source": "us"}
    (alpaca,) = read({"instruction": "Sort.", "input": None, "output": "a"})
    assert alpaca.prompt == "Sort.", "what belongs to a prompt may be empty"


def test_ids_are_unique_and_made_from_the_content() -> None:
    with pytest.raises(RecordError, match="line 2: id 'a' was used on line 1 already"):
        read({"id": "a", "prompt": "x"}, {"id": "a", "prompt": "y"})
    rows = [{"prompt": "x"}, {"prompt": "y"}, {"prompt": "x"}]
    first, second, third = (row.id for row in read(*rows))
    assert third == f"{first}-2"
    assert [row.id for row in read(rows[1], rows[0])] == [second, first]


def test_a_column_that_is_not_there_is_named() -> None:
    with pytest.raises(RecordError, match="has no column 'reply'; it has prompt"):
        read({"prompt": "x"}, columns=Columns(response="reply"))


def test_columns_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="neither a prompt nor messages"):
        Columns(prompt=None)
    with pytest.raises(ConfigError, match="1 answers and 2 labels"):
        Columns(response="a", label=("b", "c"))
    with pytest.raises(ConfigError, match="mean 'bad'"):
        Columns(labels={"1": "bad"})  # pyright: ignore[reportArgumentType]


def test_a_conversation_checks_itself() -> None:
    with pytest.raises(RecordError, match="does not end with the user's turn"):
        Conversation("a", ({"role": "assistant", "content": "x"},))
    with pytest.raises(RecordError, match="label 'bad'"):
        Conversation("a", ({"role": "user", "content": "x"},), label="bad")  # pyright: ignore[reportArgumentType]


def test_prompts_are_compared_normalised() -> None:
    def key(text: str) -> str:
        return Conversation("a", ({"role": "user", "content": text},)).prompt_key

    assert key("How  deep is\nthe Pond?") == key("how deep, is the “pond”") == key("Ｈow deep is the pond!")
    assert key("2+2") != key("2=2")
    assert key("कि") != key("के")
    assert key("?!") != key("...")
    assert key("How deep?") == "f4e6410007993b46", "keys are stored beside activations and must not change"


@given(st.text())
def test_normalising_twice_is_normalising_once(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)
