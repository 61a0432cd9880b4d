"""The model's own answers: what is asked of it, how its text is judged, and going on after a kill."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from anydepth.backends import batch
from anydepth.conversations.corpora import load
from anydepth.conversations.dataset import Conversation
from anydepth.errors import ConfigError
from anydepth.probes.recipe.own_answers import AnswerOptions, Written, load_answers, write_answers
from anydepth.testing import END, ScriptedBackend

REFUSAL = "I'm sorry, but I can't help with that."


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "ROWS", 16)


class Writer(ScriptedBackend):
    """Answers by the prompt's text: `says` maps a question, or the prefix it is given, to what follows."""

    def __init__(self, says: dict[str, str], *, die_after: int | None = None, **options: Any) -> None:
        super().__init__(["x"], **options)
        self.says, self.die_after = says, die_after
        self.opened: list[tuple[list[str], dict[str, Any]]] = []

    def open(self, prompts: Sequence[Any], *, max_new_tokens: int, seed: int | None = None, **options: Any) -> Any:
        if self.die_after is not None and len(self.opened) >= self.die_after:
            raise KeyboardInterrupt
        texts = [self.decode_text(prompt.ids) for prompt in prompts]
        self.opened.append((texts, {"max_new_tokens": max_new_tokens, "seed": seed, **options}))
        found = [next((say for key, say in self.says.items() if key in text), "well") for text in texts]
        self.answers = [(*text.encode(), END) for text in found]
        return super().open(prompts, max_new_tokens=max_new_tokens, seed=seed, **options)


def talk(name: str, response: str = "", label: Any = "benign", **facts: Any) -> Conversation:
    question = facts.pop("question", f"question {name}")
    return Conversation(name, ({"role": "user", "content": question},), response, label, "s", "MIT", **facts)


def write(
    tmp_path: Path, talks: Sequence[Conversation], says: dict[str, str], **options: Any
) -> tuple[Written, Writer]:
    backend = Writer(says)
    return write_answers(backend, talks, tmp_path / "own.jsonl", options=AnswerOptions(**options)), backend


def own(tmp_path: Path) -> dict[str, Conversation]:
    return {each.id.rpartition("-")[0]: each for each in load(tmp_path / "own.jsonl")}


def test_a_benign_prompt_gets_the_models_own_answer(tmp_path: Path) -> None:
    given = talk("a", "somebody else's words", tags={"category": "cooking", "generator": "another"})
    report, backend = write(tmp_path, [given], {"question a": " my own words"})
    found = own(tmp_path)["a+own"]
    assert found.response == "my own words" and found.messages == given.messages
    assert (found.label, found.source, found.licence) == ("benign", "s", "MIT")
    assert found.prompt_key == given.prompt_key
    assert found.tags == {
        "category": "cooking",
        "generator": "scripted",
        "on_policy": "answer",
        "prefix_tokens": "0",
        "finish_reason": "stop",
    }
    assert "somebody" not in backend.opened[0][0][0], "the stored answer was shown to the model"
    assert (report.answers, report.continuations, report.left_out) == (1, 0, [])
    assert report.tokens == len(" my own words")


def test_a_harmful_answer_is_continued_from_its_beginning(tmp_path: Path) -> None:
    given = talk("h", "step one is this and then that", "harmful")
    report, backend = write(tmp_path, [given], {"step one": " another thing"}, prefix_tokens=(8,))
    found = own(tmp_path)["h+own"]
    assert found.response == "step one another thing" and found.label == "harmful"
    assert found.tags["on_policy"] == "continuation" and found.tags["prefix_tokens"] == "8"
    assert backend.opened[0][0][0].endswith("step one")
    assert report.continuations == 1


def test_never_more_than_half_of_an_answer_is_given(tmp_path: Path) -> None:
    write(tmp_path, [talk("h", "abcdef", "harmful")], {"abc": "!"}, prefix_tokens=(50,))
    assert own(tmp_path)["h+own"].response == "abc!"


def test_a_prefix_ends_with_a_whole_character(tmp_path: Path) -> None:
    write(tmp_path, [talk("h", "aé€bcdefgh", "harmful")], {"aé": "z"}, prefix_tokens=(4,))
    assert own(tmp_path)["h+own"].response == "aéz"


def test_prefixes_are_chosen_by_the_id(tmp_path: Path) -> None:
    talks = [talk(f"h{n}", "x" * 60, "harmful") for n in range(30)]
    write(tmp_path, talks, {}, prefix_tokens=(3, 9))
    lengths = {key: each.tags["prefix_tokens"] for key, each in own(tmp_path).items()}
    assert set(lengths.values()) == {"3", "9"}
    write(tmp_path / "again", talks[::-1], {}, prefix_tokens=(3, 9))
    assert {key: each.tags["prefix_tokens"] for key, each in own(tmp_path / "again").items()} == lengths


