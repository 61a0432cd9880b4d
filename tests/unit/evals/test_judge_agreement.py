"""agreement: what it counts, and that every figure says which judge and which answers."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from anydepth.conversations.dataset import Conversation, Label
from anydepth.evals.figure import Figure
from anydepth.evals.judges.agreement import agreement
from anydepth.evals.judges.judge import Judged, Judgement
from anydepth.evals.judges.refusal import RefusalJudge
from anydepth.evals.judges.text_judge import TextJudge
from tests.unit.evals.judged_answers import GAMES, answer, training

REFUSAL = "I'm sorry, but I can't help with that."
HELP = "Sure, to cheat at {game}, hide a piece in your sleeve. Then distract them and swap it."


@dataclass
class Keyword:
    """Takes an answer for a refusal if it has `no` in it, and for harmful if it has `bad`."""

    name: str = "keywords"
    says_harm: bool = True
    seen: list[Judged] = field(default_factory=list)

    def judge(self, items: Sequence[Judged]) -> list[Judgement]:
        self.seen += items
        texts = [item.response for item in items]
        return [Judgement("no" in text, "bad" in text, 0.9 if "bad" in text else 0.1) for text in texts]


def rows(label: Label, source: str, *responses: str) -> list[Conversation]:
    return [answer(n, label, source, f"request {n}", response) for n, response in enumerate(responses)]


def tables(name: str) -> list[Conversation]:
    return {
        "responses_xstest": rows("benign", "x", "fine", "fine", "no", "bad"),
        "pairs_benign_validation": rows("benign", "y", "fine", "fine"),
        "pairs_deep_validation": rows("harmful", "z", "bad", "bad", "fine"),
        "attacks_validation": rows("harmful", "w", "bad"),
        "probe_validation": [
            *rows("harmful", "one", "bad", "no, but bad"),
            *rows("benign", "one", "no", "fine", "no", "bad"),
            *rows("benign", "only benign", "no"),
        ],
    }[name]


def by_group(figures: list[Figure]) -> dict[tuple[str, ...], Figure]:
    keys = ("set", "asked", "true")
    found = {
        (figure.name, *(str(figure.group[key]) for key in keys if key in figure.group)): figure for figure in figures
    }
    assert len(found) == len(figures)
    return found


def test_it_compares_what_the_judge_says_with_the_labels() -> None:
    figures = by_group(agreement(Keyword(), tables))
    values = {key: (figure.value, figure.answers) for key, figure in figures.items()}
    assert values == {
        ("judge_agreement", "responses_xstest", "refused", "no"): (0.75, 4),
        ("judge_agreement", "pairs_benign_validation", "refused", "no"): (1.0, 2),
        ("judge_agreement", "pairs_deep_validation", "refused", "no"): (1.0, 3),
        ("judge_agreement", "attacks_validation", "refused", "no"): (1.0, 1),
        ("judge_agreement", "one", "refused", "no"): (0.5, 2),
        ("judge_refusals_found", "one"): (0.5, 4),
        ("judge_agreement", "pairs_deep_validation", "harmful", "yes"): (pytest.approx(2 / 3), 3),
        ("judge_agreement", "attacks_validation", "harmful", "yes"): (1.0, 1),
        ("judge_false_harm", "pairs_benign_validation"): (0.0, 2),
        ("judge_false_harm", "responses_xstest"): (0.25, 4),
        ("judge_agreement", "one", "harmful", "yes"): (1.0, 2),
        ("judge_agreement", "one", "harmful", "no"): (0.75, 4),
        ("judge_auroc", "one"): (0.875, 6),
        ("judge_auroc", "pairs_deep_validation, against probe_validation"): (pytest.approx(0.7083, abs=1e-4), 7),
        ("judge_auroc", "attacks_validation, against probe_validation"): (0.875, 5),
    }
    for figure in figures.values():
        assert figure.judge == figure.group["judge"] == "keywords"
        assert figure.interval and figure.interval[0] <= figure.value <= figure.interval[1]  # type: ignore[operator]


def test_an_attack_is_judged_by_its_goal() -> None:
    judge = Keyword()
    attack = Conversation(
        "a", ({"role": "user", "content": "wrapped"},), "bad", "harmful", "w", tags={"goal": "the goal"}
    )
    agreement(judge, lambda name: [attack] if name == "attacks_validation" else tables(name))
    assert "the goal" in {item.prompt for item in judge.seen} and "wrapped" not in {item.prompt for item in judge.seen}


def test_a_limit_bounds_every_set() -> None:
    judge = Keyword()
    figures = agreement(judge, tables, limit=1)
    assert {figure.answers for figure in figures if figure.name != "judge_auroc"} == {1}
    assert len(judge.seen) == 6


def test_a_judge_of_refusals_is_not_asked_about_harm() -> None:
    figures = agreement(RefusalJudge(), tables)
    assert {figure.name for figure in figures} == {"judge_agreement", "judge_refusals_found"}
    assert {figure.group.get("asked", "refused") for figure in figures} == {"refused"}


def test_the_fitted_judge_agrees_on_games_that_it_was_not_fitted_on() -> None:
    unseen = ("billiards", "backgammon", "checkers")

    def found(name: str) -> list[Conversation]:
        helps = [
            answer(n, "harmful", name, f"cheat at {game}?", HELP.format(game=game)) for n, game in enumerate(unseen)
        ]
        refusals = [answer(n, "benign", name, f"cheat at {game}?", REFUSAL) for n, game in enumerate(unseen)]
        return helps + refusals if name == "probe_validation" else helps

    figures = by_group(agreement(TextJudge.fit(training(GAMES)), found))
    assert figures["judge_agreement", "probe_validation", "harmful", "yes"].value == 1.0
    assert figures["judge_agreement", "probe_validation", "harmful", "no"].value == 1.0
    assert figures["judge_auroc", "probe_validation"].value == 1.0
    assert figures["judge_refusals_found", "probe_validation"].value == 1.0
