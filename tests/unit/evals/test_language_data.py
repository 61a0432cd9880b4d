"""Tables of the suite `languages` from files of the sources' shape, and what a refitted probe is said to do."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anydepth.conversations.corpora import load
from benchmarks import language_data, language_refit
from benchmarks.language_refit import ALL, ALONE, FEW, SHIPPED, WITHOUT, Checks


class Files(language_data.Clone):
    """A clone whose files are given; it lacks all others."""

    def __init__(self, files: dict[str, Any]) -> None:
        self.files, self.lacking = files, []

    def read(self, path: str) -> bytes | None:
        """The file as JSON."""
        if path not in self.files:
            self.lacking.append(path)
            return None
        return (
            json.dumps(self.files[path]).encode()
            if not isinstance(self.files[path], str)
            else self.files[path].encode()
        )


def answer(harmful: int, refusal: int, text: str = "said") -> dict[str, Any]:
    judged = {"response_harmful": harmful, "refusal": refusal, "request_harmful": 1}
    return {"instruction": "frage", "instruction_en": "question", "response": text, "wildguard": judged}


def test_translations_of_one_request_have_one_key(tmp_path: Path) -> None:
    rows = [{"instruction": f"ask {n}", "instruction_translated": f"frag {n}", "category": "c"} for n in range(4)]
    clone = Files({
        "PolyRefuse/harmful_test_translated_de.json": rows,
        "PolyRefuse/harmful_test_translated_en.json": [{"instruction": row["instruction"]} for row in rows],
        "PolyRefuse/harmless_val_translated_zh.json": [{"instruction": "wen", "category": None}],
    })  # fmt: skip
    found = list(language_data.polyrefuse_requests(clone, 3))
    by_language = {language: [row for row in found if row["language"] == language] for language in ("de", "en", "zh")}
    assert [row["prompt_key"] for row in by_language["de"]] == [row["prompt_key"] for row in by_language["en"]]
    assert len(by_language["de"]) == 3 and by_language["de"][0]["prompt"].startswith("frag")
    assert (by_language["zh"][0]["label"], by_language["zh"][0]["licence"]) == ("benign", "CC-BY-NC-4.0")
    language_data.write(tmp_path / "t.jsonl.gz", found, {by_language["de"][0]["prompt_key"]})
    kept = load(tmp_path / "t.jsonl.gz")
    assert len(kept) == 2 * 2 + 1 and {row.tags["language"] for row in kept} == {"de", "en", "zh"}


def test_answers_have_the_labels_of_the_source() -> None:
    path = language_data._OUTPUT.format("google/gemma-2-9b-it", "de", "baseline")
    said = [answer(0, 1, "a"), answer(0, 1, "b"), answer(0, 0, "c"), answer(1, 0, "d" * 2000)]
    said += [answer(1, 1), answer(0, 1, " ")]  # a harmful refusal, and no answer
    found = list(language_data.polyrefuse_answers(Files({path: said}), most=1))
    assert sorted((row["label"], row["refusal"], len(row["response"])) for row in found) == [
        ("benign", "no", 1), ("benign", "yes", 1), ("harmful", "no", 1200)
    ]  # fmt: skip
    assert {row["generator"] for row in found} == {"google/gemma-2-9b-it"}


def test_requests_of_native_speakers() -> None:
    table = "id,source,en,zh,vi,tags\n1,x,ask,wen,,t\n"
    found = list(language_data.multijail_requests(Files({"data/MultiJail.csv": table})))
    assert [(row["language"], row["prompt"], row["label"]) for row in found] == [
        ("en", "ask", "harmful"), ("zh", "wen", "harmful")
    ]  # fmt: skip


def test_a_table_without_a_request_that_was_seen_says_how_many(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = list(language_data.multijail_requests(Files({"data/MultiJail.csv": "en,zh\nask,wen\n"})))
    language_data.write(tmp_path / "m.jsonl.gz", rows, {rows[0]["prompt_key"]})
    assert "m.jsonl.gz 0 rows, 2 left out" in capsys.readouterr().out
    with gzip.open(tmp_path / "m.jsonl.gz", "rt") as file:
        assert file.read() == ""


def checks(seed: int, turned: bool) -> Checks:
    """Two languages whose harm lies along one axis in English and, if `turned`, along another one in the second."""
    draw = np.random.default_rng(seed)
    found = []
    for language, axis in (("en", 0), ("xx", 1 if turned else 0)):
        for number in range(40):
            harmful = number % 2 == 0
            state = draw.normal(size=6)
            state[axis] += 4 if harmful else -4
            kind = "requests" if number < 20 else "answers"
            found.append((state, harmful, f"{language}{number}", f"{seed}-{number}", language, kind))
    return Checks(*(np.array(column) for column in zip(*found, strict=True)))


def test_a_probe_of_all_languages_is_told_from_one_of_english() -> None:
    class Shipped:
        weight, bias = np.array([[1.0, 0, 0, 0, 0, 0]]), 0.0

    train, test = checks(1, turned=True), checks(2, turned=True)
    ways = dict(language_refit.scored(Shipped(), train, test))  # pyright: ignore[reportArgumentType]
    assert list(ways) == [SHIPPED, ALONE, ALL, FEW, WITHOUT]
    made = {
        (way, figure.name, figure.group["language"]): figure
        for way, values in ways.items()
        for figure in language_refit.figures(way, values, test)
    }
    for way in (SHIPPED, ALONE, ALL):
        assert (made[way, "auroc, requests", "en"].value or 0) > 0.95, way
    for way in (SHIPPED, ALONE, WITHOUT):
        assert (made[way, "auroc, answers", "xx"].value or 0) < 0.9, way
    assert (made[ALL, "auroc, answers", "xx"].value or 0) > 0.95
    assert made[ALL, "halted at 1 %, answers", "all but English"].answers == 10
    of_requests = [language for way, name, language in made if (way, name) == (ALL, "auroc, requests")]
    assert of_requests == ["en", *sorted({*of_requests} - {"en", "all but English"}), "all but English"]