def test_own_answers_that_refuse_or_are_empty_are_kept_and_tagged(tmp_path: Path) -> None:
    says = {"question a": REFUSAL, "question b": " ", "question c": "gladly"}
    report, _ = write(tmp_path, [talk("a"), talk("b"), talk("c")], says)
    found = own(tmp_path)
    assert found["a+own"].tags["refusal"] == found["b+own"].tags["empty"] == "true"
    assert not {"refusal", "empty"} & set(found["c+own"].tags)
    assert (report.answers, report.refused, report.empty) == (3, 1, 1)
    assert {each.label for each in found.values()} == {"benign"}


@pytest.mark.parametrize("text", [f" {REFUSAL}", f" then mix. {REFUSAL}", f" then\n\n{REFUSAL}"])
def test_a_continuation_that_refuses_is_left_out_and_named(tmp_path: Path, text: str) -> None:
    talks = [talk("h", "step one is", "harmful"), talk("i", "stop two is", "harmful")]
    report, _ = write(tmp_path, talks, {"step": text, "stop": " fine"}, prefix_tokens=(5,))
    assert set(own(tmp_path)) == {"i+own"} and report.continuations == 1
    assert report.left_out == [("h+own", "the model refuses in its continuation")]


def test_an_answer_to_what_may_be_a_harmful_prompt_counts_only_if_it_refuses(tmp_path: Path) -> None:
    talks = [
        talk("a", "fine", question="the same"),
        talk("h", "harm harm", "harmful", question="The same!"),
        talk("b", REFUSAL),
        talk("c", REFUSAL),
    ]
    says = {"harm": " more", "question c": REFUSAL}
    report, _ = write(tmp_path, talks, says, prefix_tokens=(4,))
    assert set(own(tmp_path)) == {"h+own", "c+own"}
    assert sorted(report.left_out) == [
        ("a+own", "the model's answer does not refuse and its prompt is among the harmful ones"),
        ("b+own", "the model's answer does not refuse and its stored answer refuses"),
    ]


def test_what_the_model_cannot_write_is_named(tmp_path: Path) -> None:
    backend = Writer({})
    backend.context_length = 40  # pyright: ignore[reportAttributeAccessIssue]
    talks = [
        talk("a"),
        talk("again", question="question a"),
        talk("n", label=None),
        talk("h", label="harmful"),
        talk("long", question="x" * 60),
        talk("a", question="another"),
    ]
    report = write_answers(backend, talks, tmp_path / "own.jsonl")
    assert set(own(tmp_path)) == {"a+own"}
    assert report.left_out == [
        ("again+own", "its prompt has been answered"),
        ("n+own", "it has no label"),
        ("h+own", "it is a harmful prompt without an answer that could be continued"),
        ("long+own", "its prompt does not fit the context of 40 tokens"),
        ("a+own", "another conversation has its id"),
    ]


def test_batches_are_seeded_and_of_about_one_length(tmp_path: Path) -> None:
    talks = [talk(f"{n:02}", question=f"{n:02}" + "x" * (n % 2) * 300) for n in range(40)]
    _, first = write(tmp_path, talks, {}, seed=1, sampling={"do_sample": True}, max_new_tokens=9)
    assert [len(texts) for texts, _ in first.opened] == [16, 4, 16, 4]
    assert {options["max_new_tokens"] for _, options in first.opened} == {9}
    assert all(options["do_sample"] for _, options in first.opened)
    seeds = [options["seed"] for _, options in first.opened]
    assert len(set(seeds)) == 4
    _, again = write(tmp_path / "again", talks, {}, seed=1, sampling={"do_sample": True}, max_new_tokens=9)
    _, other = write(tmp_path / "other", talks, {}, seed=2, sampling={"do_sample": True}, max_new_tokens=9)
    assert [options["seed"] for _, options in again.opened] == seeds
    assert not set(seeds) & {options["seed"] for _, options in other.opened}


def test_rows_that_end_at_different_times_are_all_written_whole(tmp_path: Path) -> None:
    says = {f"question {n}": "y" * (3 * n + 1) for n in range(6)}
    write(tmp_path, [talk(str(n)) for n in range(6)], says, max_new_tokens=10)
    found = own(tmp_path)
    assert {key: len(each.response) for key, each in found.items()} == {
        f"{n}+own": min(3 * n + 1, 10) for n in range(6)
    }
    assert found["0+own"].tags["finish_reason"] == "stop" and found["5+own"].tags["finish_reason"] == "length"


def mixed() -> tuple[list[Conversation], dict[str, str]]:
    talks = [talk(f"b{n}") for n in range(20)] + [talk(f"h{n}", f"step {n} {'x' * n}", "harmful") for n in range(20)]
    return talks, {"step 3": f". {REFUSAL}", "question b7": REFUSAL}


