"""`anydepth scan` on a scripted guard."""

import gzip
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anydepth import Guard, LinearProbe
from anydepth.backends.protocol import Read, Site
from anydepth.backends.transformers import TransformersBackend
from anydepth.cli import load
from anydepth.detectors import ProbeCard
from anydepth.journal import Journal
from anydepth.locks import hold
from anydepth.policy import Threshold
from tests.disk import full_disk
from tests.tiny import tiny_model, tiny_tokenizer
from tests.unit.cli.conftest import Run, ScriptedGuard


def lines(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def record(key: object, response: str = "fine") -> dict[str, Any]:
    return {"id": key, "prompt": "Hi", "response": response}


def results(path: Path) -> list[dict[str, Any]]:
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text(lines(*(record(f"r{i}") for i in range(5))))
    return path


@pytest.fixture(params=["out.jsonl", "out.jsonl.gz"])
def out(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return tmp_path / request.param


def test_one_record_out_for_one_in(run: Run, guard: ScriptedGuard, tmp_path: Path, out: Path) -> None:
    file = tmp_path / "in.jsonl.gz"
    chat = {"id": 7, "messages": [{"role": "user", "content": "Hi"}], "response": "Hey"}
    file.write_bytes(gzip.compress(lines(record("a"), chat).encode()))
    result = run("scan", "org/m", file, "-o", out)
    assert result.exit_code == 0, result.stderr
    found = results(out)
    digests = [(each.pop("text_digest"), each.pop("settings_digest")) for each in found]
    assert digests[0][0] != digests[1][0] and digests[0][1] == digests[1][1]
    assert found == [
        {
            "id": key,
            "checks": [{"depth": 0, "score": 0.1}, {"depth": 10, "score": 0.2}],
            "verdict": {"halt": False, "depth": 10, "score": 0.2},
        }
        for key in ("a", 7)
    ]
    assert guard.scanned[1] == ([{"role": "user", "content": "Hi"}], "Hey")
    assert "2 answers scanned" in result.stderr


def test_goes_on_after_an_interruption(run: Run, guard: ScriptedGuard, file: Path, out: Path) -> None:
    guard.die_after = 2
    assert run("scan", "org/m", file, "-o", out).exit_code != 0
    assert len(results(out)) == 2
    guard.die_after = None
    result = run("scan", "org/m", file, "-o", out)
    assert result.exit_code == 0
    assert [r["id"] for r in results(out)] == ["r0", "r1", "r2", "r3", "r4"]
    assert len(guard.scanned) == 5, "a record was scanned twice"
    assert "3 answers scanned" in result.stderr
    assert "2 skipped" in result.stderr
    before = out.read_bytes()
    run("scan", "org/m", file, "-o", out)
    assert results(out) == [json.loads(s) for s in lines(*results(out)).splitlines()]
    assert out.suffix == ".gz" or out.read_bytes() == before


def test_going_on_with_another_model_or_guard_is_refused(run: Run, guard: ScriptedGuard, file: Path, out: Path) -> None:
    assert run("scan", "org/m", file, "-o", out).exit_code == 0
    before = out.read_bytes()
    for changed, what in ((["org/other"], "model"), (["org/m", "--interval", 5], "interval")):
        result = run("scan", changed[0], file, "-o", out, *changed[1:])
        assert result.exit_code == 2
        assert f"was begun with {what}" in " ".join(result.stderr.split())
    assert out.read_bytes() == before
    assert run("scan", "org/m", file, "-o", out, "--device", "cpu").exit_code == 0, "where it runs changes no score"


@pytest.mark.parametrize("cut", [1, 5, 40, 90])
def test_repairs_a_half_written_end(run: Run, guard: ScriptedGuard, file: Path, out: Path, cut: int) -> None:
    run("scan", "org/m", file, "-o", out)
    whole = results(out)
    data = out.read_bytes()
    out.write_bytes(data[:-cut])
    assert run("scan", "org/m", file, "-o", out).exit_code == 0
    assert results(out) == whole


def test_repairs_at_every_byte(run: Run, guard: ScriptedGuard, file: Path, out: Path) -> None:
    run("scan", "org/m", file, "-o", out, "--limit", 2)
    run("scan", "org/m", file, "-o", out)  # a gzip file has two streams now
    whole, data = results(out), out.read_bytes()
    settings = json.loads(Path(f"{out}.run.json").read_text())
    for size in range(len(data)):
        out.write_bytes(data[:size])
        with Journal(out, settings) as journal:
            for item in whole:
                if item["id"] not in journal:
                    journal.write(item["id"], item)
        assert results(out) == whole, f"cut at byte {size}"


def test_bad_lines_are_reported_with_their_number_and_the_rest_goes_on(
    run: Run, guard: ScriptedGuard, tmp_path: Path
) -> None:
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    bad = [
        "{not json",
        "[1]",
        '{"prompt": "Hi", "response": "x"}',
        '{"id": true, "prompt": "Hi", "response": "x"}',
        '{"id": "b", "prompt": "Hi"}',
        '{"id": "b", "prompt": "Hi", "messages": [], "response": "x"}',
        '{"id": "b", "response": "x"}',
        '{"id": "b", "messages": [], "response": "x"}',
        '{"id": "b", "prompt": 3.5, "response": "x"}',
        '{"id": "a", "prompt": "Hi", "response": "again"}',
        r'{"id": "b", "prompt": "Hi", "response": "\ud800"}',
        '{"id": "b", "prompt": "Hi", "response": "too long"}',
    ]
    file.write_text(lines(record("a")) + "\n" + "\n".join(bad) + "\n" + lines(record("z")))
    result = run("scan", "org/m", file, "-o", out)
    assert result.exit_code == 1
    assert [r["id"] for r in results(out)] == ["a", "z"]
    reported = [line for line in result.stderr.splitlines() if line.startswith("line ")]
    assert [int(line.split()[1].rstrip(":")) for line in reported] == list(range(3, 3 + len(bad)))
    assert "used on line 1 already" in reported[9]
    assert "9000 tokens" in reported[-1]
    assert "12 lines failed" in result.stderr


def test_a_line_that_is_not_utf8_is_reported(run: Run, guard: ScriptedGuard, tmp_path: Path) -> None:
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_bytes(b'{"id": "a", "prompt": "\xff"}\n' + lines(record("z")).encode())
    result = run("scan", "org/m", file, "-o", out)
    assert result.exit_code == 1
    assert "line 1: not UTF-8" in result.stderr
    assert [r["id"] for r in results(out)] == ["z"]


def test_a_score_that_is_not_a_number_is_null_with_an_error(run: Run, guard: ScriptedGuard, tmp_path: Path) -> None:
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text(lines(record("a", "nan"), record("b")))
    result = run("scan", "org/m", file, "-o", out)
    assert result.exit_code == 1
    (first, _) = results(out)
    assert first["checks"] == [{"depth": 0, "score": None, "error": "NaN in the hidden state"}]
    assert first["verdict"] == {"halt": True, "depth": 0, "score": None}
    assert "line 1: id 'a': 1 check failed" in result.stderr


def test_limit_looks_at_the_first_records_only(run: Run, guard: ScriptedGuard, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    for _ in range(2):
        assert run("scan", "org/m", file, "-o", out, "--limit", 2).exit_code == 0
    assert [r["id"] for r in results(out)] == ["r0", "r1"]


@pytest.mark.parametrize("content", ['{"mine": 1}\n', '{"mine": 1}', "notes\n", "notes"])
def test_a_file_of_something_else_is_left_alone(
    run: Run, guard: ScriptedGuard, file: Path, tmp_path: Path, content: str
) -> None:
    out = tmp_path / "mine.jsonl"
    out.write_text(content)
    result = run("scan", "org/m", file, "-o", out)
    assert result.exit_code == 2
    assert "was not written by an earlier run" in result.stderr
    assert out.read_text() == content


def test_input_and_output_must_differ(run: Run, guard: ScriptedGuard, file: Path) -> None:
    before = file.read_text()
    result = run("scan", "org/m", file, "-o", file)
    assert result.exit_code == 2
    assert file.read_text() == before


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("nowhere.jsonl", None, "No such file"),
        ("x.jsonl.gz", b"not gzip", "is not a whole gzip file"),
        ("x.jsonl.gz", gzip.compress(b'{"id": 1}\n' * 99, mtime=0)[:-9], "is not a whole gzip file"),
    ],
)
def test_an_unreadable_file_is_exit_2(
    run: Run, guard: ScriptedGuard, tmp_path: Path, name: str, data: bytes | None, says: str
) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    result = run("scan", "org/m", tmp_path / name, "-o", tmp_path / "out.jsonl")
    assert result.exit_code == 2
    assert says in result.stderr
    assert not guard.opened


def test_an_empty_file_is_no_error(run: Run, guard: ScriptedGuard, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("")
    result = run("scan", "org/m", tmp_path / "in.jsonl", "-o", tmp_path / "out.jsonl")
    assert result.exit_code == 0
    assert "0 answers scanned" in result.stderr


def test_vllm_is_given_many_at_once(run: Run, guard: ScriptedGuard, file: Path, out: Path) -> None:
    result = run("scan", "org/m", file, "-o", out, "--engine", "vllm", "--engine-arg", "max_model_len=4096")
    assert result.exit_code == 0, result.stderr
    assert guard.batches == [5] and len(results(out)) == 5
    (model, _) = guard.opened[0]
    assert model.engine == "vllm" and model.engine_options() == {"max_model_len": 4096}


def test_one_bad_record_in_a_batch_is_named_and_the_others_are_scanned_once(
    run: Run, guard: ScriptedGuard, tmp_path: Path, out: Path
) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text(lines(record("a"), record("b", "too long"), record("c")))
    result = run("scan", "org/m", file, "-o", out, "--engine", "vllm")
    assert result.exit_code == 1
    assert "line 2: id 'b'" in result.stderr and "2 answers scanned" in result.stderr
    assert [each["id"] for each in results(out)] == ["a", "c"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--engine-arg", "max_model_len=4096"], "goes with --engine vllm"),
        (["--engine", "vllm", "--engine-arg", "max_model_len"], "write NAME=VALUE"),
        (["--engine", "vllm", "--adapter", "some"], "--adapter some does not apply to --engine vllm"),
        (["--engine", "vllm", "--dtype", "fast"], "--dtype fast does not apply to --engine vllm"),
        (["--engine", "vllm", "--ride", "auto"], "--ride auto does not apply to --engine vllm"),
        (["--engine", "vllm", "--device", "cuda:0"], "--device cuda:0 does not apply to --engine vllm"),
    ],
)
def test_what_the_engine_does_not_take_is_refused(
    run: Run, guard: ScriptedGuard, file: Path, out: Path, options: list[str], said: str
) -> None:
    result = run("scan", "org/m", file, "-o", out, *options)
    assert result.exit_code == 2 and not guard.opened
    assert said in " ".join(result.stderr.split())


def test_going_on_with_another_engine_is_allowed(run: Run, guard: ScriptedGuard, file: Path, out: Path) -> None:
    run("scan", "org/m", file, "-o", out, "--limit", 2)
    result = run("scan", "org/m", file, "-o", out, "--engine", "vllm")
    assert result.exit_code == 0 and len(results(out)) == 5, "what runs the model decides no verdict"


@contextmanager
def piped(pipe: Path, work: Callable[[Path], Any]) -> Iterator[list[Any]]:
    """Whoever is at the other end of a pipe meanwhile; what `work` returned."""
    os.mkfifo(pipe)
    found: list[Any] = []
    other = threading.Thread(target=lambda: found.append(work(pipe)), daemon=True)
    other.start()
    yield found
    other.join(30)
    assert not other.is_alive(), "the pipe was not opened, or was opened twice"


def test_the_input_may_be_a_pipe(run: Run, guard: ScriptedGuard, file: Path, out: Path, tmp_path: Path) -> None:
    with piped(tmp_path / "pipe", lambda pipe: pipe.write_bytes(file.read_bytes())):
        result = run("scan", "org/m", tmp_path / "pipe", "-o", out)
    assert result.exit_code == 0 and "5 answers scanned" in result.stderr
    assert [each["id"] for each in results(out)] == [f"r{n}" for n in range(5)]
    assert run("scan", "org/m", file, "-o", out).exit_code == 0 and len(guard.scanned) == 5, "it may go on from a file"


@pytest.mark.parametrize("name", ["pipe.jsonl", "pipe.jsonl.gz"])
def test_the_output_may_be_a_pipe(run: Run, guard: ScriptedGuard, file: Path, tmp_path: Path, name: str) -> None:
    with piped(tmp_path / name, Path.read_bytes) as got:
        assert run("scan", "org/m", file, "-o", tmp_path / name).exit_code == 0
    text = gzip.decompress(got[0]) if name.endswith(".gz") else got[0]
    assert [json.loads(line)["id"] for line in text.splitlines()] == [f"r{n}" for n in range(5)]
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(["in.jsonl", name]), "no manifest, no lock"


def test_a_device_is_written_to_and_a_full_disk_is_one_line(run: Run, guard: ScriptedGuard, file: Path) -> None:
    assert run("scan", "org/m", file, "-o", "/dev/null").exit_code == 0
    result = run("scan", "org/m", file, "-o", "/dev/full")
    assert result.exit_code == 2 and "cannot write /dev/full: No space left on device" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_disk_that_fills_loses_nothing_that_was_written(
    run: Run, guard: ScriptedGuard, file: Path, out: Path
) -> None:
    run("scan", "org/m", file, "-o", out, "--limit", 2)
    with full_disk(out.stat().st_size + 30):
        result = run("scan", "org/m", file, "-o", out)
    assert result.exit_code == 2 and "File too large; make room" in result.stderr
    assert run("scan", "org/m", file, "-o", out).exit_code == 0
    assert [each["id"] for each in results(out)] == [f"r{n}" for n in range(5)]
    assert len(guard.scanned) == 6, "only the record that was not written is scanned again"


def test_a_second_writer_is_refused(run: Run, guard: ScriptedGuard, file: Path, out: Path) -> None:
    with hold(out):
        result = run("scan", "org/m", file, "-o", out)
        assert result.exit_code == 2 and "another process is writing to" in result.stderr
        assert not guard.opened, "a model was loaded for nothing"
    assert run("scan", "org/m", file, "-o", out).exit_code == 0


@pytest.mark.parametrize("changed", ["threshold", "model", "template", "detector"])
def test_records_of_other_settings_are_refused_without_the_manifest_too(
    run: Run, guard: ScriptedGuard, file: Path, tmp_path: Path, changed: str
) -> None:
    run("scan", "org/m", file, "-o", tmp_path / "out.jsonl", "--limit", 2)
    moved = (tmp_path / "out.jsonl").rename(tmp_path / "moved.jsonl")
    before = moved.read_bytes()
    if changed == "threshold":
        guard.policy = Threshold(0.15)
    elif changed == "model":
        guard.fingerprint = "another"
    elif changed == "template":
        guard.template.digest = "another"
    given = ["--detector", "rethink"] if changed == "detector" else []
    result = run("scan", "org/m", file, "-o", moved, *given)
    assert result.exit_code == 2 and "was written with other settings" in result.stderr
    assert moved.read_bytes() == before


def test_another_model_in_the_same_folder_is_named(run: Run, guard: ScriptedGuard, file: Path, out: Path) -> None:
    run("scan", "org/m", file, "-o", out, "--limit", 2)
    guard.fingerprint = "another"
    result = run("scan", "org/m", file, "-o", out)
    assert result.exit_code == 2 and "was begun with fingerprint 'f00d', now it is 'another'" in result.stderr


def test_an_output_that_was_moved_goes_on_with_the_same_settings(
    run: Run, guard: ScriptedGuard, file: Path, tmp_path: Path
) -> None:
    run("scan", "org/m", file, "-o", tmp_path / "out.jsonl", "--limit", 2)
    moved = (tmp_path / "out.jsonl").rename(tmp_path / "moved.jsonl")
    assert run("scan", "org/m", file, "-o", moved).exit_code == 0 and len(results(moved)) == 5


def test_records_that_do_not_say_their_settings_are_refused(
    run: Run, guard: ScriptedGuard, file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "old.jsonl"
    out.write_text(lines({"id": "r0", "checks": [], "verdict": {}}))
    result = run("scan", "org/m", file, "-o", out)
    assert result.exit_code == 2 and "nor are settings in its records" in " ".join(result.stderr.split())


def test_a_record_that_was_edited_under_its_id_is_named(run: Run, guard: ScriptedGuard, file: Path, out: Path) -> None:
    run("scan", "org/m", file, "-o", out)
    before = results(out)
    file.write_text(lines(record("r0"), record("r1", "edited"), record("r2")))
    result = run("scan", "org/m", file, "-o", out)
    assert result.exit_code == 1 and "line 2: id 'r1': its prompt or answer has changed" in result.stderr
    assert "2 skipped" in result.stderr and results(out) == before


def test_what_a_deleted_output_left_behind_is_replaced(
    run: Run, guard: ScriptedGuard, file: Path, tmp_path: Path
) -> None:
    out, manifest = tmp_path / "out.jsonl", tmp_path / "out.jsonl.run.json"
    run("scan", "org/m", file, "-o", out)
    out.unlink()
    assert run("scan", "org/other", file, "-o", out).exit_code == 0
    assert json.loads(manifest.read_text())["model"] == "org/other" and len(results(out)) == 5


@pytest.mark.parametrize("content", ["[]", "{}", "3", "{", "[" * 100_000])
def test_what_is_no_manifest_is_named(run: Run, guard: ScriptedGuard, file: Path, tmp_path: Path, content: str) -> None:
    out, manifest = tmp_path / "out.jsonl", tmp_path / "out.jsonl.run.json"
    for begun in (False, True):
        if begun:
            run("scan", "org/m", file, "-o", out)
        manifest.write_text(content)
        result = run("scan", "org/m", file, "-o", out)
        assert result.exit_code == 2 and result.stderr.count("error: ") == 1 and "out.jsonl.run.json" in result.stderr
        assert manifest.read_text() == content
        manifest.unlink()


@pytest.mark.parametrize(
    ("place", "says"),
    [(".", "is a folder"), ("in.jsonl/x", "does not exist"), ("no/x.jsonl", "does not exist")],
)
def test_a_place_that_cannot_be_written_is_named(
    run: Run, guard: ScriptedGuard, file: Path, place: str, says: str
) -> None:
    result = run("scan", "org/m", file, "-o", file.parent / place)
    assert result.exit_code == 2 and says in result.stderr and not guard.opened


def test_scan_reads_what_fit_reads(run: Run, guard: ScriptedGuard, tmp_path: Path) -> None:
    file, out = tmp_path / "IN.JSONL.GZ", tmp_path / "out.jsonl"
    asked = {"role": "user", "content": [{"type": "text", "text": "Hi"}]}
    rows = [
        {"id": "a", "prompt": "Hi", "messages": None, "response": "fine"},
        {"id": "b", "prompt": float("nan"), "messages": [asked], "response": "fine", "label": ""},
        {"id": "c", "messages": [asked, {"role": "assistant", "content": "fine"}]},
        {"id": "d", "prompt": "Hi", "response": "fine", "label": " Benign "},
        {"id": "e", "conversations": 3, "prompt": " ", "response": "fine"},
        {"id": "f", "messages": [asked, {"role": "assistant", "content": "a"}], "response": "b"},
    ]
    twice = b'{"id": "g", "prompt": "Hi", "prompt": "Ho", "response": "fine"}\n'
    file.write_bytes(gzip.compress(b"\xef\xbb\xbf" + lines(*rows).encode() + twice))
    result = run("scan", "org/m", file, "-o", out)
    assert [each["id"] for each in results(out)] == ["a", "b", "c", "d"]
    assert guard.scanned == [([{"role": "user", "content": "Hi"}], "fine")] * 4
    for line in ("line 5: column 'prompt' is empty", "line 6: column 'messages' ends", "line 7: has 'prompt' twice"):
        assert line in result.stderr


def test_a_number_and_its_text_are_one_id(run: Run, guard: ScriptedGuard, tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text(lines(record(1), record("1"), record("")))
    result = run("scan", "org/m", file, "-o", tmp_path / "out.jsonl", "--limit", "9" * 30)
    assert "line 2: id '1' was used on line 1 already" in result.stderr
    assert 'line 3: "id" is missing' in result.stderr


def test_a_real_guard_says_what_it_is(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    backend = TransformersBackend(tiny_model("Llama"), tiny_tokenizer())
    reads = (Read(Site(2), backend.header.read_index),)
    card = ProbeCard(backend.identity, backend.header.ids, reads, policy={"name": "threshold", "threshold": 0.9})

    def scan(bias: float, *options: object) -> Any:
        guard = Guard.from_backend(backend, LinearProbe(np.ones(32), bias, card))
        monkeypatch.setattr(load, "open_guard", lambda model, options, external: guard)
        return run("scan", "org/m", file, "-o", out, *options)

    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text(lines(*({"id": n, "prompt": "w1 w2", "response": "w3 w4 w5"} for n in range(3))))
    assert scan(-1.0, "--limit", 1).exit_code == 0
    manifest = json.loads((tmp_path / "out.jsonl.run.json").read_text())
    assert manifest["fingerprint"] == backend.identity.fingerprint
    assert manifest["rule"] == {"name": "threshold", "threshold": 0.9}
    assert manifest["schedule"] == "Every(interval=25, doubling=True)" and len(manifest["probe"]) == 16
    assert "was begun with probe" in " ".join(scan(-1.5).stderr.split())
    assert scan(-1.0).exit_code == 0 and len(results(out)) == 3
