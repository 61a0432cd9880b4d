"""benchmarks/results.py: docs/results.md is what the runs say, in the order and the rounding that a reader expects."""

import json
from pathlib import Path

import pytest

from benchmarks import results


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.075, "8"),
        (0.07499999999999998, "8"),  # a mean of seeds that falls short of 0.075 by the floats' rounding
        (0.0749, "7"),
        (0.125, "13"),
        (0.625, "63"),
        (0.0, "0"),
        (-0.001, "0"),
        (-0.125, "-13"),
        (1.0, "100"),
    ],
)
def test_a_half_is_rounded_away_from_zero(share: float, text: str) -> None:
    assert results.whole_percent(share) == text
    figure = {"value": share, "interval": [share, share], "unit": "share", "answers": 4}
    assert results.cell(figure).startswith(f"{text} % ({text}")


def run(folder: Path, languages: list[str]) -> None:
    """A run whose figures are in the order of `languages`."""
    (folder / "one").mkdir(parents=True)
    manifest = {"model": {"name": "org/small-instruct"}, "options": {"quick": False}}
    (folder / "one" / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    more = {"value": 0.5, "interval": None, "unit": "auroc", "answers": 8, "judge": None}
    made = [{"name": "auroc, requests", "group": {"language": each, "fitted on": "x"}, **more} for each in languages]
    (folder / "one" / "summary.json").write_text(json.dumps({"suites": {"language-refit": {"figures": made}}}), "utf-8")


def test_languages_stand_in_the_order_of_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, ["ar", "all but English", "zh", "en", "de"])
    monkeypatch.setattr(results, "RUNS", tmp_path)
    rows = results.drawn(results.TABLES["languages-refit-requests"]).splitlines()[2:7]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == ["en", "ar", "de", "zh", "all but English"]


def test_the_page_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["results.py", "--check"])
    assert results.main() == 0, "run python benchmarks/results.py"
