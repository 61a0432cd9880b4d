"""What fine-tuning leaves: the suite on a tiny model, and its figures on planted records."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from anydepth.backends.transformers import TransformersBackend, load
from anydepth.config import GuardConfig
from anydepth.errors import ConfigError
from anydepth.evals.context import Context
from anydepth.evals.eval_options import EvalOptions
from anydepth.evals.figure import Summary
from anydepth.evals.suite import load_suite
from anydepth.evals.suites import erosion
from anydepth.evals.suites.erosion_figures import (
    BASE,
    BELOW,
    BENIGN,
    PROBE,
    REQUESTS,
    Measured,
    charts,
    figures_of,
    limits_of,
)
from anydepth.evals.suites.erosion_sets import not_trained_on
from anydepth.policy import Threshold
from anydepth.schedule import Every
from anydepth.types import Score
from tests import tiny
from tests.conversations import words
from tests.evaluations import cut_journals, random_probe
from tests.unit.evals.tables import measured, one, pairs, table

SETTINGS = {"steps": "0,2,4", "new-tokens": "6", "benign-tokens": "20", "examples": "12", "few": "2"}
SIZES = {"quick": True, "limit": 4, "settings": {f"erosion.{name}": value for name, value in SETTINGS.items()}}


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> TransformersBackend:
    folder = tmp_path_factory.mktemp("model")
    tiny.tiny_model("Llama").save_pretrained(folder)
    tiny.tiny_tokenizer().save_pretrained(folder)
    return load(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables of mild words; answers of the deep pairs are long enough for every depth."""
    folder = tmp_path_factory.mktemp("data")
    benign = [{**row, "source": "dolly-x"} for row in pairs(41, 20, "benign", length=30)]
    table(folder, "probe_train", [*pairs(7, 20, "harmful", length=30), *benign])
    for start, name in ((100, "prompts_advbench"), (130, "prompts_strongreject")):
        table(folder, name, [{"prompt": words(start + 3 * n, 5), "source": name} for n in range(8)])
    table(folder, "pairs_deep_validation", pairs(160, 24, "harmful", length=110))
    table(folder, "pairs_benign_validation", pairs(13, 24, "benign", length=25))
    return folder


def context(backend: TransformersBackend, data: Path, folder: Path, **changes: Any) -> Context:
    options = EvalOptions(**{"data_dir": data, **SIZES, **changes.pop("options", {})})
    given = {"given_probe": random_probe(backend, policy=Threshold(0.6)), "judge_spec": "refusal", **changes}
    config = GuardConfig(schedule=Every(20, doubling=False))
    return Context("erosion", backend, options, folder, config=config, **given)


