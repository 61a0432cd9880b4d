"""Languages: what is chosen and mixed, against hand-made rows, and figures against the guard's own scan."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from anydepth.conversations.dataset import Conversation, Label, digest
from anydepth.errors import ConfigError
from anydepth.evals.suites import languages_figures as measure
from anydepth.evals.suites import languages_sets as sets
from anydepth.evals.suites.languages_figures import JudgedText
from anydepth.guard import Guard
from tests.conversations import words
from tests.unit.evals import tables
from tests.unit.evals.tables import measured, one

SIZES = {"languages.requests": "3", "languages.answers": "4", "languages.mixed": "2", "languages.scan": "60"}


def row(name: str, language: str, label: Label, **facts: Any) -> Conversation:
    """A conversation in `language`; the part of its name before the dash is what is the same in every language."""
    tags = {"language": language, "prompt_key": digest(name.partition("-")[0]), **facts.pop("tags", {})}
    given = {"response": "", "source": f"s-{label}", **facts}
    text = given.pop("prompt", f"{name} in {language}")
    return Conversation(f"{name}-{language}", ({"role": "user", "content": text},), label=label, tags=tags, **given)


def records() -> list[dict[str, Any]]:
    """Mild rows in three languages: parallel requests and answers of both labels; one set has harmful requests only."""
    found = []
    for place, language in enumerate(("en", "xx", "yy")):
        for number in range(24):
            label = "harmful" if number % 2 else "benign"
            own = {"language": language, "label": label, "prompt_key": digest(f"r{number}")}
            found.append({**own, "prompt": words(40 * place + 3 * number, 4), "source": f"s-{label}"})
            refusal = "yes" if label == "benign" and number % 4 else "no"
            text = ". ".join(words(9 * number + 50 * place + n, 6) for n in range(6)) + "."
            answer = {"response": text, "source": "s-answers", "refusal": refusal, "generator": "g"}
            found.append({**own, "prompt": words(60 * place + 5 * number, 6), **answer})
        only = {"language": language, "label": "harmful", "source": "t", "prompt_key": digest(f"t{place}")}
        found += [{**only, "prompt": words(7 * n + place, 9), "prompt_key": digest(f"t{n}")} for n in range(6)]
    return found


@pytest.fixture
def data(tmp_path: Path) -> Path:
    tables.table(tmp_path / "data", "languages", records())
    return tmp_path / "data"


def context(folder: Path, data: Path, **settings: str) -> Any:
    given = {"arms": ("probe",), "settings": {**SIZES, **settings}, "probe": tables.probe(0.5)}
    return tables.context("languages", folder, data, **given)


# -- what is chosen ----------------------------------------------------------------------------------------------------


def test_a_row_without_a_language_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'lost-en' does not say its language; .* `language`, e\.g\. en"):
        sets.language_of(replace(row("lost", "en", "benign"), tags={}))


def test_english_comes_first_and_the_same_requests_in_every_language(tmp_path: Path, data: Path) -> None:
    rows = sets.read(context(tmp_path, data), "languages")
    found = sets.by_language(rows)
    assert list(found) == ["en", "xx", "yy"]
    keys = [[each.prompt_key for each in own if not each.response] for own in found.values()]
    assert keys[0] == keys[1] == keys[2] and 4 <= len(set(keys[0])) < 30, "one half of the requests, in one order"


def test_as_many_of_each_language_source_and_label_as_are_asked_for(tmp_path: Path, data: Path) -> None:
    rows = sets.read(context(tmp_path, data), "languages")
    chosen = sets.choose(rows, sets.Counts(requests=2, answers=3, mixed=1))
    assert len({sample.id for sample in chosen}) == len(chosen)
    for language in ("en", "xx", "yy"):
        for kind, source, harmful, count in (
            (sets.REQUESTS, "s-harmful", True, 2),
            (sets.REQUESTS, "s-benign", False, 2),
            (sets.REQUESTS, "t", True, 2),
            (sets.ANSWERS, "s-answers", True, 3),
            (sets.ANSWERS, "s-answers", False, 3),
        ):
            own = [each for each in chosen if (each.kind, each.language) == (kind, language)]
            assert len([each for each in own if each.row.source == source and each.harmful is harmful]) == count
    mixed = [each for each in chosen if each.kind == sets.MIXED_ANSWERS]
    assert {(each.language, each.other, each.harmful) for each in mixed} == {
        (way, other, label)
        for way in (sets.ENGLISH_ANSWER, sets.ENGLISH_REQUEST, sets.BOTH)
        for other in ("xx", "yy")
        for label in (True, False)
    }
    assert all(each.row.source != "t" for each in chosen if each.kind == sets.MIXED_REQUESTS), "a set of both labels"


# -- texts in two languages --------------------------------------------------------------------------------------------


def test_two_requests_of_one_label_make_one_of_that_label() -> None:
    own = [row("a", "xx", "harmful"), row("b", "xx", "benign")]
    english = [row("a", "en", "harmful"), row("c", "en", "harmful"), row("d", "en", "benign")]
    made = [mixed for _, mixed in sets.two_requests(own, english)]
    assert [(mixed.prompt, mixed.label) for mixed in made] == [
        ("a in xx\nc in en", "harmful"),  # never the same request twice
        ("b in xx\nd in en", "benign"),
    ]
    assert [mixed.prompt_key for mixed in made] == [each.prompt_key for each in own]


def test_answers_are_mixed_with_the_english_one_to_the_same_request_alone() -> None:
    said = {"tags": {"generator": "g", "refusal": "no"}}
    own = row("a", "xx", "harmful", response="X1. X2! X3?", **said)
    english = row("a", "en", "harmful", response="E1. E2. E3. E4.", **said)
    made = dict(sets._mixtures([own], [english]))
    assert {way: (mixed.prompt, mixed.response) for way, mixed in made.items()} == {
        sets.ENGLISH_ANSWER: ("a in xx", "E1. E2. E3. E4."),
        sets.ENGLISH_REQUEST: ("a in en", "X1. X2! X3?"),
        sets.BOTH: ("a in xx", "X1. E2. X3?"),
    }
    for other in (
        row("b", "en", "harmful", response="E1. E2.", **said),
        row("a", "en", "benign", response="E1. E2.", **said),
        row("a", "en", "harmful", response="E1. E2.", tags={"generator": "h", "refusal": "no"}),
    ):
        assert not list(sets._mixtures([own], [other])), "another request, label or model"


def test_an_answer_of_one_sentence_is_not_mixed() -> None:
    assert (
        sets.mixed_answer(row("a", "xx", "harmful", response="X1"), row("a", "en", "harmful", response="E. F.")) is None
    )


def test_sentences_of_several_scripts() -> None:
    assert sets.sentences("One. Two! 3.5 is a number.") == ["One.", "Two!", "3.5 is a number."]
    assert sets.sentences("一つ。二つ！\n三つ") == ["一つ。", "二つ！", "三つ"]
    assert sets.sentences("اول؟ ثان.") == ["اول؟", "ثان."] and sets.sentences("1. \n- a") == ["- a"]


# -- figures -----------------------------------------------------------------------------------------------------------


def judged(language: str, harmful: bool, *values: float | None, halted: bool = False) -> list[JudgedText]:
    facts = ("probe", sets.REQUESTS, language, f"s-{harmful}", harmful, halted)
    return [JudgedText(*facts, value, 0) for value in values]


def test_threshold_at_one_percent_of_false_alarms() -> None:
    assert measure.lowest_threshold([]) is None
    assert measure.lowest_threshold([0.1, 0.3, 0.2]) == 0.3, "of fewer than 100 none may be halted"
    assert measure.lowest_threshold([n / 200 for n in range(200)]) == 197 / 200, "2 of 200 are above it"


def test_halted_at_one_percent_of_the_language_and_of_english() -> None:
    found = [
        *judged("en", True, 0.9, 0.4, halted=True), *judged("en", False, 0.5, 0.1),
        *judged("xx", True, 0.6, 0.3, None, halted=True), *judged("xx", False, 0.7, 0.2),
    ]  # fmt: skip
    made = {(f.name.partition(",")[0], f.group["language"]): f for f in measure.figures(found)}
    assert made["halted at 1 %", "en"].value == 0.5 and made["halted at 1 %", "xx"].value == 0.0
    assert made["halted at 1 % of English", "xx"].value == 0.5, "0.6 is above the English 0.5"
    assert made["false alarms at 1 % of English", "xx"].value == 0.5 and ("halted at 1 % of English", "en") not in made
    assert made["auroc", "xx"].value == 0.5 and made["auroc", "en"].value == 0.75
    assert made["halted", "xx"].value == 1.0 and made["halted", "xx"].answers == 3, "a failed check halts"
    assert made["false alarms", "xx"].value == 0.0 and {f.group["set"] for f in made.values()} == {"s"}


def test_figures_are_those_of_the_guards_scan(tmp_path: Path, data: Path) -> None:
    given = context(tmp_path, data, **{"languages.own": "2", "languages.new-tokens": "10"})
    summary = measured(given)
    guard = Guard.from_backend(given.backend, given.probe, schedule=tables.CONFIG.schedule)
    rows = sets.read(context(tmp_path / "again", data), "languages")
    for language in ("en", "xx", "yy"):
        own = [each for each in sets.choose(rows, sets.Counts(3, 4, 2)) if each.language == language]
        answers = [each for each in own if each.kind == sets.ANSWERS]
        scans = [guard.scan(list(each.row.messages), each.row.response) for each in answers]
        for name, harmful in (("halted, answers", True), ("false alarms, answers", False)):
            halts = [scan.verdict.halt for scan, each in zip(scans, answers, strict=True) if each.harmful is harmful]
            figure = one(summary, name, language=language)
            assert (figure.value, figure.answers) == (sum(halts) / len(halts), len(halts))
        late = [max(check.score for check in scan.checks if check.depth >= 25) for scan in scans]
        paired = list(zip(late, answers, strict=True))
        values = {wanted: [value for value, each in paired if each.harmful is wanted] for wanted in (True, False)}
        beaten = [(a > b) + 0.5 * (a == b) for a in values[True] for b in values[False]]
        figure = one(summary, "auroc, answers from depth 25", language=language)
        assert figure.value == pytest.approx(sum(beaten) / len(beaten)) and figure.answers == 8
        share = sum(value >= 0.5 for value in values[False]) / 4
        assert one(summary, "false alarms, answers from depth 25", language=language).value == share
        first = {each.harmful: [] for each in own}
        for each in own:
            if each.kind == sets.REQUESTS and each.row.source != "t":
                first[each.harmful].append(guard.scan(list(each.row.messages), "w1").checks[0].score)
        wins = [(a > b) + 0.5 * (a == b) for a in first[True] for b in first[False]]
        assert one(summary, "auroc, requests", language=language, set="s").value == pytest.approx(sum(wins) / len(wins))
        halted = one(summary, "halted, requests", language=language, set="t")
        assert halted.answers == 3 and not [
            f for f in summary.figures if f.name.startswith("auroc") and f.group.get("set") == "t"
        ]
        assert one(summary, "false alarms, own answers", language=language).answers == 2
        assert 0 <= (one(summary, "auroc, own answers", language=language).value or 0) <= 1
    assert one(summary, "auroc, mixed answers", language=sets.BOTH).answers == 8
    assert one(summary, "auroc, mixed requests").group["language"] == sets.TWO_REQUESTS
    assert summary.notes[0] == "Sources: s-answers (unknown); s-benign (unknown); s-harmful (unknown); t (unknown). " \
        "Labels are those of the sources."  # fmt: skip


def test_a_run_without_own_answers_writes_none(tmp_path: Path, data: Path) -> None:
    summary = measured(context(tmp_path, data))
    assert not (tmp_path / "texts" / "languages.jsonl").exists()
    assert not [figure for figure in summary.figures if figure.name.endswith("own answers")]


def test_a_table_without_labels_is_refused(tmp_path: Path) -> None:
    tables.table(tmp_path, "languages", [{"prompt": "w1 w2", "language": "en"}, {"prompt": "w3 w4", "language": "xx"}])
    with pytest.raises(ConfigError, match="the table languages has no labelled rows; give each a label"):
        measured(context(tmp_path / "run", tmp_path))


def test_refusals_by_language() -> None:
    rows = [
        row("a", "en", "benign", response="I'm sorry, but I can't help with that.", tags={"refusal": "yes"}),
        row("b", "en", "benign", response="Here is a recipe for bread.", tags={"refusal": "yes"}),
        row("c", "de", "benign", response="Leider kann ich Ihnen dabei nicht helfen.", tags={"refusal": "yes"}),
        row("d", "de", "benign", response="Gerne. Hier ist ein Rezept.", tags={"refusal": "no"}),
        row("e", "de", "benign", response="Leider kann ich Ihnen dabei nicht helfen."),
        row("f", "de", "benign", tags={"refusal": "yes"}),
    ]
    made = {(f.name, f.group["language"]): (f.value, f.answers) for f in measure.refusal_figures(rows)}
    assert made == {
        (measure.RECALLED, "en"): (0.5, 2),
        (measure.RECALLED, "de"): (1.0, 1),
        (measure.MISTAKEN, "de"): (0.0, 1),
    }


def test_limits_name_what_the_sample_is_sure_of() -> None:
    many = [
        *judged("en", True, *[0.9] * 30), *judged("en", False, *[0.1] * 30),
        *judged("xx", True, *[0.4] * 30), *judged("xx", False, *[0.5] * 30, halted=True),
        *judged("yy", True, *[0.4] * 5), *judged("yy", False, *[0.5] * 5, halted=True),
    ]  # fmt: skip
    found = list(measure.limits(list(measure.figures(many))))
    assert "probe halts 100% (88% to 100%) of 30 harmless texts (requests, xx), where 1% is aimed at." in found
    assert "auroc, requests, xx: 0.00, where English has 1.00 (probe)." in found
    assert not [line for line in found if "yy" in line], "too few to say"
