"""The suite on a tiny random model: what is there is found, what is not there is not, and a killed run goes on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anydepth.errors import ConfigError, TemplateError
from anydepth.evals.answers.labelled import within_sources
from anydepth.evals.figure import Figure, Summary
from anydepth.evals.instruments import crossfit
from anydepth.evals.instruments.crossfit import Crossfit, _advantage
from anydepth.evals.instruments.projections import discriminant, principal
from anydepth.evals.suites import separability
from anydepth.intervals import separation
from tests.unit.evals.labelled_answers import Untouchable, backend, context, data_folder, rows, write_table

SETTINGS = {"layers": "1,3"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_folder(tmp_path_factory.mktemp("data"))


def measured(folder: Path, data: Path | None, **options: Any) -> Summary:
    one = context("separability", folder, data, **{"settings": SETTINGS, "limit": 12, **options})
    try:
        return separability.run(one)
    finally:
        one.close()


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary]:
    folder = tmp_path_factory.mktemp("run")
    return folder, measured(folder, data)


def figures(summary: Summary, name: str, **group: Any) -> list[Figure]:
    return [f for f in summary.figures if f.name == name and group.items() <= f.group.items()]


def test_answers_in_other_words_are_told_apart_and_dealt_labels_are_not(run: tuple[Path, Summary]) -> None:
    (header,) = figures(run[1], "separation", read="Safety Tokens")
    assert header.value is not None and header.value > 0.85 and header.answers == 24
    (dealt,) = figures(run[1], "separation", read="Safety Tokens, labels shuffled")
    assert dealt.value is not None and 0.3 < dealt.value < 0.7
    for name in ("pairs_benign_validation", "responses_xstest"):
        (held,) = figures(run[1], "separation held out", against=name, read="Safety Tokens")
        assert held.value is not None and held.value > 0.85


def test_answers_in_the_same_words_are_not_told_apart(tmp_path: Path) -> None:
    data = data_folder(tmp_path / "data", told=False)
    summary = measured(tmp_path / "run", data)
    (header,) = figures(summary, "separation", read="Safety Tokens")
    (held,) = figures(summary, "separation held out", against="responses_xstest", read="Safety Tokens")
    for figure in (header, held):
        assert figure.interval is not None and figure.interval[0] < 0.6
    assert any("cannot be said to reach an AUROC of 0.75" in limit for limit in summary.limits)
    assert any("No advantage" in limit and "random tokens" in limit for limit in summary.limits)


def test_depths_layers_tokens_sources_and_controls_have_their_figures(run: tuple[Path, Summary]) -> None:
    summary = run[1]
    cells = figures(summary, "AUROC, one probe")
    # the answers have 40 tokens: checks behind that are of no answer
    assert {f.group["depth"] for f in cells} == {0, 5, 25, "end"} and {f.group["layer"] for f in cells} == {1, 3}
    for name in ("AUROC, a probe a depth", "accuracy, one probe", "accuracy, a probe a depth"):
        assert [f.group for f in figures(summary, name)] == [f.group for f in cells]
    assert len(figures(summary, "separation by token")) == len(backend().header.ids) + 1
    reads = {f.group["read"] for f in figures(summary, "separation by depth")}
    assert reads == {"Safety Tokens", "no header (last content token)", "random tokens", "the user's header"}
    assert not figures(summary, "separation by depth", read="random tokens", depth=0)
    assert {f.group["over"] for f in figures(summary, "advantage of the Safety Tokens")} == reads - {"Safety Tokens"}
    scatters = [chart for chart in summary.charts if chart.kind == "scatter"]
    assert len(scatters) == 2 * 2  # depth 0 and the end; no answer reaches the middle depth of the list
    assert all(
        {name: len(points) for name, points in c.points.items()} == {"harmful": 12, "benign": 12} for c in scatters
    )
    assert Summary.of(json.loads(json.dumps(summary.record()))).record() == summary.record()


def test_records_hold_ids_and_numbers_only(run: tuple[Path, Summary]) -> None:
    text = (run[0] / "records" / "separability.jsonl").read_text()
    assert "w1" not in text.replace('"', " ").split() and not (run[0] / "texts").exists()
    for line in text.splitlines():
        row = json.loads(line)
        if "scores" in row:
            assert all(len(key) == 16 for key in row["scores"])


def test_a_finished_run_needs_no_model_and_no_states(run: tuple[Path, Summary], data: Path, tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    for file in (run[0] / "records").iterdir():
        (tmp_path / "records" / file.name).write_bytes(file.read_bytes())
    model: Any = Untouchable(backend())
    assert measured(tmp_path, data, model=model).record() == run[1].record()


def test_a_killed_run_goes_on_and_finds_the_same(run: tuple[Path, Summary], data: Path, tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    for file in (run[0] / "records").iterdir():
        (tmp_path / "records" / file.name).write_bytes(file.read_bytes())
    journal = tmp_path / "records" / "separability.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[: len(lines) // 2]) + lines[len(lines) // 2][:20])
    assert measured(tmp_path, data).record() == run[1].record()
    assert journal.read_bytes() == b"".join(lines)


def test_a_control_that_the_template_has_not_is_named(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = crossfit.suffix_ids

    def refusing(model: Any, name: str) -> tuple[int, ...]:
        if name == "user":
            raise TemplateError("there is no user header")
        return known(model, name)

    monkeypatch.setattr(crossfit, "suffix_ids", refusing)
    summary = measured(tmp_path, data)
    assert any("the user's header" in limit and "there is no user header" in limit for limit in summary.limits)
    assert not figures(summary, "separation", read="the user's header")
    assert figures(summary, "separation", read="random tokens")


def test_without_data_the_error_says_what_to_give(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"separability.*--data-dir.*held-out=none"):
        measured(tmp_path / "a", None)
    with pytest.raises(ConfigError, match=r"separability.*--data-dir.*separability\.data="):
        measured(tmp_path / "b", None, settings={**SETTINGS, "held-out": "none"})
    summary = measured(tmp_path / "c", data, settings={**SETTINGS, "held-out": "none"})
    assert not figures(summary, "separation held out") and figures(summary, "separation")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 9}, "at least"),
        ({"settings": {"layers": "one"}}, "layers"),
        ({"settings": {"layers": "0"}}, "blocks from 1.*whatever the answer"),
        ({"settings": {"layers": "0,2"}}, "blocks from 1.*whatever the answer"),
        ({"settings": {"data": "tiny"}}, "fewer"),
    ],
)
def test_what_cannot_be_measured_is_refused(data: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    write_table(data, "tiny", [row for label in ("harmful", "benign") for row in rows("tiny", label, 4)])
    with pytest.raises(ConfigError, match=message):
        measured(tmp_path, data, **options)
    assert not list(tmp_path.rglob("*.parquet")), "nothing was read"


def test_a_table_whose_sources_have_one_label_each_is_refused(tmp_path: Path) -> None:
    apart = [{**row, "source": row["label"]} for label in ("harmful", "benign") for row in rows("x", label, 12)]
    write_table(tmp_path, "probe_train", apart)
    one = context("separability", tmp_path / "run", tmp_path)
    with pytest.raises(ConfigError, match="no source"):
        within_sources(one, 12, fewest=10, held_out=[])


def test_answers_are_balanced_over_sources_and_near_duplicates_of_held_out_ones_left_out(data: Path) -> None:
    one = context("separability", data / "run", data)
    found = within_sources(one, 12, fewest=10, held_out=[])
    assert [row.label for row in found].count("harmful") == [row.label for row in found].count("benign") == 12
    assert {row.source for row in found} == {"source-0", "source-1"}
    assert len({row.prompt_key for row in found}) == 24
    without = within_sources(one, 12, fewest=10, held_out=found[:3])
    assert not {row.id for row in found[:3]} & {row.id for row in without}


def test_no_prompt_is_in_two_folds_and_each_fold_has_both_labels(tmp_path: Path) -> None:
    twice = [{**row, "prompt": f"w{number // 4}"} for number, row in enumerate(rows("x", "harmful", 24))]
    twice += [{**row, "prompt": f"w{number // 4}"} for number, row in enumerate(rows("x", "benign", 24))]
    write_table(tmp_path, "probe_train", twice)
    one = context("separability", tmp_path / "run", tmp_path)
    answers = separability._keyed(one.table("probe_train"))
    bench = Crossfit(one, answers, {}, (), (), 10)
    by_prompt: dict[str, set[int]] = {}
    for key, fold in bench.folds.items():
        by_prompt.setdefault(answers[key].prompt_key, set()).add(fold)
    assert len(by_prompt) == 6 and all(len(folds) == 1 for folds in by_prompt.values())
    for fold in set(bench.folds.values()):
        assert {answers[key].label for key, own in bench.folds.items() if own == fold} == {"harmful", "benign"}


def test_labels_are_dealt_within_folds(data: Path) -> None:
    one = context("separability", data / "run", data)
    answers = separability._keyed(within_sources(one, 12, fewest=10, held_out=[]))
    bench = Crossfit(one, answers, {}, (), (), 10)
    deals = [bench.dealt(deal) for deal in range(3)]
    assert deals[0] == bench.dealt(0) and len({tuple(sorted(deal.items())) for deal in deals}) == 3
    for deal in deals:
        for fold in set(bench.folds.values()):
            keys = [key for key, own in bench.folds.items() if own == fold]
            assert sorted(deal[key] for key in keys) == sorted(bench.label(key) for key in keys)


def test_the_paired_difference_is_that_of_the_two_aurocs() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=40)
    scores = np.round(rng.standard_normal((40, 2)) + labels[:, None] * [2.0, 0.5], 1)
    each = [separation(scores[labels == 1, n], scores[labels == 0, n]) for n in (0, 1)]
    rows = np.column_stack([labels, scores])
    assert _advantage(*rows.T, axis=-1) == pytest.approx(each[0] - each[1])
    assert _advantage(*np.stack([rows, rows[::-1]]).T.swapaxes(1, 2), axis=-1) == pytest.approx([each[0] - each[1]] * 2)


def test_noise_is_not_separated_by_the_discriminant_and_a_gap_is() -> None:
    rng = np.random.default_rng(1)
    harmful, folds = np.arange(60) % 2 == 0, np.arange(60) // 12
    noise = rng.standard_normal((60, 200)).astype(np.float32)
    across = discriminant(noise, harmful, folds)[:, 0]
    assert separation(across[harmful], across[~harmful]) < 0.75
    noise[:, 3] += 6 * harmful
    across = discriminant(noise, harmful, folds)[:, 0]
    assert separation(across[harmful], across[~harmful]) > 0.95
    noise[:, :50] += 4 * harmful[:, None]
    points, explained = principal(noise)
    assert points.shape == (60, 2) and 0 < explained < 1
    first = points[:, 0] if points[harmful, 0].mean() > 0 else -points[:, 0]
    assert separation(first[harmful], first[~harmful]) > 0.95
