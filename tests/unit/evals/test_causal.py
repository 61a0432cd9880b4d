"""The suite on a tiny model whose refusals hang on a known direction: found where it is, not found where it is not."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anydepth.backends.protocol import CONTENT, FinishedAnswer, Read, Site
from anydepth.backends.transformers import TransformersBackend, steer
from anydepth.detectors import LinearProbe, ProbeCard
from anydepth.detectors.refusals import RefusalMatcher
from anydepth.errors import ConfigError
from anydepth.evals.figure import Figure, Summary
from anydepth.evals.instruments.interventions import NONE, PATCHES, Arm, Interventions, arms, largest_read
from anydepth.evals.suites import causal
from anydepth.templates.template import Prompt
from tests.unit.evals.labelled_answers import Untouchable, backend, context, data_folder, rows

SITE = Site(2)
DEPTH = 20
SETTINGS = {"depth": DEPTH, "tokens": 4, "strengths": "-30,30"}
REFUSING = "w7"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that begins with one word is a refusal."""
    matcher = RefusalMatcher({"window": 40, "xx": {"start": [REFUSING]}})
    monkeypatch.setattr(RefusalMatcher, "default", lambda: matcher)


def between_means(model: TransformersBackend, site: Site = SITE) -> np.ndarray:
    """From the mean of harmless answers to that of harmful ones at the site."""
    states: dict[str, list[np.ndarray]] = {"harmful": [], "benign": []}
    for label, found in states.items():
        for row in rows("mean", label, 30):
            prompt = model.template.prompt(row["prompt"], prefill=row["response"])
            answer = FinishedAnswer(Prompt(prompt.ids[: prompt.start]), prompt.ids[prompt.start :], (DEPTH,))
            found.append(model.read_batch([answer], [site], tokens=[model.header.read_index])[0][site][0, 0])
    return np.mean(states["harmful"], 0) - np.mean(states["benign"], 0)


def planted(*, causes: bool = True) -> tuple[TransformersBackend, LinearProbe]:
    """A model, and a probe that separates; the model refuses along the probe's direction if it `causes` that."""
    model = backend()
    weight = between_means(model)
    probe = LinearProbe(
        weight, 0.0, ProbeCard(model.identity, model.header.ids, (Read(SITE, model.header.read_index),))
    )
    token = model.tokenizer.convert_tokens_to_ids(REFUSING)
    line = steer.unit(weight) if causes else np.zeros_like(weight)
    with torch.no_grad():  # the norm's weights of a fresh model are 1: the stream's direction is nearly the site's
        model.model.lm_head.weight[token] = 40 * torch.from_numpy(line)
    return model, probe


def measured(folder: Path, data: Path, model: Any, probe: LinearProbe, **options: Any) -> Summary:
    one = context("causal", folder, data, model=model, probe=probe, **{"settings": SETTINGS, "limit": 4, **options})
    try:
        return causal.run(one)
    finally:
        one.close()


@pytest.fixture(scope="module")
def bound() -> tuple[TransformersBackend, LinearProbe]:
    return planted()


@pytest.fixture
def run(bound: tuple[TransformersBackend, LinearProbe], data: Path, tmp_path: Path) -> tuple[Path, Summary]:
    return tmp_path, measured(tmp_path, data, *bound)


def figures(summary: Summary, name: str, **group: Any) -> list[Figure]:
    return [f for f in summary.figures if f.name.startswith(name) and group.items() <= f.group.items()]


def test_a_direction_that_causes_refusals_is_found_and_random_ones_are_not(run: tuple[Path, Summary]) -> None:
    summary = run[1]
    for side in ("harmful", "benign"):
        for depth in (0, DEPTH):
            about = {"answers": side, "depth": depth}
            (up,) = figures(summary, "refused when steered", **about, strength=30.0, direction="probe")
            (down,) = figures(summary, "refused when steered", **about, strength=-30.0, direction="probe")
            (random,) = figures(summary, "refused when steered", **about, strength=30.0, direction="random")
            assert (up.value, down.value) == (1, 0) and random.value is not None and random.value < 0.5
            (more,) = figures(summary, "change beyond the control's", **about, edit="steer by +30")
            assert more.interval is not None and more.interval[0] > 0 and more.answers == 4
    assert not any("steer by +30" in limit for limit in summary.limits)


def test_a_direction_that_only_goes_along_is_not_called_causal(data: Path, tmp_path: Path) -> None:
    summary = measured(tmp_path, data, *planted(causes=False))
    assert {f.value for f in figures(summary, "change of refusals")} == {0}
    assert all(f.interval and f.interval[0] < 0 < f.interval[1] for f in figures(summary, "change"))
    (limit,) = (limit for limit in summary.limits if "harmful answers at depth 20, refusals do not follow" in limit)
    assert all(edit in limit for edit in ("ablate at the site", "ablate from the site on", "steer by +30", PATCHES[0]))
    assert any("0 of 4 look-aheads refuse" in limit for limit in summary.limits)


def test_the_edits_put_the_read_where_they_should(run: tuple[Path, Summary]) -> None:
    def position(side: str, edit: str, direction: str, depth: int = DEPTH) -> float:
        group = {"answers": side, "depth": depth, "edit": edit, "direction": direction}
        (figure,) = figures(run[1], "position between the means", **group)
        assert figure.value is not None
        return figure.value

    assert position("harmful", "nothing", "none") == pytest.approx(1, abs=1e-3)
    assert position("benign", "nothing", "none") == pytest.approx(0, abs=1e-3)
    for depth in (0, DEPTH):
        swapped = [position(side, PATCHES[0], "none", depth) for side in ("harmful", "benign")]
        alike = [position(side, PATCHES[1], "none", depth) for side in ("harmful", "benign")]
        own = [position(side, "nothing", "none", depth) for side in ("harmful", "benign")]
        assert swapped == pytest.approx(own[::-1], abs=1e-3) and alike == pytest.approx(own, abs=1e-3)
    assert position("harmful", "ablate at the site", "probe") == pytest.approx(
        position("benign", "ablate at the site", "probe"), abs=1e-3
    )
    up, down = (position("harmful", f"steer by {sign}30", "probe") for sign in "+-")
    assert up > 1.5 and down < 0.5


