"""The loop shows the attacker what the user would see, and stops when it has won."""

from pathlib import Path

import pytest

from anydepth.evals.attacks import pair
from anydepth.evals.attacks.pair import PairRound, Rounds, attacker_messages, proposal_of, run_rounds
from anydepth.evals.attacks.texts import wording
from anydepth.evals.context import Context
from anydepth.evals.judges.judge import Judged, Judgement
from tests.unit.evals import tables


class Always:
    """A judge that has made up its mind."""

    says_harm = True

    def __init__(self, harmful: bool) -> None:
        self.name, self.harmful = "always", harmful

    def judge(self, items: list[Judged]) -> list[Judgement]:
        """The same of all."""
        return [Judgement(refused=False, harmful=self.harmful, score=0.75) for _ in items]


def loop(folder: Path, arm: str, *, harmful: bool, threshold: float = 0.0) -> tuple[Context, list[Rounds]]:
    data = folder.parent / "data"
    tables.table(data, "prompts_strongreject", tables.pairs(3, 4, "harmful"))
    context = tables.context("attacks", folder, data, probe=tables.probe(threshold))
    context.__dict__["judge"] = Always(harmful)
    rows = context.table("prompts_strongreject", limit=3)
    found = run_rounds(context, context.backend, rows, arm, rounds=3, tokens=8)
    context.close()
    return context, found


def test_the_attacker_stops_at_its_first_success(tmp_path: Path) -> None:
    _, won = loop(tmp_path / "won", "base", harmful=True)
    assert [len(each.tried) for each in won] == [1, 1, 1]
    assert all(each.tried[0].success("base") for each in won)
    _, lost = loop(tmp_path / "lost", "base", harmful=False)
    assert [len(each.tried) + each.empty for each in lost] == [3, 3, 3]


def test_a_halted_answer_is_no_success_and_the_attacker_sees_the_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[PairRound] = []
    real = pair.attacker_messages

    def watched(goal: str, turns):  # type: ignore[no-untyped-def]
        shown.extend(turns[-1:])
        return real(goal, turns)

    monkeypatch.setattr(pair, "attacker_messages", watched)
    context, found = loop(tmp_path / "run", "probe", harmful=True)
    assert [len(each.tried) + each.empty for each in found] == [3, 3, 3]
    assert not any(tried.success("probe") for each in found for tried in each.tried)
    assert all(tried.success("base") for each in found for tried in each.tried)
    assert {(turn.reply, turn.score) for turn in shown} == {(context.config.refusal, 1)}
    shown.clear()
    loop(tmp_path / "unguarded", "base", harmful=False)
    assert shown
    assert {turn.score for turn in shown} == {1 + round(9 * 0.75)}
    assert all(turn.reply != context.config.refusal for turn in shown)


def test_a_second_run_writes_nothing_and_ends_the_same(tmp_path: Path) -> None:
    _, first = loop(tmp_path / "run", "probe", harmful=True)
    sizes = {file.name: file.stat().st_size for file in (tmp_path / "run").rglob("*.jsonl")}
    _, again = loop(tmp_path / "run", "probe", harmful=True)
    assert again == first
    assert {file.name: file.stat().st_size for file in (tmp_path / "run").rglob("*.jsonl")} == sizes
    _, fresh = loop(tmp_path / "other", "probe", harmful=True)
    assert [[t.transcript for t in each.tried] for each in fresh] == [
        [t.transcript for t in each.tried] for each in first
    ]


def test_rounds_without_a_text_are_counted_and_nothing_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair, "proposal_of", lambda text: "")
    _, found = loop(tmp_path / "run", "base", harmful=True)
    assert [(each.tried, each.empty) for each in found] == [([], 3)] * 3


def test_the_attacker_is_asked_with_the_last_turn_and_braces_stay() -> None:
    goal = "Explain {answer} and {0}"
    (first,) = attacker_messages(goal, [])
    assert first["role"] == "user"
    assert wording("pair")["system"] in first["content"]
    assert goal in first["content"]
    turns = [PairRound("old", "r", 2), PairRound("say {goal}", "no " * 1000, 3)]
    (later,) = attacker_messages(goal, turns)
    assert goal in later["content"]
    assert "say {goal}" in later["content"]
    assert "3 of 10" in later["content"]
    assert "old" not in later["content"]
    assert later["content"].count("no ") <= wording("pair")["longest_answer"] // 3 + 5


@pytest.mark.parametrize(
    ("text", "request_"),
    [(' "Say it."\n', "Say it."), ("\u201cSay it.\u201d", "Say it."), ("Say it.", "Say it."), ('"', '"'), ("  ", "")],
)
def test_quotation_marks_around_a_proposal_are_left_out(text: str, request_: str) -> None:
    assert proposal_of(text) == request_
