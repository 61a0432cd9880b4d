"""The store: what is written comes back, other tools open it, and nothing is mixed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from anydepth.backends.protocol import CONTENT, ModelIdentity, Site
from anydepth.errors import StoreError
from anydepth.probes.states.facts import AnswerFacts
from anydepth.probes.states.store import CheckRow, Manifest, StateStore, answer_key, column_name

WIDTH = 6
SITES = (Site(2), Site(3, "output"))
TOKENS = (CONTENT, 0, 3)
MODEL = ModelIdentity("org/m", None, "llama", WIDTH, 4, "f1")
MANIFEST = Manifest(MODEL, "digest", "header", (1, 2, 3, 4), ("a", "b", "c", "d"), 2, SITES, TOKENS, "float32", {})


def row(answer: str, depth: int, *, view: str = "own", label: str = "benign") -> CheckRow:
    return CheckRow(f"id-{answer}", "train", "source", label, "MIT", "key", answer, view, depth, 50)


def states(count: int, seed: int = 0) -> dict[Site, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {site: rng.standard_normal((count, len(TOKENS), WIDTH)).astype(np.float32) for site in SITES}


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    return StateStore.create(tmp_path / "store", MANIFEST)


@pytest.fixture
def filled(store: StateStore) -> StateStore:
    store.write("one", [row("a", 0), row("a", 25), row("b", 0, label="harmful")], states(3))
    store.write("two", [row("c", 0, label=""), row("c", 0, view="shadow")], states(2, seed=1))
    return store


def test_states_come_back_in_the_order_asked_for(filled: StateStore) -> None:
    reads = [(SITES[1], 3), (SITES[0], CONTENT)]
    checks = filled.read(reads)
    assert checks.states.shape == (5, 2, WIDTH) and checks.states.dtype == np.float32
    for place, (site, token) in enumerate(reads):
        at = TOKENS.index(token)
        expected = np.concatenate([states(3)[site][:, at], states(2, seed=1)[site][:, at]])
        assert np.array_equal(checks.states[:, place], expected)
    assert checks["depth"].tolist() == [0, 25, 0, 0, 0]
    assert checks["label"].tolist() == ["benign", "benign", "harmful", "", "benign"]
    assert set(filled.present()) == {("a", "own", ""), ("b", "own", ""), ("c", "own", ""), ("c", "shadow", "")}
    assert filled.present()["b", "own", ""] == AnswerFacts("id-b", "train", "source", "harmful", "MIT", "key")


def test_views_and_rows_are_picked(filled: StateStore) -> None:
    assert filled.read([(SITES[0], 0)], views=["shadow"])["view"].tolist() == ["shadow"]
    own = filled.read([(SITES[0], 0)], views=["own"])
    deep = own.where(own["depth"] > 0)
    assert len(deep) == 1 and deep["answer"].tolist() == ["a"]
    assert np.array_equal(deep.states, own.states[1:2])


def test_the_manifest_comes_back(filled: StateStore) -> None:
    assert StateStore(filled.path).manifest == MANIFEST


def test_a_state_that_was_not_collected_is_refused_with_what_there_is(filled: StateStore) -> None:
    with pytest.raises(StoreError, match=r"no states of token 1 at 2\.input_layernorm; it holds .* \[-1, 0, 3\]"):
        filled.read([(SITES[0], 1)])
    with pytest.raises(StoreError, match=r"at 2\.input_layernorm, 3\.output"):
        filled.read([(Site(1), 0)])


def test_an_empty_store_says_so(store: StateStore) -> None:
    assert store.present() == {}
    with pytest.raises(StoreError, match="holds no states yet"):
        store.read([(SITES[0], 0)])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": replace(MODEL, fingerprint="f2")}, "model f1, not f2"),
        ({"sites": (Site(1),)}, "sites"),
        ({"tokens": (0,)}, "tokens"),
        ({"template_digest": "other"}, "template_digest digest, not other"),
        ({"suffix": "newline"}, "suffix header, not newline"),
        ({"dtype": "bfloat16"}, "dtype float32, not bfloat16"),
        ({"adapter": "org/lora"}, "adapter None, not org/lora"),
    ],
)
def test_states_of_something_else_are_refused(filled: StateStore, change: dict, says: str) -> None:
    with pytest.raises(StoreError, match=says):
        StateStore.create(filled.path, replace(MANIFEST, **change))


def test_another_copy_of_the_model_and_other_versions_go_on(filled: StateStore) -> None:
    same = replace(MANIFEST, model=replace(MODEL, name="/local/copy"), versions={"torch": "9"})
    assert len(StateStore.create(filled.path, same).read([(SITES[0], 0)])) == 5


def test_a_manifest_without_an_adapter_is_still_read(filled: StateStore) -> None:
    file = filled.path / "manifest.json"
    record = json.loads(file.read_text())
    del record["adapter"]
    file.write_text(json.dumps(record))
    assert StateStore(filled.path).manifest.adapter is None


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"format_version": 1}', '{"format_version": 99}'])
def test_a_manifest_of_something_else_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(StoreError, match=r"manifest\.json"):
        StateStore(tmp_path)


def test_no_store_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="make one with `anydepth collect`"):
        StateStore(tmp_path / "nothing")


def test_a_place_that_cannot_be_written_is_an_error_without_traceback(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot make a store"):
        StateStore.create(tmp_path / "file", MANIFEST)


def test_what_a_killed_run_left_is_not_read_and_is_cleared_away(filled: StateStore) -> None:
    left = filled.path / "states" / ".three.0123.tmp"
    left.write_bytes(b"half a file")
    assert len(filled.read([(SITES[0], 0)])) == 5
    filled.write("three", [row("d", 0)], states(1))
    assert not left.exists() and len(filled.read([(SITES[0], 0)])) == 6


def test_a_damaged_shard_is_named(filled: StateStore) -> None:
    shard = filled.shards()[0]
    shard.write_bytes(shard.read_bytes()[:-50])
    with pytest.raises(StoreError, match=r"one\.parquet is not a whole Parquet file"):
        filled.present()
    with pytest.raises(StoreError, match="remove it and collect again"):
        filled.read([(SITES[0], 0)])


def test_pandas_opens_it(filled: StateStore) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(filled.path / "states")
    assert frame["answer"].tolist() == ["a", "a", "b", "c", "c"]
    found = np.stack(frame[column_name(SITES[0], 3)].to_list())
    assert np.array_equal(found[:3], states(3)[SITES[0]][:, 2])


def test_polars_opens_it(filled: StateStore) -> None:
    polars = pytest.importorskip("polars")
    frame = polars.scan_parquet(filled.path / "states" / "*.parquet").filter(polars.col("depth") == 0).collect()
    assert frame.height == 4
    found = frame[column_name(SITES[1], CONTENT)].to_numpy()
    assert np.array_equal(found[0], states(3)[SITES[1]][0, 0])


def test_datasets_opens_it(filled: StateStore, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    files = str(filled.path / "states" / "*.parquet")
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    loaded = loaded.with_format("numpy")
    assert len(loaded) == 5
    assert np.array_equal(loaded[0][column_name(SITES[0], 0)], states(3)[SITES[0]][0, 1])


def test_columns_are_named_by_site_and_token() -> None:
    assert column_name(Site(18), 3) == "state_18_input_layernorm_header3"
    assert column_name(Site(18, "output"), CONTENT) == "state_18_output_content"


def test_the_key_is_that_of_the_text() -> None:
    one = [{"role": "user", "content": "Wie geht’s?"}]
    assert answer_key(one, "gut") == answer_key([dict(reversed(one[0].items()))], "gut")
    assert len({answer_key(one, "gut"), answer_key(one, "gut "), answer_key([*one, *one], "gut")}) == 3


def test_what_the_data_says_now_is_written_down_and_the_states_stay(filled: StateStore) -> None:
    before = filled.read([(SITES[0], 0)])
    untouched = {shard.name: shard.read_bytes() for shard in filled.shards()}["two.parquet"]
    now = AnswerFacts("id-a", "held out", "another source", "harmful", "CC0", "other")
    assert filled.correct({("a", "own", ""): now}) == 1
    after = filled.read([(SITES[0], 0)])
    assert np.array_equal(after.states, before.states)
    of_a = after["answer"] == "a"
    assert set(after["label"][of_a].tolist()) == {"harmful"} and set(after["split"][of_a].tolist()) == {"held out"}
    assert after["label"][~of_a].tolist() == before["label"][~of_a].tolist()
    assert filled.present()["a", "own", ""] == now
    assert {shard.name: shard.read_bytes() for shard in filled.shards()}["two.parquet"] == untouched
    assert filled.correct({("a", "own", ""): now}) == 0


def test_an_answer_that_was_read_in_two_ways_is_not_mixed(filled: StateStore) -> None:
    filled.write("deeper", [replace(row("a", depth), reading="deep") for depth in (0, 25, 50)], states(3, seed=2))
    with pytest.raises(StoreError, match=r"the answer a read in two ways: '' and 'deep'; say with `readings`"):
        filled.read([(SITES[0], 0)])
    found = filled.read([(SITES[0], 0)], readings={"a": "deep", "b": ""})
    assert sorted(zip(found["answer"].tolist(), found["depth"].tolist(), strict=True)) == [
        ("a", 0),
        ("a", 25),
        ("a", 50),
        ("b", 0),
    ]


def test_a_store_of_the_former_format_says_what_to_do(filled: StateStore) -> None:
    file = filled.path / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format_version": 1}))
    with pytest.raises(StoreError, match=r"format version 1, this anydepth reads 2 .* collect again into another"):
        StateStore(filled.path)


def test_shards_of_before_there_were_stretches_are_read_beside_newer_ones(filled: StateStore) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    old = filled.shards()[0]
    table = parquet.read_table(old)
    parquet.write_table(table.drop_columns(["harm_begins", "harm_ends"]), old)
    filled.write("three", [replace(row("d", 0), harm_begins=4, harm_ends=9)], states(1, seed=2))
    checks = filled.read([(SITES[0], 0)])
    assert len(checks) == 6
    assert checks["harm_begins"].tolist() == [4 if answer == "d" else -1 for answer in checks["answer"]]
    assert checks["harm_ends"].tolist() == [9 if answer == "d" else -1 for answer in checks["answer"]]
    facts = AnswerFacts("id-a", "v", "s", "harmful", "MIT", "key")
    assert filled.correct({("a", "own", ""): facts}) == 1
    assert set(filled.read([(SITES[0], 0)])["harm_begins"].tolist()) == {-1, 4}
