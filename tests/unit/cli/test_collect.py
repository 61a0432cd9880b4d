"""`anydepth collect`: data in, a store out, and what it says about it."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from anydepth.backends.protocol import CONTENT, WHOLE, Site
from anydepth.cli import collect as command
from anydepth.cli import load
from anydepth.cli.options import ModelOptions
from anydepth.locks import hold
from anydepth.probes.states.store import StateStore
from anydepth.testing import ScriptedBackend
from tests.unit.cli.conftest import Run


def record(number: int, response: str = "an answer", label: str = "benign") -> dict[str, Any]:
    return {"id": f"r{number}", "prompt": f"question {number}", "response": response, "label": label, "licence": "MIT"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "talks.jsonl"
    file.write_text(
        "".join(json.dumps(record(n, "x" * (n + 3), "harmful" if n % 2 else "benign")) + "\n" for n in range(6))
    )
    return file


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> ScriptedBackend:
    scripted = ScriptedBackend(["mine"] * 32, states=lambda row, depth: [float(depth)] * 4, blocks=12)
    scripted.opened = []  # pyright: ignore[reportAttributeAccessIssue]

    def open_backend(model: ModelOptions) -> ScriptedBackend:
        scripted.opened.append(model)  # pyright: ignore[reportAttributeAccessIssue]
        return scripted

    monkeypatch.setattr(load, "open_backend", open_backend)
    return scripted


def words(text: str) -> str:
    return " ".join(text.split())


def test_a_store_comes_out(run: Run, backend: ScriptedBackend, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    result = run("collect", "org/m", "--data", data, "-o", out, "--split", "v:deep", "--dtype", "bfloat16")
    assert result.exit_code == 0, result.stderr
    assert backend.opened == [ModelOptions("org/m", dtype="bfloat16")]
    store = StateStore(out)
    assert [site.block for site in store.manifest.sites] == [6, 7, 8, 9, 10], "50 to 83 % of 12 blocks"
    assert store.manifest.tokens == (CONTENT, 0, 1)
    checks = store.read([(Site(8), 1)])
    assert set(checks["id"].tolist()) == {f"r{n}" for n in range(6)}
    assert set(checks["split"].tolist()) == {"v:deep"} and set(checks["source"].tolist()) == {"talks"}
    assert f"6 answers, {len(checks)} checks" in words(result.stderr)
    assert str(out) in result.stderr.replace("\n", "") and "tokens/s" in result.stderr


def test_the_same_command_goes_on(run: Run, backend: ScriptedBackend, data: Path, tmp_path: Path) -> None:
    arguments = ("collect", "org/m", "--data", data, "-o", tmp_path / "store")
    run(*arguments, "--limit", 2)
    assert "4 answers" in run(*arguments).stderr
    result = run(*arguments)
    assert result.exit_code == 0 and "0 answers, 0 checks, 6 there before" in words(result.stderr)


def test_what_is_read_can_be_said(run: Run, backend: ScriptedBackend, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    options = ("--sites", "9.output,3.input_layernorm", "--tokens", "1,-1", "--depths", "4,2", "--longest", "5")
    assert run("collect", "m", "--data", data, "-o", out, *options).exit_code == 0
    manifest = StateStore(out).manifest
    assert manifest.sites == (Site(3), Site(9, "output")) and manifest.tokens == (CONTENT, 1)
    checks = StateStore(out).read([(Site(3), 1)])
    assert set(checks["depth"].tolist()) == {0, 2, 3, 4, 5}

    result = run("collect", "m", "--data", data, "-o", out, *options, "--view", "shadow")
    assert "6 answers" in result.stderr and set(StateStore(out).read([(Site(3), 1)])["view"].tolist()) == {
        "own",
        "shadow",
    }


def test_means_are_collected_where_they_are_asked_for(
    run: Run, backend: ScriptedBackend, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "store"
    result = run("collect", "m", "--data", data, "-o", out, "--layers", "3", "--tokens", "1, content, mean2, mean")
    assert result.exit_code == 0, result.stderr
    assert StateStore(out).manifest.tokens == (WHOLE, -2, CONTENT, 1)
    checks = StateStore(out).read([(Site(3), -2), (Site(3), WHOLE)])
    for depth, states in zip(checks["depth"], checks.states[:, :, 0], strict=True):
        # the n-th token has the state n; what is missing counts as zero
        assert states.tolist() == [depth - 0.5 if depth else 0, (depth + 1) / 2 if depth else 0]


def test_layers_interval_and_control(run: Run, backend: ScriptedBackend, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    options = ("--layers", "5,2", "--interval", "3", "--suffix", "newline")
    assert run("collect", "m", "--data", data, "-o", out, *options).exit_code == 0
    manifest = StateStore(out).manifest
    assert manifest.sites == (Site(2), Site(5)) and manifest.suffix == "newline" and manifest.header_ids == (10,)
    assert set(StateStore(out).read([(Site(2), 0)])["depth"].tolist()) == {0, 1, 2, 3, 4, 5, 6, 7, 8}


def test_parts_share_a_store(run: Run, backend: ScriptedBackend, tmp_path: Path) -> None:
    file = tmp_path / "many.jsonl"
    file.write_text("".join(json.dumps(record(n)) + "\n" for n in range(50)))
    arguments = ("collect", "m", "--data", file, "-o", tmp_path / "store", "--layers", "3")
    assert "32 answers" in run(*arguments, "--part", "0/2").stderr
    assert "18 answers" in run(*arguments, "--part", "1/2").stderr
    assert "50 there before" in run(*arguments).stderr


def test_several_data_and_a_folder_of_them(run: Run, backend: ScriptedBackend, data: Path, tmp_path: Path) -> None:
    (tmp_path / "more.jsonl").write_text(json.dumps(record(9)) + "\n")
    arguments = ("--data", "talks", "--data", "more", "--data-dir", tmp_path, "-o", tmp_path / "store")
    assert "7 answers" in run("collect", "m", *arguments).stderr


def test_what_is_skipped_is_named(run: Run, backend: ScriptedBackend, data: Path, tmp_path: Path) -> None:
    backend.context_length = 22  # pyright: ignore[reportAttributeAccessIssue]
    result = run("collect", "m", "--data", data, "-o", tmp_path / "store")
    assert result.exit_code == 0 and "skipped: r5: prompt and answer do not fit the context of 22" in result.stderr
    assert "skipped; states in" in words(result.stderr)
    backend.context_length = 5  # pyright: ignore[reportAttributeAccessIssue]
    result = run("collect", "m", "--data", data, "-o", tmp_path / "none")
    assert result.exit_code == 1 and "0 answers" in result.stderr


def test_forks_are_said(run: Run, monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path) -> None:
    scripted = ScriptedBackend(["x"], packed=False)
    monkeypatch.setattr(load, "open_backend", lambda model: scripted)
    result = run("collect", "m", "--data", data, "-o", tmp_path / "store")
    assert result.exit_code == 0 and "which is slower: the script does not take the packed mask" in words(result.stderr)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--layers", "x"), "--layers is 'x'; write whole numbers"),
        (("--layers", "-3"), "-3 is below 0"),
        (("--layers", "3", "--sites", "3.output"), "give one of them"),
        (("--sites", "3"), "write it as BLOCK.MODULE"),
        (("--tokens", "-2"), "--tokens is '-2': token is '-2'; write an index in the header"),
        (("--tokens", "3,mean1"), "--tokens is '3,mean1': token is 'mean1'"),
        (("--interval", "5", "--depths", "3"), "give one of them"),
        (("--interval", "0"), "interval is 0"),
        (("--part", "2/2"), "--part is '2/2'; write 0/4"),
        (("--part", "half"), "--part is 'half'"),
    ],
)
def test_wrong_options_are_refused_before_a_model_is_loaded(
    run: Run, backend: ScriptedBackend, data: Path, tmp_path: Path, options: tuple[str, ...], says: str
) -> None:
    result = run("collect", "m", "--data", data, "-o", tmp_path / "store", *options)
    assert result.exit_code == 2 and says in words(result.stderr)
    assert not backend.opened and not (tmp_path / "store").exists()


def test_what_the_model_does_not_have_is_refused(
    run: Run, backend: ScriptedBackend, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "store"
    result = run("collect", "m", "--data", data, "-o", out, "--layers", "12")
    assert result.exit_code == 2 and "12 blocks" in result.stderr and not out.exists()
    result = run("collect", "m", "--data", data, "-o", out, "--tokens", "2")
    assert result.exit_code == 2 and "choose -1 to 1" in words(result.stderr) and not out.exists()


def test_a_store_of_other_states_is_refused(run: Run, backend: ScriptedBackend, data: Path, tmp_path: Path) -> None:
    run("collect", "m", "--data", data, "-o", tmp_path / "store", "--layers", "3")
    result = run("collect", "m", "--data", data, "-o", tmp_path / "store", "--layers", "4")
    assert result.exit_code == 2 and "collect into another folder" in words(result.stderr)


def test_data_that_is_not_there_or_empty_is_refused(run: Run, backend: ScriptedBackend, tmp_path: Path) -> None:
    assert run("collect", "m", "--data", tmp_path / "no.jsonl", "-o", tmp_path / "store").exit_code == 2
    (tmp_path / "empty.jsonl").write_text("")
    result = run("collect", "m", "--data", tmp_path / "empty.jsonl", "-o", tmp_path / "store")
    assert result.exit_code == 2 and "has no conversations" in words(result.stderr) and not backend.opened


def test_a_corrected_label_is_taken_and_counted(run: Run, backend: ScriptedBackend, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    assert run("collect", "m", "--data", data, "-o", out).exit_code == 0
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows[0]["label"] = "harmful" if rows[0]["label"] == "benign" else "benign"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run("collect", "m", "--data", data, "-o", out)
    assert "6 there before, 1 of these corrected" in words(result.stderr)
    checks = StateStore(out).read([(Site(8), 1)])
    assert set(checks["label"][checks["id"] == rows[0]["id"]].tolist()) == {rows[0]["label"]}
    assert rows[1]["label"] == "harmful"
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({**rows[1], "label": "benign"}) + "\n")
    result = run("collect", "m", "--data", data, "--data", other, "-o", out)
    assert "note: 1 answer labelled both harmful and benign; kept without a label" in words(result.stderr)


def test_on_policy_reads_what_the_model_wrote(run: Run, backend: ScriptedBackend, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    result = run("collect", "m", "--data", data, "-o", out, "--on-policy")
    assert result.exit_code == 0, result.stderr
    assert "3 own answers, 3 continuations" in words(result.stderr)
    checks = StateStore(out).read([(Site(8), 1)])
    assert {each.rpartition("-")[0] for each in checks["id"].tolist()} == {f"r{n}+own" for n in range(6)}
    texts = [json.loads(line)["response"] for line in (out / "on-policy.jsonl").read_text().splitlines()]
    assert texts.count("mine") == 3 and all(text.endswith("mine") for text in texts)
    again = run("collect", "m", "--data", data, "-o", out, "--on-policy")
    assert "6 there before" in again.stderr


def test_on_policy_parts_divide_the_prompts(run: Run, backend: ScriptedBackend, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    for part in ("0/2", "1/2"):
        assert run("collect", "m", "--data", data, "-o", out, "--on-policy", "--part", part).exit_code == 0
    assert len(set(StateStore(out).read([(Site(8), 1)])["id"].tolist())) == 6
    assert {file.name for file in out.glob("*.jsonl")} == {"on-policy-0-of-2.jsonl", "on-policy-1-of-2.jsonl"}


def test_a_second_writer_is_refused_and_parts_are_not(
    run: Run, backend: ScriptedBackend, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "store"
    arguments = ("collect", "m", "--data", data, "-o", out, "--layers", "3")
    with hold(out):
        result = run(*arguments)
        assert result.exit_code == 2 and "another process is writing to" in words(result.stderr)
        assert not backend.opened and not out.exists()  # pyright: ignore[reportAttributeAccessIssue]
        assert run(*arguments, "--part", "0/2").exit_code in (0, 1), "parts have locks of their own"
    assert run(*arguments).exit_code == 0
    with hold(out, "1-of-2"):
        assert run(*arguments, "--part", "1/2").exit_code == 2


@pytest.mark.parametrize("place", ["talks.jsonl", "talks.jsonl/store", "/dev/full"])
def test_a_store_that_cannot_be_a_folder_is_refused_before_a_model_is_loaded(
    run: Run, backend: ScriptedBackend, data: Path, place: str
) -> None:
    result = run("collect", "m", "--data", data, "-o", data.parent / place)
    assert result.exit_code == 2 and "is no folder; give another place" in words(result.stderr)
    assert not backend.opened  # pyright: ignore[reportAttributeAccessIssue]


def test_ray_gets_the_same_request(run: Run, monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}

    def with_ray(opened: Any, talks: Any, path: Path, plan: Any, **options: Any) -> Any:
        asked.update(options, opened=opened, talks=talks, plan=plan(ScriptedBackend(["x"])))
        return command.Collected(answers=6)

    monkeypatch.setattr(command, "collect_with_ray", with_ray)
    arguments = ("--engine", "ray", "--workers", "3", "--device", "cuda", "--revision", "main", "--part", "1/2")
    arguments += ("--template-kwarg", "enable_thinking=false")
    assert run("collect", "org/m", "--data", data, "-o", tmp_path / "store", *arguments).exit_code == 0
    assert asked["opened"].args == ("org/m",)
    assert asked["opened"].keywords == {
        "adapter": None,
        "dtype": "auto",
        "device": "cuda",
        "revision": "main",
        "template_kwargs": {"enable_thinking": False},
        "ride": "never",
    }
    assert (asked["workers"].count, asked["workers"].gpus) == (3, 1)
    assert len(asked["talks"]) == 6 and asked["plan"].sites == (Site(2), Site(3)) and asked["plan"].part == (1, 2)


def test_ray_is_asked_for_by_name_if_it_is_missing(
    run: Run, monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = run("collect", "org/m", "--data", data, "-o", tmp_path / "store", "--engine", "ray")
    assert result.exit_code == 2 and "pip install 'anydepth[ray]'" in words(result.stderr)


def test_vllm_is_started_for_the_sites_of_the_model(
    run: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted = ScriptedBackend(["mine"] * 32, states=lambda row, depth: [float(depth)] * 4, blocks=12)
    scripted.batches_itself = True
    started: list[Any] = []

    def open_vllm(model: ModelOptions, sites: Any) -> ScriptedBackend:
        started.append((model, sites(scripted)))
        return scripted

    monkeypatch.setattr(load, "open_vllm", open_vllm)
    out = tmp_path / "store"
    result = run("collect", "org/m", "--data", data, "-o", out, "--layers", "3,5", "--engine", "vllm")
    assert result.exit_code == 0, result.stderr
    assert started == [(ModelOptions("org/m", engine="vllm"), (Site(3), Site(5)))]
    assert StateStore(out).manifest.sites == (Site(3), Site(5))


def test_vllm_writes_no_answers_of_its_own(run: Run, data: Path, tmp_path: Path) -> None:
    result = run("collect", "m", "--data", data, "-o", tmp_path / "store", "--engine", "vllm", "--on-policy")
    assert result.exit_code == 2 and "drop --engine vllm" in words(result.stderr)
