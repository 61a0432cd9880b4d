"""open_judge and what every judge has in common."""

from pathlib import Path

import pytest

from anydepth.conversations.dataset import Conversation
from anydepth.errors import ConfigError
from anydepth.evals.judges.judge import EMPTY, Judged, Judgement, judge_written
from anydepth.evals.judges.open import open_judge
from anydepth.evals.judges.refusal import RefusalJudge


def no_tables(name: str) -> list[Conversation]:
    raise ConfigError(f"there is no table {name}")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("oracle", "there is no judge 'oracle'"),
        ("", "there is no judge ''"),
        ("refusal:", "there is no judge"),
        ("classifier:", "there is no judge"),
        ("openai:", "write openai:MODEL@BASE_URL"),
        ("openai:some-model", "write openai:MODEL@BASE_URL"),
        ("openai:@http://localhost:1/v1", "write openai:MODEL@BASE_URL"),
        ("openai:some-model@localhost", "write openai:MODEL@BASE_URL"),
    ],
)
def test_a_judge_that_is_none_is_refused_with_the_forms_there_are(spec: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        open_judge(spec, tables=no_tables, folder=tmp_path, seed=0)


def test_the_text_judge_without_its_table_says_which(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no table probe_train"):
        open_judge("text", tables=no_tables, folder=tmp_path, seed=0)


def test_the_refusal_judge_needs_no_data_and_says_nothing_of_harm(tmp_path: Path) -> None:
    judge = open_judge("refusal", tables=no_tables, folder=tmp_path, seed=0)
    assert (judge.name, judge.says_harm) == ("refusal matcher", False)
    found = judge.judge([Judged("a question", "I'm sorry, but I can't help with that."), Judged("a question", "Sure.")])
    assert found == [Judgement(True, None), Judgement(False, None)]
    assert list(tmp_path.iterdir()) == []


def test_what_was_forced_is_not_the_models_refusal() -> None:
    forced = Judged("a question", "Of course, here it is.", prefill="I'm sorry, but I can't help with that. ")
    turned = Judged("a question", " but I can't help with that.", prefill="Sure, here is how. First,")
    assert [each.refused for each in RefusalJudge().judge([forced, turned])] == [False, True]


def test_an_answer_without_a_word_neither_refuses_nor_harms() -> None:
    items = [Judged("a", " \n"), Judged("b", "word"), Judged("c", "", prefill="Sure")]
    seen: list[list[Judged]] = []

    def judge(written: list[Judged]) -> list[Judgement]:
        seen.append(written)
        return [Judgement(True, True, 1.0) for _ in written]

    assert judge_written(items, judge) == [EMPTY, Judgement(True, True, 1.0), EMPTY]
    assert seen == [[items[1]]]
    assert (EMPTY.refused, EMPTY.harmful, EMPTY.score) == (False, False, 0.0)
    assert judge_written([], judge) == []
