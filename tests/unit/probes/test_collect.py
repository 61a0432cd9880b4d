"""Collecting with a scripted model: what is grouped, skipped, refused and gone on with."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from anydepth.backends.protocol import CONTENT, WHOLE, Site
from anydepth.backends.transformers import TransformersBackend
from anydepth.conversations.dataset import Conversation
from anydepth.errors import ConfigError, UnsupportedModel
from anydepth.probes.states import collect as module
from anydepth.probes.states.collect import SHADOW_TURN, Collected, collect, work_for
from anydepth.probes.states.facts import AnswerFacts
from anydepth.probes.states.manifest import dtype_of, manifest_for
from anydepth.probes.states.plan import CollectPlan
from anydepth.probes.states.sites import default_layers, sites_for
from anydepth.probes.states.store import Checks, StateStore, column_name
from anydepth.schedule import Adaptive, Every, Listed
from anydepth.testing import ScriptedBackend
from tests import tiny

SITE = Site(2)
PLAN = CollectPlan((SITE,), schedule=Every(5))


def talk(number: int, response: str = "an answer", **facts: Any) -> Conversation:
    return Conversation(f"c{number}", ({"role": "user", "content": f"question {number}"},), response, **facts)


def backend_of(**options: Any) -> ScriptedBackend:
    """A model whose state at depth d is d, and which notes what it is asked to read."""
    backend = ScriptedBackend(["x"], states=lambda row, depth: [float(depth)] * 4, **options)
    backend.batches = []  # pyright: ignore[reportAttributeAccessIssue]
    read = backend.read_batch

    def noting(answers: Sequence[Any], *arguments: Any, **named: Any) -> Any:
        backend.batches.append(answers)  # pyright: ignore[reportAttributeAccessIssue]
        return read(answers, *arguments, **named)

    backend.read_batch = noting  # pyright: ignore[reportAttributeAccessIssue]
    return backend


def run(
    path: Path, talks: Sequence[Conversation], plan: CollectPlan = PLAN, backend: Any = None, **options: Any
) -> tuple[Collected, StateStore]:
    backend = backend or backend_of()
    store = StateStore.create(path, manifest_for(backend, plan, dtype="float32"))
    return collect(backend, talks, store, plan, **options), store


def checks(store: StateStore) -> Checks:
    return store.read([(SITE, 0)])


def test_every_depth_of_every_answer_is_there_with_its_facts(tmp_path: Path) -> None:
    talks = [talk(1, "0123456789ab", label="harmful", source="s", licence="MIT"), talk(2, "01234", label="benign")]
    report, store = run(tmp_path, talks, replace(PLAN, split="held-out"))
    found = checks(store)
    by_id = {key: sorted(found["depth"][found["id"] == key].tolist()) for key in ("c1", "c2")}
    assert by_id == {"c1": [0, 1, 2, 4, 5, 10, 12], "c2": [0, 1, 2, 4, 5]}
    assert np.array_equal(found.states[:, 0, 0], found["depth"])
    first = found.where(found["id"] == "c1")
    expected = {"label": "harmful", "source": "s", "licence": "MIT", "split": "held-out", "view": "own"}
    assert {name: set(first[name].tolist()) for name in expected} == {name: {v} for name, v in expected.items()}
    assert set(first["prompt_key"].tolist()) == {talks[0].prompt_key} and set(first["length"].tolist()) == {12}
    assert (report.answers, report.checks, report.present, report.skipped) == (2, 12, 0, [])


def test_an_answer_without_a_label_or_a_text_is_read(tmp_path: Path) -> None:
    report, store = run(tmp_path, [talk(1, ""), talk(2, "abc")])
    assert report.answers == 2 and set(checks(store)["label"].tolist()) == {""}
    assert checks(store)["depth"][checks(store)["id"] == "c1"].tolist() == [0]


def test_longest_cuts_the_answer(tmp_path: Path) -> None:
    _, store = run(tmp_path, [talk(1, "x" * 30)], CollectPlan((SITE,), schedule=Listed((3, 7, 20)), longest=8))
    assert checks(store)["depth"].tolist() == [0, 3, 7, 8]
    assert set(checks(store)["length"].tolist()) == {8}


def test_what_is_there_is_not_read_again(tmp_path: Path) -> None:
    talks = [talk(n) for n in range(40)]
    run(tmp_path, talks)
    backend = backend_of()
    report, store = run(tmp_path, [*talks, talk(99)], backend=backend)
    assert (report.present, report.answers) == (40, 1)
    assert sum(map(len, backend.batches)) == 1
    assert len(set(checks(store)["id"].tolist())) == 41


def test_a_corrected_label_is_taken_without_reading_again(tmp_path: Path) -> None:
    talks = [talk(n, label="benign", source="old") for n in range(40)]
    run(tmp_path, talks)
    now = [replace(talks[0], label="harmful", source="new"), *talks[1:]]
    backend = backend_of()
    report, store = run(tmp_path, now, replace(PLAN, split="v"), backend)
    assert (report.present, report.corrected, report.answers) == (40, 40, 0) and not backend.batches
    found = checks(store)
    first = found["id"] == "c0"
    assert set(found["label"][first].tolist()) == {"harmful"} and set(found["source"][first].tolist()) == {"new"}
    assert set(found["label"][~first].tolist()) == {"benign"} and set(found["split"].tolist()) == {"v"}
    assert np.array_equal(found.states[:, 0, 0], found["depth"])
    assert run(tmp_path, now, replace(PLAN, split="v"))[0].corrected == 0


def test_other_depths_are_read_anew(tmp_path: Path) -> None:
    run(tmp_path, [talk(1, "x" * 30)])
    plan = CollectPlan((SITE,), schedule=Listed((3, 7)), longest=20)
    report, store = run(tmp_path, [talk(1, "x" * 30)], plan)
    assert (report.present, report.answers) == (0, 1)
    (key,) = {answer for answer, _, _ in store.present()}
    assert store.read([(SITE, 0)], readings={key: plan.reading})["depth"].tolist() == [0, 3, 7, 20]
    assert store.read([(SITE, 0)], readings={key: PLAN.reading})["depth"].max() == 30


def test_labels_that_contradict_each_other_are_no_label(tmp_path: Path) -> None:
    talks = [talk(1, label="benign"), talk(2, label="benign"), replace(talk(1, label="harmful"), id="again")]
    report, store = run(tmp_path, talks)
    found = checks(store)
    assert report.contradicted == 1
    assert set(found["label"][found["id"] == "c1"].tolist()) == {""}
    assert set(found["label"][found["id"] == "c2"].tolist()) == {"benign"}
    unlabelled = [talk(3), replace(talk(3, label="harmful"), id="again")]
    report, store = run(tmp_path / "other", unlabelled)
    assert report.contradicted == 0 and set(checks(store)["label"].tolist()) == {"harmful"}


def test_the_same_text_is_read_once(tmp_path: Path) -> None:
    talks = [talk(n) for n in range(33)]
    report, store = run(tmp_path, [*talks, replace(talks[0], id="again")])
    assert report.answers == 33 and "again" not in checks(store)["id"].tolist()


def test_groups_do_not_depend_on_what_is_done() -> None:
    talks = [talk(n % 70) for n in range(100)]  # 70 texts, some of them twice
    whole = work_for(talks, PLAN, {})
    assert [len(group) for group in whole.groups] == [32, 32, 6] and whole.answers == 70
    middle = {(key, "own", PLAN.reading): AnswerFacts.of(each, PLAN.split) for key, each in whole.groups[1].items()}
    rest = work_for(talks, PLAN, middle)
    assert rest.groups == (whole.groups[0], whole.groups[2]) and rest.present == middle.keys() and not rest.outdated
    shadow = work_for(talks, replace(PLAN, view="shadow"), middle)
    assert not shadow.present, "another view is other work"
    deeper = work_for(talks, replace(PLAN, schedule=Every(7)), middle)
    assert not deeper.present, "other depths are other work"


def test_parts_share_the_groups(tmp_path: Path) -> None:
    talks = [talk(n % 70) for n in range(100)]
    reports = [run(tmp_path / "parts", talks, replace(PLAN, part=(i, 2)))[0] for i in range(2)]
    assert [report.answers for report in reports] == [38, 32]
    _, whole = run(tmp_path / "whole", talks)
    parts = StateStore(tmp_path / "parts")
    assert [shard.name for shard in parts.shards()] == [shard.name for shard in whole.shards()]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(parts.shards(), whole.shards(), strict=True))


def test_a_later_group_that_fails_leaves_the_earlier_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    talks, backend = [talk(n) for n in range(70)], backend_of()
    write = StateStore.write
    calls = []

    def failing(self: StateStore, *arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write(self, *arguments)

    monkeypatch.setattr(StateStore, "write", failing)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, talks, backend=backend)
    monkeypatch.undo()
    report, store = run(tmp_path, talks)
    assert (report.present, report.answers) == (32, 38)
    assert len(set(checks(store)["id"].tolist())) == 70


def test_an_answer_that_does_not_fit_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    backend = backend_of()
    backend.context_length = 60  # pyright: ignore[reportAttributeAccessIssue]
    report, store = run(tmp_path, [talk(1, "x" * 80), talk(2, "short")], backend=backend)
    assert report.skipped == [("c1", "prompt and answer do not fit the context of 60 tokens")]
    assert set(checks(store)["id"].tolist()) == {"c2"}


def test_messages_that_the_template_refuses_are_named(tmp_path: Path) -> None:
    dropped = Conversation("d", ({"role": "", "content": "x"}, {"role": "user", "content": "y"}), "z")
    report, _ = run(tmp_path, [dropped, talk(1)])
    assert [key for key, _ in report.skipped] == ["d"] and report.answers == 1


def test_states_that_are_not_finite_are_not_stored(tmp_path: Path) -> None:
    backend = ScriptedBackend(["x"] * 2, states=lambda row, depth: [np.inf if depth > 3 else 1.0] * 4)
    report, store = run(tmp_path, [talk(1, "ab"), talk(2, "abcdef")], backend=backend)
    assert report.skipped == [("c2", "its states are not finite in float32; use another dtype")]
    assert set(checks(store)["id"].tolist()) == {"c1"}


def test_progress_counts_answers_and_tokens(tmp_path: Path) -> None:
    talks = [talk(n) for n in range(40)]
    run(tmp_path, talks[:32])
    seen: list[tuple[int, int, int]] = []
    report, _ = run(tmp_path, talks, progress=lambda *figures: seen.append(figures))
    assert seen[0] == (32, 40, 0) and seen[-1] == (40, 40, report.tokens) and report.tokens > 0


def test_batches_hold_answers_of_about_one_length(tmp_path: Path) -> None:
    backend = backend_of()
    run(tmp_path, [talk(n, "x" * (1500 if n % 2 else 20)) for n in range(8)], backend=backend)
    lengths = [{len(answer.answer_ids) for answer in batch} for batch in backend.batches]
    assert lengths == [{20}, *[{1500}] * 4]


def test_the_shadow_view_is_read_under_a_neutral_turn_and_kept_beside_the_own_one(tmp_path: Path) -> None:
    backend = backend_of()
    run(tmp_path, [talk(1)], backend=backend)
    report, store = run(tmp_path, [talk(1)], replace(PLAN, view="shadow"), backend=backend)
    assert report.answers == 1 and set(checks(store)["view"].tolist()) == {"own", "shadow"}
    own, shadow = (backend.decode_text(batch[0].prompt.ids) for batch in backend.batches)
    assert "question 1" in own and SHADOW_TURN not in own
    assert SHADOW_TURN in shadow and "question 1" not in shadow
    keys = checks(store)
    assert len(set(keys["answer"].tolist())) == len(set(keys["prompt_key"].tolist())) == 1


def test_controls_are_appended_instead_of_the_header(tmp_path: Path) -> None:
    backend, plan = backend_of(), replace(PLAN, suffix="user")
    manifest = manifest_for(backend, plan, dtype="float32")
    assert manifest.header_tokens == ("", "") and manifest.read_index == 1 and manifest.tokens == (CONTENT, 0, 1)
    assert backend.tokenizer.decode(manifest.header_ids) == "<|end|><|user|>"
    run(tmp_path / "user", [talk(1)], plan, backend)
    with pytest.raises(UnsupportedModel, match="packed mask"):
        run(tmp_path / "forks", [talk(1)], plan, backend_of(packed=False))


def test_where_nothing_can_be_packed_the_answers_are_forked(tmp_path: Path) -> None:
    talks = [talk(1, "0123456789ab"), talk(2, ""), talk(3, "ab")]
    report, forked = run(tmp_path / "forks", talks, backend=backend_of(packed=False))
    assert report.by_forks == "the script does not take the packed mask"
    _, packed = run(tmp_path / "packed", talks)
    assert np.array_equal(checks(forked).states, checks(packed).states)
    assert checks(forked)["depth"].tolist() == checks(packed)["depth"].tolist()


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"sites": ()}, "sites is empty"),
        ({"sites": (SITE, SITE)}, "name each once"),
        ({"tokens": ()}, "tokens is empty"),
        ({"tokens": (1, 1)}, "name each once"),
        ({"schedule": Adaptive()}, "which looks at scores"),
        ({"longest": 0}, "longest is 0"),
        ({"view": "other"}, "choose own or shadow"),
        ({"part": (2, 2)}, "part is 2/2"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(facts: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        CollectPlan(**{"sites": (SITE,), **facts})


def test_means_are_columns_of_their_own_packed_and_by_forks(tmp_path: Path) -> None:
    plan = replace(PLAN, tokens=(0, CONTENT, -3, WHOLE))
    talks = [talk(1, "0123456789ab"), talk(2, ""), talk(3, "ab")]
    for name, packed in (("packed", True), ("forks", False)):
        report, store = run(tmp_path / name, talks, plan, backend_of(packed=packed))
        assert StateStore(tmp_path / name).manifest.tokens == (0, CONTENT, -3, WHOLE)
        found = store.read([(SITE, token) for token in plan.tokens or ()])
        assert len(found) == report.checks == 7 + 1 + 3
        for depth, states in zip(found["depth"], found.states[:, :, 0], strict=True):
            last = list(range(1, depth + 1)) or [0]  # the n-th token has the state n; missing ones count as zero
            assert states.tolist() == pytest.approx([depth, depth, sum(last[-3:]) / 3, np.mean(last)])
    names = [column_name(Site(18), token) for token in plan.tokens or ()]
    assert names == [f"state_18_input_layernorm_{name}" for name in ("header0", "content", "mean3", "mean")], (
        "each read has a column of its own"
    )


def test_means_alone_run_no_header(tmp_path: Path) -> None:
    talks = [talk(1, "0123")]
    with_header, _ = run(tmp_path / "a", talks, replace(PLAN, tokens=(0, -3)))
    without, _ = run(tmp_path / "b", talks, replace(PLAN, tokens=(-3, WHOLE)))
    assert with_header.tokens - without.tokens == without.checks > 0


def test_a_manifest_refuses_tokens_sites_and_controls_that_are_not_there() -> None:
    backend = backend_of()
    with pytest.raises(ConfigError, match="token 2 is not among the 2 of the header; choose -1 to 1, or a mean"):
        manifest_for(backend, CollectPlan((SITE,), (2,)), dtype="float32")
    with pytest.raises(ConfigError, match="token is -2147483648; give an index in the header"):
        manifest_for(backend, CollectPlan((SITE,), (WHOLE - 1,)), dtype="float32")
    with pytest.raises(UnsupportedModel, match="the script has 4 blocks"):
        manifest_for(backend, CollectPlan((Site(9),)), dtype="float32")
    with pytest.raises(ConfigError, match="suffix is 'comma'"):
        manifest_for(backend, CollectPlan((SITE,), suffix="comma"), dtype="float32")


def test_the_default_layers_are_in_the_upper_middle() -> None:
    assert default_layers(28) == (14, 16, 18, 21, 23)
    assert default_layers(30) == (15, 17, 20, 22, 25)
    assert default_layers(4) == (2, 3)
    assert default_layers(1) == (0,)
    backend = backend_of()
    assert sites_for(backend) == (Site(2), Site(3))
    assert sites_for(backend, [3, 1, 3]) == (Site(1), Site(3))
    assert sites_for(backend, [3, "1.mlp", "3.input_layernorm", 1]) == (Site(1), Site(1, "mlp"), Site(3))
    with pytest.raises(ConfigError, match=r"site is 'mlp'; write it as BLOCK\.MODULE"):
        sites_for(backend, ["mlp"])
    with pytest.raises(UnsupportedModel):
        sites_for(backend, [4])


def test_a_shard_is_one_group() -> None:
    assert module.GROUP == 32, "the tests above count in groups of 32"


def test_an_adapter_is_known_by_its_weights() -> None:
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    plain = TransformersBackend(tiny.tiny_model("Llama"), tiny.tiny_tokenizer())
    assert manifest_for(plain, PLAN, dtype="float32").adapter is None
    model = peft.get_peft_model(tiny.tiny_model("Llama"), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    backend = TransformersBackend(model, tiny.tiny_tokenizer())
    first = manifest_for(backend, PLAN, dtype="float32", adapter="/somewhere/lora").adapter
    assert first is not None and first.startswith("lora (weights ")
    assert manifest_for(backend, PLAN, dtype="float32", adapter="/elsewhere/lora").adapter == first
    with torch.no_grad():
        next(each for name, each in model.named_parameters() if "lora_B" in name).add_(0.1)
    assert manifest_for(backend, PLAN, dtype="float32", adapter="/somewhere/lora").adapter != first
    assert manifest_for(plain, PLAN, dtype="float32").model.fingerprint == backend.identity.fingerprint


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (SimpleNamespace(), "bfloat16"),
        (SimpleNamespace(quantization_config={"quant_method": "awq"}), "bfloat16, quantised (awq)"),
        (SimpleNamespace(quantization_config=SimpleNamespace(quant_method="quanto")), "bfloat16, quantised (quanto)"),
    ],
)
def test_quantised_weights_are_another_type(config: Any, expected: str) -> None:
    backend: Any = SimpleNamespace(model=SimpleNamespace(dtype="torch.bfloat16", config=config))
    assert dtype_of(backend) == expected
