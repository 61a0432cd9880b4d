"""What a suite is given: rows, prompts, what the model writes, records."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from anydepth import Every
from anydepth.config import GuardConfig
from anydepth.errors import ConfigError, StoreError
from anydepth.evals.eval_options import EvalOptions
from anydepth.evals.judges.judge import Judged
from anydepth.policy import Threshold
from anydepth.probes.recipe.pairs import half
from tests.evaluations import TABLES, random_probe, tiny_backend, tiny_context

DEEP = TABLES[0]


def test_rows_come_in_an_order_of_the_seed_with_other_prompts_first(tmp_path: Path) -> None:
    used: dict[str, dict] = {}
    context = tiny_context(tmp_path, "deep-prefill", on_table=used.__setitem__)
    rows = context.table(DEEP)
    assert {row.id for row in rows} == {f"{DEEP}-{n}" for n in range(24)}
    assert [row.id for row in context.table(DEEP, limit=5)] == [row.id for row in rows[:5]]
    others: dict[str, dict] = {}
    other = tiny_context(tmp_path, "deep-prefill", options={"seed": 1}, on_table=others.__setitem__)
    assert [row.id for row in other.table(DEEP)] != [row.id for row in rows]
    assert used[DEEP]["rows"] == 24 and used == others


def test_a_limit_takes_a_second_row_of_a_prompt_last(tmp_path: Path) -> None:
    context = tiny_context(tmp_path, "deep-prefill")
    file = tmp_path / "data" / f"{DEEP}.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    again = [{**line, "id": f"{line['id']}-again", "response": line["response"] + " w239"} for line in lines]
    file.write_text("".join(json.dumps(line) + "\n" for line in (*lines, *again)))
    rows = context.table(DEEP, limit=24)
    assert len({row.prompt_key for row in rows}) == 24
    assert len(context.table(DEEP, limit=30)) == 30


def test_a_copy_counts_once(tmp_path: Path) -> None:
    context = tiny_context(tmp_path, "deep-prefill")
    file = tmp_path / "data" / f"{DEEP}.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    again = [{**line, "id": f"{line['id']}-again", "response": line["response"].upper()} for line in lines]
    file.write_text("".join(json.dumps(line) + "\n" for line in (*lines, *again)))
    rows = context.table(DEEP)
    assert len(rows) == 24 and len({row.response.lower() for row in rows}) == 24
    assert context.table(DEEP) == rows
    assert {row.id for row in context.table(DEEP, limit=5)} <= {row.id for row in rows}


def test_an_answer_with_both_labels_is_evidence_for_neither(tmp_path: Path) -> None:
    context = tiny_context(tmp_path, "deep-prefill")
    file = tmp_path / "data" / f"{DEEP}.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    again = {**lines[0], "id": "again", "label": "benign", "response": lines[0]["response"].upper()}
    file.write_text("".join(json.dumps(line) + "\n" for line in (*lines, again)))
    assert {row.id for row in context.table(DEEP)} == {line["id"] for line in lines[1:]}


def test_every_fact_of_a_row_is_in_the_digest(tmp_path: Path) -> None:
    used: dict[str, dict] = {}
    context = tiny_context(tmp_path, "deep-prefill", on_table=used.__setitem__)
    context.table(DEEP)
    before = used[DEEP]
    file = tmp_path / "data" / f"{DEEP}.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for change in ({"label": "benign"}, {"source": "other"}, {"category": "new"}, {"response": "w1"}):
        file.write_text("".join(json.dumps(line) + "\n" for line in ({**lines[0], **change}, *lines[1:])))
        context.table(DEEP)
        assert used[DEEP]["rows"] == before["rows"] and used[DEEP]["sha256"] != before["sha256"], change
    file.write_text("".join(json.dumps(line) + "\n" for line in lines[::-1]))
    context.table(DEEP)
    assert used[DEEP] == before


def test_a_number_that_is_not_finite_is_named(tmp_path: Path) -> None:
    context = tiny_context(tmp_path, "latency")
    with pytest.raises(StoreError, match=r"record 'a' of latency\.jsonl has a number that is not finite"):
        context.record("a", lambda: {"n": [0.0, float("nan")]})
    assert "a" not in context.records


def test_unseen_rows_are_of_the_other_half(tmp_path: Path) -> None:
    context = tiny_context(tmp_path, "deep-prefill")
    unseen = context.table(DEEP, unseen=True)
    assert 0 < len(unseen) < 24
    assert half([row.prompt_key for row in unseen], 1).all()


@pytest.mark.parametrize(("name", "label"), [("no_such_table", None), (DEEP, "benign")])
def test_what_is_not_there_is_named_with_the_suite(tmp_path: Path, name: str, label: str | None) -> None:
    with pytest.raises(ConfigError, match=f"suite deep-prefill.*{name}"):
        tiny_context(tmp_path, "deep-prefill").table(name, label=label)


def test_without_a_probe_the_remedy_is_said(tmp_path: Path) -> None:
    context = tiny_context(tmp_path, "interval", given_probe=None)
    with pytest.raises(ConfigError, match=r"suite interval needs a probe.*--probe"):
        _ = context.probe


def test_numbers_of_a_suite_are_the_users_or_its_own(tmp_path: Path) -> None:
    context = tiny_context(tmp_path, "interval", options={"settings": {"interval.tokens": "7", "latency.rounds": "x"}})
    assert context.number("tokens", 400, 200) == 7
    assert tiny_context(tmp_path, "latency").number("samples", 9, 3) == 3
    assert context.count(60, 10) == 4
    assert tiny_context(tmp_path, "interval", options={"limit": None, "quick": False}).count(60, 10) == 60
    wrong = tiny_context(tmp_path, "latency", options={"settings": {"latency.rounds": "x"}})
    with pytest.raises(ConfigError, match=r"latency\.rounds is 'x'"):
        wrong.number("rounds", 3, 1)


def test_what_is_written_is_kept_and_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = tiny_context(tmp_path, "deep-prefill")
    prompts = {row.id: context.prompt(row, prefill="w3 w4") for row in context.table(DEEP, limit=5)}
    written = context.write(prompts, 6)
    assert set(written) == set(prompts)
    for key, each in written.items():
        plain = context.backend.unguarded([prompts[key]], max_new_tokens=6, do_sample=False)[0]
        assert each.token_ids == plain and each.prompt.prefill == 2
        assert context.text(key) == context.backend.decode_text(plain)
    context.close()
    again = tiny_context(tmp_path, "deep-prefill", backend=context.backend)
    monkeypatch.setattr(type(context.backend), "open", lambda *_, **__: pytest.fail("the model was used again"))
    assert again.write(prompts, 6) == written


def test_sampled_answers_depend_on_the_seed_only(tmp_path: Path) -> None:
    def drawn(folder: str, seed: int) -> list[tuple[int, ...]]:
        context = tiny_context(tmp_path, "attacks", folder=tmp_path / folder, options={"seed": seed})
        prompts = {f"p{n}": context.backend.template.prompt(f"w{n}") for n in range(3)}
        return [each.token_ids for each in context.write(prompts, 8, sampling={"do_sample": True}).values()]

    assert drawn("a", 0) == drawn("b", 0) != drawn("c", 1)


def test_a_batch_is_made_whole_if_a_record_of_it_is_missing(tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    context = tiny_context(tmp_path, "interval", told=lambda *facts: steps.append(facts))
    context.records.write("b", {"id": "b", "n": "before"})
    made: list[dict[str, int]] = []

    def make(batch: Mapping[str, int]) -> Iterator[dict[str, int]]:
        made.append(dict(batch))
        return ({"n": number} for number in batch.values())

    context.fill("work", [{"a": 1, "b": 2}, {"c": 3}], make)
    context.fill("work", [{"a": 1, "b": 2}, {"c": 3}], make)
    assert made == [{"a": 1, "b": 2}, {"c": 3}]
    assert [context.records.rows[key]["n"] for key in "abc"] == [1, "before", 3]
    assert steps == [("work", 2, 3), ("work", 3, 3)] * 2


def test_a_record_is_made_once(tmp_path: Path) -> None:
    context = tiny_context(tmp_path, "latency")
    made = []

    def make() -> dict[str, int]:
        made.append(1)
        return {"n": len(made)}

    assert context.record("a", make)["n"] == context.record("a", make)["n"] == 1
    context.close()
    assert tiny_context(tmp_path, "latency").record("a", make)["n"] == 1
    assert len(made) == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"options": {"seed": 3}},
        {"options": {"quick": False}},
        {"judge_spec": "text"},
        {"config": GuardConfig(schedule=Every(10))},
        {"given_probe": random_probe(tiny_backend(), seed=9)},
        {"given_probe": random_probe(tiny_backend(), policy=Threshold(0.6))},
    ],
)
def test_records_of_other_settings_are_not_gone_on_with(tmp_path: Path, changed: dict[str, object]) -> None:
    context = tiny_context(tmp_path, "latency")
    context.record("a", lambda: {"n": 1})
    context.close()
    with pytest.raises(ConfigError, match="was begun with"):
        _ = tiny_context(tmp_path, "latency", **changed).records


def test_judging_goes_by_key(tmp_path: Path) -> None:
    context = tiny_context(tmp_path, "attacks")
    said = {"a": Judged("w1", "I cannot help with that."), "b": Judged("w1", "First, boil the water.")}
    assert {key: each.refused for key, each in context.judged(said).items()} == {"a": True, "b": False}


def test_options_are_recorded_without_folders_but_with_what_is_in_them(tmp_path: Path) -> None:
    options = EvalOptions(
        guard_model="/somewhere/guard", settings={"deep-prefill.content_probe": "/home/me/p.safetensors", "a.b": "1,2"}
    )
    record = options.record()
    assert record["guard_model"] == "guard"
    assert record["settings"] == {"deep-prefill.content_probe": "p.safetensors", "a.b": "1,2"}
    assert "data_dir" not in record
    probe, model = tmp_path / "p.safetensors", tmp_path / "guard"
    model.mkdir()
    options = EvalOptions(guard_model=str(model), settings={"deep-prefill.content_probe": str(probe)})
    seen = []
    for content in (b"one", b"two"):
        probe.write_bytes(content)
        (model / "config.json").write_bytes(content)
        seen.append(options.record())
    for value in (seen[0]["guard_model"], seen[0]["settings"]["deep-prefill.content_probe"]):
        assert "(sha256 " in value and str(tmp_path) not in value
    assert seen[0]["guard_model"] != seen[1]["guard_model"] and seen[0]["settings"] != seen[1]["settings"]
    with pytest.raises(ConfigError, match="limit is 0"):
        EvalOptions(limit=0)