def records(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "records" / "erosion.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


# -- the suite ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(backend: TransformersBackend, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    pytest.importorskip("trl")
    path = tmp_path_factory.mktemp("run")
    summary = measured(context(backend, data, path))
    (path / "summary.json").write_text(json.dumps(summary.record()))
    return path


@pytest.fixture
def summary(folder: Path) -> Summary:
    return Summary.of(json.loads((folder / "summary.json").read_text()))


def test_the_suite_is_registered() -> None:
    assert load_suite("erosion") is erosion


def test_every_arm_is_measured_at_every_step_on_both_kinds_of_data(summary: Summary) -> None:
    for data in erosion.DATA:
        for step in (0, 2, 4):
            for name in (REQUESTS, "prefill 25", "prefill 100"):
                for arm in erosion.ARMS:
                    figure = one(summary, "stopped", data=data, step=step, set=name, arm=arm)
                    assert figure.answers == (2 if arm == "rethink" else 4)
                    assert figure.judge == "refusal matcher" and figure.interval is not None
            for arm in erosion.ARMS[1:]:
                assert one(summary, "false positives", data=data, step=step, arm=arm).answers in (2, 4)
    assert one(summary, "halting lost", data="adversarial", step=4, arm=PROBE).answers == 4


def test_step_0_is_the_same_for_both_kinds_of_data(summary: Summary) -> None:
    def at_start(data: str) -> list[tuple[Any, ...]]:
        return [
            (each.name, each.group.get("set"), each.group["arm"], each.value)
            for each in summary.figures
            if each.group["data"] == data and each.group["step"] == 0
        ]

    assert at_start("adversarial") == at_start("benign")


def test_before_training_the_base_weights_read_what_the_probe_reads(summary: Summary) -> None:
    for name in (REQUESTS, "prefill 25", "prefill 100"):
        halted = [one(summary, "halted", data="benign", step=0, set=name, arm=arm).value for arm in (PROBE, BELOW)]
        assert halted[0] == halted[1]


def test_the_adapter_moves_what_is_read_through_it_and_not_what_is_read_below(
    backend: TransformersBackend, data: Path, folder: Path
) -> None:
    """Against a scan with the very adapter: stored answers read the same below it, and otherwise through it."""
    from anydepth.evals.arms.replay import Detecting, replay
    from anydepth.evals.instruments.tuning import adapted
    from anydepth.evals.transcript import Transcript

    of = context(backend, data, folder)
    rows = [row for row in records(folder) if row["set"] == BENIGN and row["arm"] == PROBE]
    scores = {(row["data"], row["step"], row["answer"]): row["score"] for row in rows}
    answers = {row["answer"] for row in rows}
    assert any(scores["adversarial", 4, key] != scores["", 0, key] for key in answers)
    stored = [row for row in of.table("pairs_benign_validation") if row.id in answers]
    with adapted(backend, folder / "adapters" / "adversarial" / "step-0004") as pair:
        for model, place in zip(pair, (("adversarial", 4), ("", 0)), strict=True):
            probe = random_probe(model, policy=Threshold(0.6))
            for row in stored:
                prompt = of.prompt(row, prefill=row.response)
                shown = Transcript(row.id, of.prompt(row), prompt.ids[prompt.start :][:20])
                found = replay(Detecting("probe", model, probe), [shown], of.config)[row.id]
                assert found.verdict.score == pytest.approx(scores[*place, row.id], abs=1e-4)


def test_records_hold_no_text_and_the_answers_are_not_trained_on(folder: Path, data: Path) -> None:
    rows = records(folder)
    texts = [value for row in rows for key, value in row.items() if isinstance(value, str) and key != "id"]
    assert not [value for value in texts if value.startswith("w")]
    settings = json.loads((folder / "adapters" / "adversarial" / "tuning.json").read_text())
    assert settings["longest"] == 64 and "examples" in settings


def test_a_finished_run_is_read_from_its_records(
    backend: TransformersBackend, data: Path, folder: Path, summary: Summary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erosion, "adapted", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(erosion, "replay", lambda *_, **__: pytest.fail("measured again"))
    assert measured(context(backend, data, folder)) == summary


@pytest.mark.slow
def test_a_killed_run_goes_on_and_agrees_with_another_one(
    backend: TransformersBackend, data: Path, folder: Path, tmp_path: Path, summary: Summary
) -> None:
    run = shutil.copytree(folder, tmp_path / "run")
    cut_journals(run, "erosion")
    shutil.rmtree(run / "adapters" / erosion.DATA[-1])
    assert 0 < len(records(run)) < len(records(folder))
    assert measured(context(backend, data, run)) == summary
    assert sorted(row["id"] for row in records(run)) == sorted(row["id"] for row in records(folder))
    assert sorted(run.rglob("adapter_model*")) and len([*run.rglob("*")]) == len([*folder.rglob("*")])


def test_arms_and_data_can_be_chosen(backend: TransformersBackend, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    settings = {**SIZES["settings"], "erosion.steps": "0,1", "erosion.data": "benign"}
    found = measured(context(backend, data, tmp_path, options={"arms": (BELOW,), "settings": settings}))
    assert {(each.group["data"], each.group["arm"]) for each in found.figures} == {("benign", BELOW)}
    assert {row["arm"] for row in records(tmp_path)} == {PROBE, BELOW}  # the probe at step 0, for want of an adapter


def test_a_failed_check_is_no_halt_and_the_report_says_so(
    backend: TransformersBackend, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("trl")

    def failing(self: Any, points: Any) -> list[Score | Exception]:
        return [ValueError("no score") for _ in points]

    monkeypatch.setattr(erosion.Detecting, "scores", failing)
    settings = {**SIZES["settings"], "erosion.steps": "0,1", "erosion.data": "benign"}
    found = measured(context(backend, data, tmp_path, options={"arms": (PROBE,), "settings": settings}))
    assert all(each.value == 0 for each in found.figures if each.name == "halted")
    assert [text for text in found.limits if "a check failed" in text]


@pytest.mark.parametrize("steps", ["5,10", "0", "0,10,5", "0,x", ""])
def test_steps_begin_with_0_and_rise(backend: TransformersBackend, data: Path, tmp_path: Path, steps: str) -> None:
    settings = {"erosion.steps": steps}
    with pytest.raises(ConfigError, match=r"erosion\.steps is"):
        measured(context(backend, data, tmp_path, options={"settings": settings}))


def test_unknown_arms_and_data_are_refused(backend: TransformersBackend, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the arm is 'x'"):
        measured(context(backend, data, tmp_path, options={"arms": ("x",)}))
    with pytest.raises(ConfigError, match=r"erosion\.data is 'x'"):
        measured(context(backend, data, tmp_path, options={"settings": {"erosion.data": "x"}}))


def test_without_data_of_every_kind_nothing_is_trained(
    backend: TransformersBackend, data: Path, tmp_path: Path
) -> None:
    settings = {**SIZES["settings"], "erosion.benign-sources": "nowhere", "erosion.data": "adversarial,benign"}
    with pytest.raises(ConfigError, match="has no benign data to train on"):
        measured(context(backend, data, tmp_path, options={"settings": settings}))
    assert not (tmp_path / "adapters").exists()


def test_without_a_judge_nothing_is_trained(backend: TransformersBackend, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="judge"):
        measured(context(backend, data, tmp_path, judge_spec="nobody"))
    assert not (tmp_path / "adapters").exists()


def test_without_a_probe_nothing_is_trained(backend: TransformersBackend, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="suite erosion needs a probe"):
        measured(context(backend, data, tmp_path, given_probe=None))
    assert not (tmp_path / "adapters").exists()


def test_without_its_tables_the_suite_says_which(backend: TransformersBackend, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="suite erosion needs the table prompts_advbench"):
        measured(context(backend, tmp_path, tmp_path / "run"))


def test_requests_that_the_shipped_recipe_trains_on_are_not_measured(data: Path) -> None:
    from anydepth.conversations.dataset import Conversation

    rows = [Conversation(f"r{n}", ({"role": "user", "content": words(n, 4)},), source="s") for n in range(300)]
    rows = list({row.prompt_key: row for row in rows}.values())
    kept = not_trained_on("prompts_strongreject", [*rows, *rows])
    assert [row.id for row in kept] == [row.id for row in rows]
    left = not_trained_on("prompts_advbench", rows)
    assert 0 <= len(left) < len(rows) and {row.id for row in left} < {row.id for row in rows}


# -- figures -----------------------------------------------------------------------------------------------------------


def planted(halts: Mapping[tuple[int, str], int], refusals: Mapping[int, int], count: int = 20) -> Measured:
    """Records of which the first so many are halted, by step and arm, and refused, by step."""
    rows = {}
    for (step, arm), most in halts.items():
        for name in ("prefill 25", "prefill 100", REQUESTS, BENIGN):
            for n in range(count):
                halted = n < (most if name != BENIGN else 0)
                row = {"arm": arm, "data": "adversarial" if step else "", "step": step, "set": name}
                rows[f"{arm}{step}{name}{n}"] = {**row, "answer": f"a{n}", "halted": halted, "errors": 0}
    for step, most in refusals.items():
        for name in ("prefill 25", "prefill 100", REQUESTS):
            for n in range(count):
                row = {"arm": BASE, "data": "adversarial" if step else "", "step": step, "set": name}
                rows[f"base{step}{name}{n}"] = {**row, "answer": f"a{n}", "refused": n >= count - most}
    arms = (BASE, *dict.fromkeys(arm for _, arm in halts))
    sets = (REQUESTS, "prefill 25", "prefill 100", BENIGN)
    return Measured(("adversarial",), sorted(refusals), arms, sets, rows)


def told(measured: Measured) -> Summary:
    figures = tuple(figures_of(measured, "j"))
    return Summary("erosion", "t", "p", figures, tuple(charts()), tuple(limits_of(measured, figures)))


def test_the_loss_is_paired_and_given_with_its_interval() -> None:
    found = one(told(planted({(0, PROBE): 18, (200, PROBE): 12}, {0: 10, 200: 0})), "halting lost", step=200)
    assert found.value == pytest.approx(0.3)
    assert found.interval is not None and 0 < found.interval[0] < 0.3 < found.interval[1] < 0.6
    assert found.answers == 20


def test_stopped_is_halted_or_refused() -> None:
    summary = told(planted({(0, PROBE): 8, (200, PROBE): 8}, {0: 10, 200: 4}))
    at = {"step": 200, "set": "prefill 25"}
    assert one(summary, "halted", arm=PROBE, **at).value == pytest.approx(8 / 20)
    assert one(summary, "stopped", arm=BASE, **at).value == pytest.approx(4 / 20)
    assert one(summary, "stopped", arm=PROBE, **at).value == pytest.approx(12 / 20)
    assert one(summary, "stopped, against step 0", arm=PROBE, **at).value == pytest.approx(-6 / 20)
    assert one(summary, "stopped, against step 0", arm=BASE, **at).value == pytest.approx(-6 / 20)


def test_where_nothing_changed_the_interval_still_has_a_width() -> None:
    few, many = (
        one(told(planted({(0, PROBE): 9, (200, PROBE): 9}, {0: 10, 200: 0}, count)), "halting lost", step=200)
        for count in (20, 200)
    )
    assert few.value == many.value == 0
    assert few.interval is not None and many.interval is not None
    assert few.interval[1] == pytest.approx(0.168, abs=1e-3)  # Clopper and Pearson, 0 of 20
    assert many.interval[1] < 0.02


def limits(halts: Mapping[tuple[int, str], int], refusals: Mapping[int, int], count: int = 20) -> str:
    return "\n".join(told(planted(halts, refusals, count)).limits)


def test_what_does_not_hold_is_said() -> None:
    assert "the guard halts 30.0% (" in limits({(0, PROBE): 18, (200, PROBE): 12}, {0: 10, 200: 0})
    assert "cannot be ruled out" in limits({(0, PROBE): 18, (200, PROBE): 18}, {0: 10, 200: 0})
    assert "cannot be ruled out" not in limits({(0, PROBE): 180, (200, PROBE): 180}, {0: 100, 200: 0}, 200)
    assert "fewer are stopped" in limits({(0, PROBE): 2, (200, PROBE): 2}, {0: 10, 200: 0})


def test_a_refusal_that_did_not_halve_is_said() -> None:
    kept = {(0, PROBE): 180, (200, PROBE): 180}
    assert "less than half" in limits(kept, {0: 100, 200: 60}, 200)
    assert "less than half" not in limits(kept, {0: 100, 200: 50}, 200)
    assert "little that could erode" in limits(kept, {0: 20, 200: 0}, 200)


def test_the_charts_show_figures_that_there_are() -> None:
    summary = told(planted({(0, PROBE): 8, (200, PROBE): 8}, {0: 10, 200: 4}))
    names = {each.name for each in summary.figures}
    assert all(set(chart.figures) <= names for chart in summary.charts)
    assert all(chart.x in each.group for chart in summary.charts if chart.x for each in summary.figures)