def test_records_hold_ids_and_numbers_and_texts_are_kept_apart(run: tuple[Path, Summary]) -> None:
    folder = run[0]
    records = [json.loads(line) for line in (folder / "records" / "causal.jsonl").read_text().splitlines()]
    texts = [json.loads(line) for line in (folder / "texts" / "causal.jsonl").read_text().splitlines()]
    count = 2 * 2 * 4 * len(arms([-30, 30], 2))
    assert len(records) == len(texts) == count and {row["id"] for row in records} == {row["id"] for row in texts}
    assert {frozenset(row) for row in records} == {
        frozenset(("id", "answer", "depth", "edit", "refused", "projection", "distinct"))
    }


def test_a_finished_run_decodes_nothing_again(
    run: tuple[Path, Summary], bound: tuple[TransformersBackend, LinearProbe], data: Path
) -> None:
    model: Any = Untouchable(bound[0])
    assert measured(run[0], data, model, bound[1]).record() == run[1].record()


def test_a_killed_run_goes_on_and_finds_the_same(
    run: tuple[Path, Summary], bound: tuple[TransformersBackend, LinearProbe], data: Path
) -> None:
    journal = run[0] / "records" / "causal.jsonl"
    whole = journal.read_bytes()
    lines = whole.splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:101]) + lines[101][:30])
    assert measured(run[0], data, *bound).record() == run[1].record()
    assert sorted(journal.read_bytes().splitlines()) == sorted(whole.splitlines())


def test_two_runs_with_one_seed_agree(
    run: tuple[Path, Summary], bound: tuple[TransformersBackend, LinearProbe], data: Path, tmp_path: Path
) -> None:
    assert measured(tmp_path / "again", data, *bound).record() == run[1].record()


def test_the_header_stands_where_the_prompt_has_it(
    bound: tuple[TransformersBackend, LinearProbe], data: Path, tmp_path: Path
) -> None:
    model, probe = bound
    one = context("causal", tmp_path, data, model=model, probe=probe)
    row = one.table("pairs_deep_validation")[0]
    bench = Interventions(one, [row], [row], depth=DEPTH, tokens=4)
    prompt = one.prompt(row)
    assert (*bench._prompt(row, 0).ids, *model.header.ids) == prompt.ids
    later = bench._prompt(row, DEPTH)
    assert later.prefill == DEPTH and later.start == len(prompt.ids)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 1}, "at least 2"),
        ({"settings": {**SETTINGS, "strengths": "0,1"}}, "strengths"),
        ({"settings": {**SETTINGS, "strengths": "much"}}, "strengths"),
        ({"settings": {**SETTINGS, "depth": "0"}}, "depth"),
        ({"settings": {**SETTINGS, "depth": "500"}}, "smaller --limit or --set causal.depth"),
        ({"limit": 400}, "smaller --limit"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    bound: tuple[TransformersBackend, LinearProbe],
    data: Path,
    tmp_path: Path,
    options: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(ConfigError, match=message):
        measured(tmp_path, data, *bound, **options)


def test_a_probe_that_reads_what_no_answer_changes_is_refused(
    bound: tuple[TransformersBackend, LinearProbe], data: Path, tmp_path: Path
) -> None:
    model = bound[0]
    card = ProbeCard(model.identity, model.header.ids, (Read(Site(0), model.header.read_index),))
    with pytest.raises(ConfigError, match="the state is the same after every answer"):
        measured(tmp_path, data, model, LinearProbe(bound[1].weight, 0.0, card))
    assert not list(tmp_path.rglob("*.parquet")), "nothing was read"


def test_a_probe_that_points_the_wrong_way_is_refused(
    bound: tuple[TransformersBackend, LinearProbe], data: Path, tmp_path: Path
) -> None:
    turned = LinearProbe(-bound[1].weight, 0.0, bound[1].card)
    with pytest.raises(ConfigError, match="no gap to steer by"):
        measured(tmp_path, data, bound[0], turned)


def test_the_header_read_with_the_largest_share_is_tested(bound: tuple[TransformersBackend, LinearProbe]) -> None:
    identity, header = bound[0].identity, bound[0].header
    reads = (Read(SITE, CONTENT), Read(Site(1), 2), Read(Site(3), 1))
    weight = np.zeros((3, identity.hidden_size))
    weight[:, 0] = 5, 1, 3
    read, direction, portion = largest_read(LinearProbe(weight, 0.0, ProbeCard(identity, header.ids, reads)))
    assert (read, direction[0], portion) == (reads[2], 3, pytest.approx(9 / 35))
    with pytest.raises(ConfigError, match="none of the Safety Tokens"):
        largest_read(LinearProbe(weight[:1], 0.0, ProbeCard(identity, header.ids, reads[:1])))


def test_every_edit_by_the_probe_has_its_random_ones() -> None:
    found = arms([-1, 2], 3)
    assert found[0] == NONE and len({arm.key for arm in found}) == len(found) == 1 + 4 * (1 + 3) + 2
    for arm in found:
        if arm.direction == "probe":
            assert all(Arm(arm.edit, f"random {n}", arm.strength) in found for n in (1, 2, 3))