def test_a_killed_run_goes_on_to_the_same_file(tmp_path: Path) -> None:
    talks, says = mixed()
    write(tmp_path / "whole", talks, says)
    path = tmp_path / "cut" / "own.jsonl"
    with pytest.raises(KeyboardInterrupt):
        write_answers(Writer(says, die_after=1), talks, path)
    assert 0 < len(path.read_text().splitlines()) < 38
    seen: list[tuple[int, int, int]] = []
    report = write_answers(Writer(says), talks, path, progress=lambda *figures: seen.append(figures))
    assert path.read_bytes() == (tmp_path / "whole" / "own.jsonl").read_bytes()
    assert report.present == 16 and report.answers == 20 and report.continuations > 15
    assert seen[-1][:2] == (40, 40)
    idle = Writer(says)
    again = write_answers(idle, talks, path)
    assert not idle.opened and again.left_out == report.left_out and again.continuations == report.continuations


def test_a_run_that_was_cut_anywhere_goes_on_to_the_same_file(tmp_path: Path) -> None:
    talks, says = mixed()
    write(tmp_path, talks, says)
    path = tmp_path / "own.jsonl"
    whole = path.read_bytes()
    for size in range(0, len(whole), 997):
        path.write_bytes(whole[:size])
        write_answers(Writer(says), talks, path)
        assert path.read_bytes() == whole, f"cut at byte {size}"


def test_going_on_with_another_model_or_other_options_is_refused(tmp_path: Path) -> None:
    talks, says = mixed()
    write(tmp_path, talks, says)
    before = (tmp_path / "own.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="was begun with seed 0, now it is 5"):
        write(tmp_path, talks, says, seed=5)
    other = Writer(says)
    other.identity = replace(other.identity, fingerprint="another")
    with pytest.raises(ConfigError, match="was begun with fingerprint 'scripted'"):
        write_answers(other, talks, tmp_path / "own.jsonl")
    assert (tmp_path / "own.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        {"label": "benign"},
        {"response": "other words of somebody"},
        {"messages": ({"role": "user", "content": "another question"},)},
    ],
)
def test_what_is_asked_otherwise_now_is_written_anew(tmp_path: Path, change: dict[str, Any]) -> None:
    talks = [talk("a", "words of somebody", "harmful"), talk("b")]
    write(tmp_path, talks, {"words": " first", "question": "first"})
    now = [replace(talks[0], **change), talks[1]]
    report, backend = write(tmp_path, now, {"words": " second", "question": "second"})
    assert report.present == 1 and backend.opened
    found = {each.id.partition("+")[0]: each for each in report.conversations()}
    assert found["a"].label == now[0].label and found["a"].messages == now[0].messages
    assert found["a"].response.endswith("second") and found["b"].response == "first"
    assert len(load_answers(tmp_path / "own.jsonl")) == 3, "the former answer stays in the file, and is not used"


def test_source_licence_and_tags_are_those_of_now(tmp_path: Path) -> None:
    write(tmp_path, [talk("a", tags={"category": "old"})], {})
    now = replace(talk("a", tags={"category": "new"}), source="t", licence="CC0")
    report, backend = write(tmp_path, [now], {})
    (found,) = report.conversations()
    assert not backend.opened and (found.source, found.licence) == ("t", "CC0")
    assert found.tags["category"] == "new" and found.tags["on_policy"] == "answer"


def test_a_label_that_becomes_doubtful_is_judged_anew(tmp_path: Path) -> None:
    one = talk("a", question="the same")
    report, _ = write(tmp_path, [one], {"same": "gladly"}, prefix_tokens=(4,))
    assert len(report.conversations()) == 1
    harm = talk("h", "harm harm", "harmful", question="The same!")
    report, _ = write(tmp_path, [one, harm], {"harm": " more", "same": "gladly"}, prefix_tokens=(4,))
    assert [each.id.partition("+")[0] for each in report.conversations()] == ["h"]


@pytest.mark.parametrize("content", ['{"mine": 1}\n', "notes\n", '{"id": "x"}\n'])
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(content)
    with pytest.raises(ConfigError, match="was not written by an earlier run"):
        write_answers(Writer({}), [talk("a")], path)
    assert path.read_text() == content


def test_the_file_can_be_loaded_whatever_the_tags_are_called(tmp_path: Path) -> None:
    tags = {"goal": "g", "prompt": "p", "label": "l", "license": "x", "instruction": "i", "prompt_key": "k"}
    write(tmp_path, [talk("a", tags=tags)], {"question a": "yes"})
    (found,) = load_answers(tmp_path / "own.jsonl")
    assert found.response == "yes" and found.label == "benign" and found.prompt_key == "k"
    assert found.tags["goal"] == "g" and "prompt" not in found.tags
    assert json.loads((tmp_path / "own.jsonl").read_text())["messages"][0]["content"] == "question a"


@pytest.mark.parametrize("options", [{"max_new_tokens": 0}, {"prefix_tokens": ()}, {"prefix_tokens": (0,)}])
def test_options_that_cannot_be_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError):
        AnswerOptions(**options)


def test_the_name_of_the_file_must_say_its_form(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must be called \.jsonl"):
        write_answers(Writer({}), [talk("a")], tmp_path / "own.txt")
