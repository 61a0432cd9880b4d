"""From conversations to a probe on a tiny real model: what is read, chosen, calibrated, measured and saved."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anydepth import Guard, LinearProbe
from anydepth.backends.protocol import CONTENT, WHOLE, Read, Site
from anydepth.backends.transformers import TransformersBackend
from anydepth.conversations.augment import swap, wrap
from anydepth.conversations.dataset import Conversation, Label
from anydepth.conversations.splits import Text
from anydepth.errors import ConfigError, StoreError
from anydepth.policy import policy_from
from anydepth.probes.artefact.modelcard import write_folder
from anydepth.probes.fitting.calibrate import peak
from anydepth.probes.fitting.figures import figures_of, limits_of
from anydepth.probes.fitting.measure import trails
from anydepth.probes.fitting.train import Filled, Trained, _in_half, fill, train
from anydepth.probes.recipe.pairs import half
from anydepth.probes.recipe.recipe import TRAIN, Gathered, Recipe, RecipePart, recipe_from
from anydepth.probes.states.store import Checks, answer_key
from tests import tiny

PAIR = {"name": "held out", "harmful": "v", "benign": "v"}
RECIPE: dict[str, Any] = {
    "part": [
        {"name": "t", "data": "t.jsonl", "depths": [4, 16, 25]},
        {"name": "v", "data": "v.jsonl", "split": "v"},
    ],
    "fit": {"layers": [2, 3], "tokens": ["read", ["read", "content"]], "strength": [0.01, 0.1]},
    "choose": {"pairs": [PAIR], "policies": [{"name": "threshold"}, {"name": "ewma", "alpha": 0.3}]},
    "calibrate": {"benign": "v", "target": 0.1},
}


def talk(number: int, length: int = 40) -> Conversation:
    """An answer in the words of its class: from w0 on they are harmless, from w100 on for harm."""
    rng = random.Random(number)
    label: Label = "harmful" if number % 2 else "benign"
    first = 100 if label == "harmful" else 0
    prompt = " ".join(f"w{rng.randrange(200)}" for _ in range(8))
    response = " ".join(f"w{first + rng.randrange(15)}" for _ in range(length))
    return Conversation(f"c{number}", ({"role": "user", "content": prompt},), response, label, f"s{number % 3}", "MIT")


def recipe_of(**changes: Any) -> Recipe:
    return recipe_from({**RECIPE, **changes}, "test")


def gathered_for(recipe: Recipe, *sets: Sequence[Conversation]) -> list[Gathered]:
    return [Gathered(part, rows, "") for part, rows in zip(recipe.parts, sets, strict=True)]


def silent(what: str, done: int, total: int, tokens: int) -> None:
    """Nobody watches."""


@pytest.fixture(scope="module")
def backend() -> TransformersBackend:
    return TransformersBackend(tiny.tiny_model("Llama"), tiny.tiny_tokenizer())


TRAINING, HELD_OUT = [talk(n) for n in range(60)], [talk(n, 20 + n % 40) for n in range(100, 180)]


@pytest.fixture(scope="module")
def done(backend: TransformersBackend, tmp_path_factory: pytest.TempPathFactory) -> tuple[Filled, Trained]:
    """One run that the tests look at."""
    recipe = recipe_of()
    work = tmp_path_factory.mktemp("work")
    filled = fill(backend, gathered_for(recipe, TRAINING, HELD_OUT), recipe, work, progress=silent)
    return filled, train(backend, filled, recipe, progress=silent)


def states(filled: Filled, reads: Sequence[Read]) -> Checks:
    return filled.store.read([(read.site, read.token) for read in reads])


# -- filling -----------------------------------------------------------------------------------------------------------


def test_every_part_is_read_at_its_depths(done: tuple[Filled, Trained]) -> None:
    filled, _ = done
    checks = states(filled, [Read(Site(2), 0)])
    training, held_out = (checks.where(checks["split"] == split) for split in (TRAIN, "v"))
    assert set(training["id"].tolist()) == {row.id for row in TRAINING}
    assert set(training["depth"].tolist()) == {0, 4, 16, 25, 40}
    assert set(held_out["id"].tolist()) == {row.id for row in HELD_OUT}
    assert {0, 1, 2, 4, 8, 16, 25, 50} <= set(held_out["depth"].tolist()), "a held-out answer is read as a guard would"
    manifest = filled.store.manifest
    assert manifest.sites == (Site(2), Site(3)) and manifest.tokens == (CONTENT, *range(len(manifest.header_ids)))
    keys = {row.id: answer_key(row.messages, row.response) for row in (*TRAINING, *HELD_OUT)}
    assert {key: each.facts.split for key, each in filled.used.items()} == {
        **{keys[row.id]: TRAIN for row in TRAINING},
        **{keys[row.id]: "v" for row in HELD_OUT},
    }


def test_a_probe_of_means_comes_out_of_a_recipe_that_names_them(backend: TransformersBackend, tmp_path: Path) -> None:
    fit = {"layers": ["3.mlp", 2], "tokens": ["mean5", ["read", "mean"]], "strength": 0.1}
    recipe = recipe_of(fit=fit)
    filled = fill(backend, gathered_for(recipe, TRAINING, HELD_OUT), recipe, tmp_path, progress=silent)
    manifest = filled.store.manifest
    assert manifest.sites == (Site(2), Site(3, "mlp"))
    assert manifest.tokens == (CONTENT, *range(len(manifest.header_ids)), -5, WHOLE)
    trained = train(backend, filled, recipe, progress=silent)
    index = manifest.read_index
    assert {trial.candidate.reads for trial in trained.trials} == {
        (Read(Site(2), -5),),
        (Read(Site(2), index), Read(Site(2), WHOLE)),
        (Read(Site(3, "mlp"), -5),),
        (Read(Site(3, "mlp"), index), Read(Site(3, "mlp"), WHOLE)),
    }
    path = tmp_path / "p.safetensors"
    trained.probe.save(path)
    loaded = LinearProbe.load(path)
    loaded.bind(backend)
    assert loaded.reads == trained.trials[0].candidate.reads and any(read.is_mean for read in loaded.reads)


def test_the_control_of_a_probe_of_means_knows_what_the_request_says(
    backend: TransformersBackend, tmp_path: Path
) -> None:
    """At depth 0 a mean is zero, and no single check halts by k of n: the control is a probe of its own."""

    def told(row: Conversation) -> Conversation:
        request = " ".join(f"w{(150 if row.label == 'harmful' else 50) + n % 7}" for n in range(len(row.id), 14))
        return replace(row, messages=({"role": "user", "content": f"{request} {row.prompt}"},))

    recipe = recipe_of(
        fit={"layers": 2, "tokens": "mean5", "strength": 0.1},
        choose={"pairs": [PAIR], "policies": [{"name": "k_of_n", "k": 2, "n": 3}]},
    )
    given = gathered_for(recipe, [told(row) for row in TRAINING], [told(row) for row in HELD_OUT])
    trained = train(backend, fill(backend, given, recipe, tmp_path, progress=silent), recipe, progress=silent)
    assert trained.probe.reads == (Read(Site(2), -5),)
    index = len(backend.header.ids) - 1
    assert trained.figures["control"]["reads"] == [str(Read(Site(2), index))]
    control = trained.figures["pairs"]["held out"]["control"]
    assert control["auroc"]["value"] > 0.9 and control["halted"]["rate"] > 0.5


class Watched(TransformersBackend):
    """Counts what it is asked to do."""

    reads = 0
    opened: list[dict[str, Any]]

    def read_batch(self, answers: Any, *arguments: Any, **options: Any) -> Any:
        self.reads += len(answers)
        return super().read_batch(answers, *arguments, **options)

    def open(self, prompts: Any, **options: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.opened.append(options)
        return super().open(prompts, **options)


@pytest.fixture
def watched() -> Watched:
    found = Watched(tiny.tiny_model("Llama"), tiny.tiny_tokenizer())
    found.model.generation_config.eos_token_id = None  # a random model would end its answers anywhere
    found.opened = []
    return found


WRITING: dict[str, Any] = {
    **RECIPE,
    "part": [
        {"name": "t", "data": "t.jsonl", "depths": [4, 16], "longest": 16},
        {"name": "own", "data": "p.jsonl", "written": True, "longest": 12, "depths": [4]},
        {"name": "v", "data": "v.jsonl", "split": "v"},
    ],
    "write": {"do_sample": True, "temperature": 0.7, "top_k": 20},
}


def prompts() -> list[Conversation]:
    """Harmless prompts to answer, and a harmful one with the words that its answer is to begin with."""
    asked = [replace(talk(2 * n), response="") for n in range(200, 206)]
    return [*asked, replace(talk(999), response="w150 w151", tags={"target": "w150 w151"})]


def test_the_model_writes_with_the_recipes_sampling(watched: Watched, tmp_path: Path) -> None:
    recipe = recipe_from(WRITING, "test")
    given = gathered_for(recipe, TRAINING[:8], prompts(), HELD_OUT[:12])
    told: list[tuple[str, int, int]] = []

    def tell(what: str, done: int, total: int, tokens: int) -> None:
        told.append((what, done, total))

    filled = fill(watched, given, recipe, tmp_path, progress=tell)
    assert watched.opened
    for options in watched.opened:
        assert {name: options[name] for name in WRITING["write"]} == WRITING["write"]
        assert options["max_new_tokens"] == 12
    written = filled.gathered[1].conversations
    assert {row.id.rpartition("-")[0] for row in written} == {f"{row.id}+own" for row in prompts()}
    assert all(
        row.response and row.prompt_key == before.prompt_key
        for row, before in zip(
            sorted(written, key=lambda row: row.id), sorted(prompts(), key=lambda row: row.id), strict=True
        )
    )
    (continued,) = (row for row in written if row.label == "harmful")
    assert continued.response.startswith("w150 w151 ")
    checks = states(filled, [Read(Site(2), 0)])
    own = checks.where(np.char.find(checks["id"], "+own-") > 0)
    assert set(own["split"].tolist()) == {TRAIN} and set(own["depth"].tolist()) >= {0, 4, 12}
    assert list(dict.fromkeys(what for what, _, _ in told)) == [
        "write own",
        "collect t",
        "collect own",
        "collect v",
    ]
    for name in ("collect t", "write own", "collect own", "collect v"):
        assert [(done, total) for what, done, total in told if what == name][-1][0] == max(
            total for what, _, total in told if what == name
        )


def test_a_resumed_fill_reads_and_writes_nothing_again(watched: Watched, tmp_path: Path) -> None:
    recipe = recipe_from(WRITING, "test")
    given = gathered_for(recipe, TRAINING[:8], prompts(), HELD_OUT[:12])
    first = fill(watched, given, recipe, tmp_path, progress=silent)
    reads, opened = watched.reads, len(watched.opened)
    assert reads == 8 + 7 + 12 and opened
    again = fill(watched, given, recipe, tmp_path, progress=silent)
    assert (watched.reads, len(watched.opened)) == (reads, opened)
    assert again.gathered == first.gathered and again.used == first.used


def test_other_sampling_options_do_not_mix_with_what_was_written(watched: Watched, tmp_path: Path) -> None:
    recipe = recipe_from(WRITING, "test")
    given = gathered_for(recipe, TRAINING[:4], prompts(), HELD_OUT[:12])
    fill(watched, given, recipe, tmp_path, progress=silent)
    with pytest.raises(ConfigError, match="was begun with sampling"):
        fill(watched, given, replace(recipe, write={"do_sample": False}), tmp_path, progress=silent)


def test_what_cannot_be_read_or_is_not_written_is_said(watched: Watched, tmp_path: Path) -> None:
    recipe = recipe_from(WRITING, "test")
    long = replace(talk(1, 600), id="long")
    unlabelled = replace(talk(3), id="x", label=None, response="")
    given = gathered_for(recipe, TRAINING[:4], [*prompts(), unlabelled], [*HELD_OUT[:12], long])
    given[0] = replace(given[0], left_out="2 that are nearly in the held-out sets")
    filled = fill(watched, given, recipe, tmp_path, progress=silent)
    assert [each.left_out for each in filled.gathered] == [
        "2 that are nearly in the held-out sets",
        "1 answers: not written, empty or a refusal",
        "1 answers: could not be read",
    ]


def test_an_adapters_states_do_not_mix_with_the_models(watched: Watched, tmp_path: Path) -> None:
    recipe = recipe_of()
    given = gathered_for(recipe, TRAINING[:4], HELD_OUT[:12])
    assert fill(watched, given, recipe, tmp_path, progress=silent).store.manifest.adapter is None
    with pytest.raises(StoreError, match="was collected with adapter None, not lora"):
        fill(watched, given, recipe, tmp_path, adapter="lora", progress=silent)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"fit": {"strenght": 1}}, "[fit] has 'strenght'"),
        ({"fit": {"tokens": 40}}, "token 40 was not collected"),
        ({"fit": {"strength": -1}}, "strength is -1"),
        ({"choose": {}}, "recipe test has no [choose] pairs"),
        ({"choose": {"pairs": [{"name": "p", "harmful": "v"}]}}, "a comparison has no 'benign'"),
        ({"choose": {"pairs": [{**PAIR, "benign": "w"}]}}, "recipe test: there is no held-out set 'w'; there is 'v'"),
        ({"choose": {"pairs": [{**PAIR, "benign": "train"}]}}, "there is no held-out set 'train'"),
        ({"choose": {"pairs": [PAIR], "policies": []}}, "[choose] policies is empty"),
        ({"choose": {"pairs": [PAIR], "policies": [{"name": "ewna"}]}}, "policy is 'ewna'; choose one of"),
        ({"choose": {"pairs": [PAIR], "polices": []}}, "[choose] has 'polices'; it takes pairs, policies"),
        ({"choose": {"pairs": [PAIR], "by": "f1"}}, "[choose] by is 'f1'; choose auroc or halted"),
        (
            {"calibrate": {"benign": "v", "contract": "oath"}},
            "[calibrate] contract is 'oath'; choose rate or guarantee",
        ),
        ({"calibrate": {"benign": "v", "confidence": 1}}, "[calibrate] confidence is 1; it must lie between 0 and 1"),
        ({"calibrate": {"benign": "v", "target": 0.1, "contract": "guarantee"}}, "needs 29 benign answers"),
        ({"calibrate": {}}, "recipe test has no [calibrate] benign"),
        ({"calibrate": {"benign": ["v"], "target": 2}}, "[calibrate] target is 2; it must lie between 0 and 1"),
        ({"calibrate": {"benign": "u"}}, "there is no held-out set 'u'"),
        ({"measure": {"leave_out": "yes"}}, "[measure] leave_out is 'yes'; choose true or false"),
        ({"measure": {"pairs": [{**PAIR, "harmful": "u"}]}}, "there is no held-out set 'u'"),
    ],
)
def test_a_recipe_that_asks_for_what_there_is_not_is_refused_before_anything_is_read(
    watched: Watched, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    recipe = recipe_of(**changes)
    with pytest.raises(ConfigError) as error:
        fill(watched, gathered_for(recipe, TRAINING, HELD_OUT), recipe, tmp_path, progress=silent)
    assert says in str(error.value)
    assert not watched.reads and not list(tmp_path.iterdir())


def test_layers_may_be_one_number_or_a_share(watched: Watched, tmp_path: Path) -> None:
    for layers, expected in ((3, (Site(3),)), (0.5, (Site(2),)), ([[1, 0.75], 2], (Site(1), Site(2), Site(3)))):
        recipe = recipe_of(fit={"layers": layers})
        given = gathered_for(recipe, TRAINING[:2], HELD_OUT[:12])
        assert fill(watched, given, recipe, tmp_path / str(layers), progress=silent).store.manifest.sites == expected


# -- training ----------------------------------------------------------------------------------------------------------


def test_the_classes_are_told_apart(done: tuple[Filled, Trained]) -> None:
    _, trained = done
    figure = trained.figures["separation"]["held out"]
    assert figure["auroc"] > 0.9 and figure["interval"][0] <= figure["auroc"] <= figure["interval"][1]
    assert len(trained.trials) == 2 * 2 * 2
    assert [trial.merit for trial in trained.trials] == sorted((t.merit for t in trained.trials), reverse=True)


def test_the_probe_is_the_best_trial_with_its_evidence(
    done: tuple[Filled, Trained], backend: TransformersBackend
) -> None:
    _, trained = done
    best, card = trained.trials[0], trained.probe.card
    assert trained.probe.reads == best.candidate.reads and card.model == backend.identity
    assert np.array_equal(trained.probe.weight, best.fitted.weight.astype(np.float32))
    assert card.header_ids == backend.header.ids and card.template_digest == backend.template.digest
    assert card.dtype == "float32" and card.seed == 0 and card.created
    assert {"anydepth", "scikit-learn", "torch"} <= set(card.versions)
    assert [(each["name"], each["answers"]) for each in card.sources] == [("s0", "20"), ("s1", "20"), ("s2", "20")]
    assert card.calibration["target"] == 0.1 and card.calibration["achieved"] <= 0.1
    assert "every" in str(card.calibration["schedule"]).lower()
    assert trained.probe.policy is not None and type(trained.probe.policy) is type(best.policy)


def test_choice_and_report_share_no_prompt(done: tuple[Filled, Trained]) -> None:
    filled, trained = done
    checks = states(filled, trained.probe.reads)
    held_out = checks.where(checks["split"] == "v")
    chosen, reported = (held_out.where(_in_half(held_out, which)) for which in (0, 1))
    assert len(chosen) + len(reported) == len(held_out)
    for facts in ("prompt_key", "answer"):
        assert not set(chosen[facts].tolist()) & set(reported[facts].tolist())
    logits = trained.trials[0].fitted.logits(reported.states)
    policy = trained.probe.policy
    assert policy is not None
    found = trails(reported, logits, ["v"], "harmful")
    halted = sum(peak(policy, each) >= policy.threshold for each in found)
    figure = trained.figures["halted"]["v"]
    assert (figure["answers"], figure["halted"]) == (len(found), halted)
    calibrated = trails(held_out, trained.trials[0].fitted.logits(held_out.states), ["v"], "benign")
    assert trained.figures["false_positives"]["v"]["answers"] == len(calibrated)
    assert trained.probe.card.calibration["answers"] == len(calibrated)
    assert trained.probe.card.calibration["halted"] == sum(
        peak(policy, each) >= policy.threshold for each in calibrated
    )


def test_the_card_says_what_is_halted_on_the_other_half(done: tuple[Filled, Trained]) -> None:
    _, trained = done
    figure, found = trained.figures["calibration"], trained.probe.card.calibration
    assert figure["contract"] == found["contract"] == "rate" and not found["guarantee"]
    assert figure["other_half"] == found["other_half"]
    assert {name: figure["other_half"][name] for name in ("answers", "halted")} == {
        name: trained.figures["false_positives"]["v"][name] for name in ("answers", "halted")
    }
    assert found["note"] == figure["note"]


def test_a_guarantee_and_a_choice_by_what_is_halted(backend: TransformersBackend, done: tuple[Filled, Trained]) -> None:
    filled, _ = done
    choose = {**RECIPE["choose"], "by": "halted"}
    calibrate = {"benign": "v", "target": 0.3, "contract": "guarantee", "confidence": 0.9}
    trained = train(backend, filled, recipe_of(choose=choose, calibrate=calibrate), progress=silent)
    assert trained.trials[0].merit == trained.trials[0].halted["held out"] > 0.5
    card = trained.probe.card.calibration
    in_second = half([row.prompt_key for row in HELD_OUT if row.label == "benign"], 1)
    assert card["contract"] == "guarantee" and card["guarantee"] and card["confidence"] == 0.9
    assert card["answers"] == in_second.sum() and card["upper_bound"] <= 0.3
    assert card["other_half"]["answers"] == (~in_second).sum() == trained.figures["false_positives"]["v"]["answers"]


def test_a_guarantee_counts_prompts(backend: TransformersBackend, tmp_path: Path) -> None:
    more = [replace(row, id=f"{row.id} again", response=f"{row.response} w1") for row in only("benign", HELD_OUT)]
    calibrate = {"benign": "v", "target": 0.3, "contract": "guarantee", "confidence": 0.9}
    recipe = recipe_of(fit={"layers": 2}, calibrate=calibrate)
    given = gathered_for(recipe, TRAINING, [*HELD_OUT, *more])
    trained = train(backend, fill(backend, given, recipe, tmp_path, progress=silent), recipe, progress=silent)
    assert trained.probe.card.calibration["answers"] == sum(half([row.prompt_key for row in more], 1))
    strict = recipe_of(fit={"layers": 2}, calibrate={**calibrate, "target": 0.08})
    with pytest.raises(ConfigError, match="needs 28 benign answers to different prompts"):
        fill(backend, gathered_for(strict, TRAINING, [*HELD_OUT, *more]), strict, tmp_path, progress=silent)


def test_every_pair_is_reported_with_its_control(done: tuple[Filled, Trained]) -> None:
    _, trained = done
    found = trained.figures["pairs"]["held out"]
    assert found["auroc"]["value"] == pytest.approx(trained.figures["separation"]["held out"]["auroc"])
    rate = {name: trained.figures["halted"]["v"][name] for name in ("answers", "halted", "rate", "interval")}
    assert found["halted"] == rate
    assert found["control"]["auroc"]["value"] < 0.8 < found["auroc"]["value"], "the prompts of the test are random"
    assert trained.figures["crossed"] == []
    groups = trained.figures["groups"]["source"]
    assert {(each["set"], each["label"], each["source"]) for each in groups} == {
        ("v", label, f"s{number}") for label in ("harmful", "benign") for number in range(3)
    }
    assert sum(each["halted"]["answers"] for each in groups if each["label"] == "harmful") == rate["answers"]
    card = figures_of(trained)
    assert next(iter(card)) == "Answers under their own requests" and "By category" not in card
    assert card["Answers under their own requests"][0]["pair"] == "held out"


def test_crossed_pairs_come_first_and_sources_are_left_out(backend: TransformersBackend, tmp_path: Path) -> None:
    moved = {"name": "x", "data": "x.jsonl", "split": "x", "augment": "swap", "under": "v"}
    crossed = {"name": "moved", "harmful": "x", "benign": "v", "first_depth": 4}
    recipe = recipe_of(
        fit={"layers": 2, "strength": 0.1}, part=[*RECIPE["part"], moved],
        measure={"pairs": [PAIR, crossed], "leave_out": True},
    )  # fmt: skip
    under = [
        replace(row, tags={**row.tags, "category": "c"})
        for row in swap([talk(n) for n in range(301, 341, 2)], HELD_OUT[::2])
    ]
    filled = fill(backend, gathered_for(recipe, TRAINING, HELD_OUT, under), recipe, tmp_path, progress=silent)
    trained = train(backend, filled, recipe, progress=silent)
    hosts = {row.prompt_key: row for row in HELD_OUT[::2]}
    moved_now = [each for each in filled.used.values() if each.facts.split == "x"]
    assert len(moved_now) == 20
    for each in moved_now:
        assert each.host_key != each.facts.prompt_key and each.host_source == hosts[each.host_key].source
    chosen = [hosts[row.host_key] for row in under if half([row.prompt_key], 0)[0]]
    assert {Text.of(row.messages, row.response).key for row in chosen} <= trained.seen["chosen"]
    assert trained.figures["crossed"] == ["moved"] and list(trained.figures["pairs"]) == ["held out", "moved"]
    assert trained.figures["pairs"]["moved"]["first_depth"] == 4
    card = figures_of(trained)
    assert list(card)[:2] == ["Answers under requests that say nothing of them", "Answers under their own requests"]
    assert [row["pair"] for row in card["From depth 25 on"]] == ["moved", "held out"]
    (category,) = card["By category"]
    assert (category["set"], category["category"]) == ("x", "c")
    left = trained.figures["leave_out"]
    assert list(left) == ["s0", "s1", "s2"] and all(each["against"] == "its own" for each in left.values())
    assert {row["source"]: row["AUROC"]["value"] for row in card["Sources that a refit never saw"]} == {
        name: each["auroc"] for name, each in left.items()
    }
    folder = write_folder(tmp_path / "probe", trained.probe, card, limits_of(trained), "anydepth fit")
    text = (folder / "README.md").read_text(encoding="utf-8")
    table = text.split("### Answers under requests that say nothing of them", 1)[1]
    assert "| pair | AUROC | AUROC of the request alone | added | halted |" in table and "| moved |" in table


def test_copies_of_a_prompt_are_in_its_half() -> None:
    rows = [talk(n) for n in range(40)]
    keys = np.array([row.prompt_key for row in [*rows, *wrap(rows), *wrap(wrap(rows))]])
    in_first = _in_half(Checks({"prompt_key": keys}, np.zeros((len(keys), 1, 1))), 0)
    assert in_first.reshape(3, 40).any(0).tolist() == in_first.reshape(3, 40).all(0).tolist()
    assert 0 < in_first.sum() < len(keys)


def test_the_report_can_compare_other_sets_than_the_choice(
    backend: TransformersBackend, done: tuple[Filled, Trained]
) -> None:
    recipe = recipe_of(measure={"pairs": [{**PAIR, "name": "other"}]})
    found = train(backend, done[0], recipe, progress=silent)
    assert list(found.figures["separation"]) == ["other"] and list(found.trials[0].separation) == ["held out"]


def test_the_same_states_give_the_same_probe(backend: TransformersBackend, done: tuple[Filled, Trained]) -> None:
    told: list[tuple[str, int, int]] = []
    again = train(
        backend, done[0], recipe_of(), progress=lambda what, count, total, _: told.append((what, count, total))
    )
    assert np.array_equal(again.probe.weight, done[1].probe.weight) and again.probe.bias == done[1].probe.bias
    assert again.probe.card.policy == done[1].probe.card.policy and again.figures == done[1].figures
    assert told == [("fit", n + 1, 8) for n in range(8)]


def test_states_of_an_earlier_recipe_do_not_train(backend: TransformersBackend, tmp_path: Path) -> None:
    """A work folder that was used before, e.g. without --permissive, does not leak into the probe."""
    recipe = recipe_of(fit={"layers": 2})
    others = [replace(talk(n + 1), label=talk(n).label, source="mislabelled") for n in range(300, 360)]
    first = fill(backend, gathered_for(recipe, [*TRAINING, *others], HELD_OUT), recipe, tmp_path, progress=silent)
    assert len(set(states(first, [Read(Site(2), 0)])["answer"].tolist())) == 60 + 60 + 80
    second = fill(backend, gathered_for(recipe, TRAINING, HELD_OUT), recipe, tmp_path, progress=silent)
    found = train(backend, second, recipe, progress=silent)
    clean = fill(backend, gathered_for(recipe, TRAINING, HELD_OUT), recipe, tmp_path / "clean", progress=silent)
    expected = train(backend, clean, recipe, progress=silent)
    assert found.trials[0].fitted.checks == expected.trials[0].fitted.checks == 60 * 4
    assert np.allclose(found.probe.weight, expected.probe.weight, atol=1e-5)
    assert {each["name"] for each in found.probe.card.sources} == {"s0", "s1", "s2"}


def test_a_conversation_is_in_the_split_that_the_recipe_says_now(backend: TransformersBackend, tmp_path: Path) -> None:
    recipe = recipe_of(fit={"layers": 2})
    fill(backend, gathered_for(recipe, TRAINING, HELD_OUT[:40]), recipe, tmp_path, progress=silent)
    moved = gathered_for(recipe, TRAINING[20:], [*TRAINING[:20], *HELD_OUT[:40]])
    found = train(backend, fill(backend, moved, recipe, tmp_path, progress=silent), recipe, progress=silent)
    assert found.trials[0].fitted.checks == 40 * 4


def test_swapped_labels_give_the_opposite_probe(
    backend: TransformersBackend, done: tuple[Filled, Trained], tmp_path: Path
) -> None:
    """States that are there are used again, their labels are not."""
    recipe = recipe_of(fit={"layers": 2})
    fill(backend, gathered_for(recipe, TRAINING, HELD_OUT), recipe, tmp_path, progress=silent)
    other: dict[str | None, Label] = {"harmful": "benign", "benign": "harmful"}
    swapped = [[replace(row, label=other[row.label]) for row in rows] for rows in (TRAINING, HELD_OUT)]
    again, clean = (
        train(backend, fill(backend, gathered_for(recipe, *swapped), recipe, work, progress=silent), recipe,
              progress=silent)
        for work in (tmp_path, tmp_path / "clean")
    )  # fmt: skip
    assert np.allclose(again.probe.weight, clean.probe.weight, atol=1e-5)
    assert again.figures["separation"]["held out"]["auroc"] == clean.figures["separation"]["held out"]["auroc"]


def test_a_part_whose_depths_change_is_read_anew(backend: TransformersBackend, tmp_path: Path) -> None:
    recipe = recipe_of(fit={"layers": 2})
    fill(backend, gathered_for(recipe, TRAINING, HELD_OUT), recipe, tmp_path, progress=silent)
    parts = [{**RECIPE["part"][0], "depths": [8]}, RECIPE["part"][1]]
    changed = recipe_of(fit={"layers": 2}, part=parts)
    found = train(
        backend,
        fill(backend, gathered_for(changed, TRAINING, HELD_OUT), changed, tmp_path, progress=silent),
        changed,
        progress=silent,
    )
    assert found.trials[0].fitted.checks == 60 * 2, "at depth 8 and at the end; depth 0 is not fitted on"


def test_a_part_says_from_which_depth_it_is_trained_on_and_how_much_it_weighs(
    backend: TransformersBackend, tmp_path: Path
) -> None:
    parts = [{**RECIPE["part"][0], "first_depth": 16, "weight": 2.5}, RECIPE["part"][1]]
    recipe = recipe_of(fit={"layers": 2, "first_depth": 0}, part=parts)
    filled = fill(backend, gathered_for(recipe, TRAINING, HELD_OUT), recipe, tmp_path, progress=silent)
    assert {(each.facts.split, each.first_depth, each.weight) for each in filled.used.values()} == {
        (TRAIN, 16, 2.5),
        ("v", 0, 1.0),
    }
    found = train(backend, filled, recipe, progress=silent)
    assert found.trials[0].fitted.checks == 60 * 3, "at 16, at 25 and at the end; depths 0 and 4 are not fitted on"


def only(label: Label, rows: Sequence[Conversation]) -> list[Conversation]:
    return [row for row in rows if row.label == label]


@pytest.mark.parametrize(
    ("training", "held_out", "says"),
    [
        (only("benign", TRAINING), HELD_OUT, "the training parts have 0 harmful and 30 benign answers"),
        ([replace(row, label=None) for row in TRAINING], HELD_OUT, "have 0 harmful and 0 benign answers"),
        (TRAINING, only("benign", HELD_OUT), "'v' has 0 harmful answers, none of them to the half"),
        (TRAINING, only("harmful", HELD_OUT), "'v' has 0 benign answers"),
        (TRAINING, HELD_OUT[:8], "'v' has 4 harmful answers, none of them to the half of the prompts that is chosen"),
    ],
)
def test_answers_that_no_probe_can_be_made_of_are_refused_before_anything_is_read(
    watched: Watched,
    tmp_path: Path,
    training: Sequence[Conversation],
    held_out: Sequence[Conversation],
    says: str,
) -> None:
    recipe = recipe_of(fit={"layers": 2})
    with pytest.raises(ConfigError) as error:
        fill(watched, gathered_for(recipe, training, held_out), recipe, tmp_path, progress=silent)
    assert says in str(error.value)
    assert not watched.reads and not list(tmp_path.iterdir())


def test_what_was_used_is_remembered(done: tuple[Filled, Trained]) -> None:
    _, trained = done
    keys = {use: {Text.of(row.messages, row.response).key for row in rows} for use, rows in
            (("trained", TRAINING), ("held out", HELD_OUT))}  # fmt: skip
    assert trained.seen["trained"] == keys["trained"]
    assert trained.seen["chosen"] < keys["held out"] and len(trained.seen["chosen"]) == sum(
        half([row.prompt_key for row in HELD_OUT], 0)
    )


# -- the artefact ------------------------------------------------------------------------------------------------------


def test_the_saved_folder_guards(done: tuple[Filled, Trained], backend: TransformersBackend, tmp_path: Path) -> None:
    _, trained = done
    write_folder(tmp_path / "probe", trained.probe, figures_of(trained), limits_of(trained), "anydepth fit")
    loaded = LinearProbe.load(tmp_path / "probe")
    assert np.array_equal(loaded.weight, trained.probe.weight) and loaded.card == trained.probe.card
    guard = Guard.from_backend(backend, loaded)
    answer = guard.generate("w1 w2 w3", max_new_tokens=30, do_sample=False)
    assert answer.checks and all(0 <= check.score <= 1 for check in answer.checks)
    assert guard.policy == policy_from(trained.probe.card.policy or {})


def test_a_guard_scores_as_the_report_did(done: tuple[Filled, Trained], backend: TransformersBackend) -> None:
    """What was measured on the store is what the guard does to the same answers."""
    filled, trained = done
    guard = Guard.from_backend(backend, trained.probe)
    checks = states(filled, trained.probe.reads)
    logits = trained.trials[0].fitted.logits(checks.states)
    by_id = {each.id: each for each in trails(checks, logits, ["v"])}
    for row in HELD_OUT[:6]:
        found = guard.scan(list(row.messages), row.response)
        assert tuple(check.depth for check in found.checks) == by_id[row.id].depths
        assert [check.score for check in found.checks] == pytest.approx(by_id[row.id].scores, abs=1e-4)


def test_limits_come_from_what_was_measured(done: tuple[Filled, Trained]) -> None:
    _, trained = done
    worse = {
        **trained.figures,
        "halted": {
            "v": {"rate": 0.5, "halted_early": {"rate": 0.2, "halted": 3}},
            "w": {"rate": 0.99, "halted_early": {"rate": 0.0, "halted": 0}},
        },
        "false_positives": {"v": {"rate": 0.3}, "w": {"rate": 0.05}},
    }
    blind = {"added": {"auroc": {"value": 0.01, "interval": [-0.02, 0.03]}}}
    said = limits_of(replace(trained, figures={**worse, "pairs": {**trained.figures["pairs"], "q": blind}}))
    assert [each for each in said if "request alone" in each] == [
        "On “q” the probe is not shown to tell more than the request alone does: the interval of what it adds to the "
        "AUROC reaches 0 or less."
    ]
    text = "\n".join(limits_of(replace(trained, figures=worse)))
    assert "harmful set “v” 50 % is not halted" in text and "30 % of “v” is halted, above the target" in text
    assert "harmful set “v” 20 % is halted before its harmful stretch begins" in text
    assert "“w”" not in text


def test_a_part_is_read_as_its_recipe_says() -> None:
    assert RecipePart("a", data=("x",), depths=(3,)).schedule != RecipePart("a", data=("x",)).schedule
