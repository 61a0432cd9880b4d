"""`anydepth calibrate` on a tiny model: files in, probe out, and what stops it."""

import gzip
import json
import math
import os
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anydepth import Guard
from anydepth.backends.protocol import CheckPoint, Read, Site
from anydepth.backends.transformers import TransformersBackend
from anydepth.cli import load
from anydepth.cli.options import GuardOptions, ModelOptions
from anydepth.conversations.splits import Text
from anydepth.detectors import Cascade, LinearProbe, ProbeCard, Rethink
from anydepth.errors import CheckError
from anydepth.policy import Ewma, Threshold
from anydepth.probes.artefact.fit_record import write_fit_record
from anydepth.probes.artefact.modelcard import write_folder
from anydepth.types import Score
from tests.tiny import tiny_model, tiny_tokenizer
from tests.unit.cli.conftest import Run


@pytest.fixture(scope="module")
def backend() -> TransformersBackend:
    return TransformersBackend(tiny_model("Llama"), tiny_tokenizer())


@pytest.fixture
def probe(backend: TransformersBackend) -> LinearProbe:
    card = ProbeCard(
        backend.identity,
        backend.header.ids,
        (Read(Site(2), backend.header.read_index),),
        policy={"name": "ewma", "alpha": 0.4, "threshold": 0.9},
        sources=({"name": "set", "licence": "MIT"},),
    )
    return LinearProbe(np.random.default_rng(0).normal(size=32), -1.0, card)


@pytest.fixture
def artefact(probe: LinearProbe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    probe.save(tmp_path / "mine.safetensors")
    return tmp_path / "mine.safetensors"


@pytest.fixture
def opened(backend: TransformersBackend, probe: LinearProbe, monkeypatch: pytest.MonkeyPatch) -> list[GuardOptions]:
    """The seam of the command line: a real guard over the tiny model; which options it was opened with."""
    seen: list[GuardOptions] = []

    def open_guard(model: ModelOptions, options: GuardOptions) -> Guard:
        seen.append(options)
        found = probe if options.probe is None else LinearProbe.load(options.probe)
        return Guard.from_backend(backend, found, **options.guard_options())

    monkeypatch.setattr(load, "open_guard", open_guard)
    return seen


def record(number: int, **more: Any) -> dict[str, Any]:
    words = random.Random(number)
    text = " ".join(f"w{words.randrange(240)}" for _ in range(words.randrange(5, 60)))
    return {"id": f"r{number}", "prompt": f"w{number % 200}", "response": text, **more}


def traffic(tmp_path: Path, records: list[dict[str, Any]], name: str = "traffic.jsonl") -> Path:
    text = "".join(json.dumps(each) + "\n" for each in records).encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return tmp_path / name


@pytest.fixture
def benign(tmp_path: Path) -> Path:
    return traffic(tmp_path, [record(n, source=f"chat {n % 2}") for n in range(40)])


def peaks(backend: TransformersBackend, probe: LinearProbe, policy: Any, numbers: range) -> list[float]:
    """What the guard itself makes of these answers."""
    guard = Guard.from_backend(backend, probe)
    results = [guard.scan(record(n)["prompt"], record(n)["response"]) for n in numbers]
    return [max(policy.statistic([check.score for check in result.checks])) for result in results]


def test_a_new_probe_meets_the_target_on_the_traffic(
    run: Run, opened: Any, backend: TransformersBackend, probe: LinearProbe, artefact: Path, benign: Path
) -> None:
    result = run("calibrate", artefact, "--model", "org/m", "--benign", benign, "--target", "0.1")
    assert result.exit_code == 0, result.stderr
    new = LinearProbe.load("mine.calibrated.safetensors")
    assert isinstance(new.policy, Ewma)  # the probe's own policy and its options, another threshold
    assert new.policy.alpha == 0.4
    found = peaks(backend, probe, new.policy, range(40))
    assert sum(value >= new.policy.threshold for value in found) == 4
    evidence = new.card.calibration
    assert (evidence["answers"], evidence["halted"], evidence["achieved"]) == (40, 4, 0.1)
    assert evidence["schedule"] == "Every(interval=25, doubling=True)"
    assert evidence["replaces"] == {"name": "ewma", "alpha": 0.4, "threshold": 0.9}
    assert evidence["data"].startswith("traffic.jsonl (sha256 ")
    assert set(evidence["per_source"]) == {"chat 0", "chat 1"}
    assert (new.weight == probe.weight).all()
    assert new.card.sources == probe.card.sources
    assert LinearProbe.load(artefact).policy == probe.policy  # the input is as it was


def test_the_table_has_the_evidence(run: Run, opened: Any, artefact: Path, benign: Path) -> None:
    out = run("calibrate", artefact, "--model", "org/m", "--benign", benign, "--target", "0.1").stdout
    for fact in (
        "10 % (4 of 40 benign answers)",
        "95 % interval",
        "chat 1",
        "not guaranteed",
        "1-25",
        "ewma, alpha 0.4",
    ):
        assert fact in " ".join(out.split())


def test_json_and_another_policy_and_interval(
    run: Run, opened: list[GuardOptions], artefact: Path, benign: Path
) -> None:
    given = ["--target", "0.1", "--policy", "threshold", "--interval", "10", "--json", "-o", "new.safetensors"]
    result = run("calibrate", artefact, "--model", "org/m", "--benign", benign, *given)
    assert result.exit_code == 0, result.stderr
    printed = json.loads(result.stdout)
    new = LinearProbe.load("new.safetensors")
    assert printed == {"probe": "new.safetensors", "policy": new.card.policy, "calibration": new.card.calibration}
    assert isinstance(new.policy, Threshold)
    assert new.card.calibration["schedule"].startswith("Every(interval=10")
    assert opened[0].interval == 10


def test_several_files_and_gzip(run: Run, opened: Any, artefact: Path, tmp_path: Path) -> None:
    one = traffic(tmp_path, [record(n) for n in range(10)])
    two = traffic(tmp_path, [record(n) for n in range(10, 20)], "more.jsonl.gz")
    result = run("calibrate", artefact, "--model", "org/m", "--benign", one, "--benign", two)
    assert result.exit_code == 0, result.stderr
    per_source = LinearProbe.load("mine.calibrated.safetensors").card.calibration["per_source"]
    assert {name: rate["answers"] for name, rate in per_source.items()} == {"traffic.jsonl": 10, "more.jsonl.gz": 10}


def test_the_shipped_probe(run: Run, opened: list[GuardOptions], artefact: Path, benign: Path) -> None:
    result = run("calibrate", "shipped", "--model", "org/small", "--benign", benign)
    assert result.exit_code == 0, result.stderr
    assert opened[0].probe is None
    assert "cannot be verified with 40 answers" in " ".join(result.stdout.split())
    assert LinearProbe.load("small.calibrated.safetensors").card.calibration["halted"] == 0


def test_a_folder_is_rewritten_only_on_request(
    run: Run, opened: Any, probe: LinearProbe, artefact: Path, benign: Path, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "folder", probe, {}, [], "x")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    given = ["calibrate", folder, "--model", "org/m", "--benign", benign, "--target", "0.1"]
    assert run(*given).exit_code == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert (tmp_path / "folder.calibrated.safetensors").is_file()
    assert run(*given, "-o", folder).exit_code == 0
    threshold = LinearProbe.load(folder / "probe.safetensors").policy.threshold  # pyright: ignore[reportOptionalMemberAccess]
    assert threshold != 0.9
    assert f"threshold {threshold:.4g}" in (folder / "README.md").read_text()


def test_failed_records_are_named_and_left_out(run: Run, opened: Any, artefact: Path, tmp_path: Path) -> None:
    records = [record(n) for n in range(30)]
    records[4]["response"] = ""
    records[7]["label"] = "harmful"
    file = traffic(tmp_path, records)
    file.write_text(file.read_text() + '\n{"id": 5\n')
    result = run("calibrate", artefact, "--model", "org/m", "--benign", file)
    assert result.exit_code == 1
    for fact in ("line 5: id 'r4'", "line 8: id 'r7' is labelled 'harmful'", "line 32: not JSON", "3 records failed"):
        assert fact in result.stderr
    evidence = LinearProbe.load("mine.calibrated.safetensors").card.calibration
    assert (evidence["answers"], evidence["failed"]) == (28, 3)


def test_labels_and_names_are_read_as_fit_reads_them(run: Run, opened: Any, artefact: Path, tmp_path: Path) -> None:
    records = [record(n) for n in range(30)]
    for number, label in enumerate([" Benign ", "SAFE", "", None, float("nan")]):
        records[number]["label"] = label
    records[5]["messages"] = None
    records[6]["label"] = ["benign"]
    records[7]["label"] = "odd"
    file = traffic(tmp_path, records, "T.JSONL")
    result = run("calibrate", artefact, "--model", "org/m", "--benign", file)
    assert result.exit_code == 1 and "2 records failed" in result.stderr
    for fact in ("line 7: column 'label' is a list", "line 8: column 'label' is 'odd'"):
        assert fact in result.stderr


def test_too_many_failed_records_stop_it(run: Run, opened: Any, artefact: Path, tmp_path: Path) -> None:
    file = traffic(tmp_path, [record(n, label="harmful" if n < 2 else "benign") for n in range(10)])
    result = run("calibrate", artefact, "--model", "org/m", "--benign", file)
    assert result.exit_code == 2
    assert "2 of 10 records failed, more than 10 %" in result.stderr
    assert "traffic.jsonl line 1" in result.stderr
    assert not Path("mine.calibrated.safetensors").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--target", "0"], "--target is 0.0"),
        (["--confidence", "95"], "--confidence is 95.0"),
        (["--cascade", "rethink", "--band-share", "2"], "--band-share is 2.0"),
        (["--cascade", "rethink", "--band-share", "0.005"], "give a share above the target"),
        (["--guarantee"], "--guarantee needs 598 answers for --target 0.005, the input has 40"),
        (["-o", "missing/new.safetensors"], "does not exist"),
        (["-o", "new.bin"], "ends in .safetensors"),
        (["-o", "traffic.jsonl"], "ends in .safetensors"),
        (["-o", "pipe.safetensors"], "is a pipe or a device"),
        (["--benign", "pipe.safetensors"], "cannot be read twice; write it to a file"),
    ],
)
def test_what_cannot_work_is_refused_before_the_model_is_loaded(
    run: Run, opened: list[GuardOptions], artefact: Path, benign: Path, given: list[str], message: str
) -> None:
    os.mkfifo("pipe.safetensors")
    result = run("calibrate", artefact, "--model", "org/m", "--benign", benign, *given)
    assert (result.exit_code, opened) == (2, [])
    assert message in result.stderr


def test_missing_scipy_is_found_before_the_scan(
    run: Run, opened: list[GuardOptions], artefact: Path, benign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    result = run("calibrate", artefact, "--model", "org/m", "--benign", benign)
    assert (result.exit_code, opened) == (2, [])
    assert "pip install 'anydepth[fit]'" in result.stderr


def test_files_that_are_not_there_or_empty(
    run: Run, opened: list[GuardOptions], artefact: Path, tmp_path: Path
) -> None:
    empty = traffic(tmp_path, [], "empty.jsonl")
    assert "no records" in run("calibrate", artefact, "--model", "org/m", "--benign", empty).stderr
    assert run("calibrate", artefact, "--model", "org/m", "--benign", "missing.jsonl").exit_code == 2
    assert "no probe at" in run("calibrate", "missing", "--model", "org/m", "--benign", empty).stderr


def test_an_earlier_result_is_not_overwritten_unasked(run: Run, opened: Any, artefact: Path, benign: Path) -> None:
    Path("mine.calibrated.safetensors").write_text("precious")
    given = ["calibrate", artefact, "--model", "org/m", "--benign", benign]
    result = run(*given)
    assert result.exit_code == 2
    assert "is there already" in result.stderr
    assert Path("mine.calibrated.safetensors").read_text() == "precious"
    assert run(*given, "-o", "mine.calibrated.safetensors").exit_code == 0


def test_copies_count_once_and_are_named(
    run: Run, opened: list[GuardOptions], artefact: Path, benign: Path, tmp_path: Path
) -> None:
    given = [part for _ in range(15) for part in ("--benign", benign)]
    result = run("calibrate", artefact, "--model", "org/m", *given, "--guarantee")
    assert (result.exit_code, opened) == (2, [])
    assert "--guarantee needs 598 answers for --target 0.005, the input has 40 that are no copies" in result.stderr
    result = run("calibrate", artefact, "--model", "org/m", *given)
    assert result.exit_code == 0, result.stderr
    assert "560 of 600 records are copies of others" in " ".join(result.stderr.split())
    assert "560 records, left out" in " ".join(result.stdout.split())
    evidence = LinearProbe.load("mine.calibrated.safetensors").card.calibration
    assert (evidence["answers"], evidence["copies"], evidence["verified"]) == (40, 560, False)


def test_a_guarantee_counts_one_answer_a_prompt(run: Run, opened: Any, artefact: Path, tmp_path: Path) -> None:
    rows = [record(n) for n in range(30)]
    again = [record(n + 100, prompt=f"W{n}!") for n in range(12)]  # the prompts of others but for case and punctuation
    moved = [record(n + 300, prompt_key=f"k{n}", host_key="h") for n in range(3)]  # under one request
    file = traffic(tmp_path, [*again, *rows, *moved])
    given = ["calibrate", artefact, "--model", "org/m", "--benign", file, "--guarantee"]
    result = run(*given, "--target", "0.09")
    assert result.exit_code == 2
    assert (
        "needs 32 answers for --target 0.09, the input has 31 that are no copies of others and share" in result.stderr
    )
    result = run(*given, "--target", "0.1")
    assert result.exit_code == 0, result.stderr
    told = " ".join(result.stderr.split())
    assert (
        "note: 14 of 45 answers share a prompt with others" in told and "one a prompt counts, which leaves 31" in told
    )
    assert "14 answers to the prompts of others, left out" in " ".join(result.stdout.split())
    evidence = LinearProbe.load("mine.calibrated.safetensors").card.calibration
    assert [evidence[key] for key in ("answers", "copies", "same_prompt", "verified")] == [31, 0, 14, True]
    Path("mine.calibrated.safetensors").unlink()
    result = run(*given[:-1], "--target", "0.1")
    evidence = LinearProbe.load("mine.calibrated.safetensors").card.calibration
    assert (evidence["answers"], evidence["same_prompt"]) == (45, 0) and "share a prompt" not in result.stderr


def test_answers_that_the_probe_was_made_with_are_named(
    run: Run, opened: list[GuardOptions], probe: LinearProbe, artefact: Path, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "folder", probe, {}, [], "x")
    texts = [Text.of([{"content": record(n)["prompt"]}], record(n)["response"].upper()) for n in range(4)]
    write_fit_record(folder, {}, {"trained": {texts[0].key}, "chosen": {text.key for text in texts[1:]}})
    file = traffic(tmp_path, [record(n, source="set" if n > 5 else "chat") for n in range(20)])
    result = run("calibrate", folder, "--model", "org/m", "--benign", file)
    assert result.exit_code == 0, result.stderr
    told = " ".join(result.stderr.split())
    assert "1 of 20 answers are among those that the probe was trained on; 3 of 20 answers" in told
    assert "the probe was trained on answers of set, of which there are some here" in told
    opened.clear()
    result = run(
        "calibrate", folder, "--model", "org/m", "--benign", file, "--guarantee", "--target", "0.3", "-o", folder
    )
    assert (result.exit_code, opened) == (2, [])
    assert "--guarantee does not hold for these answers: 1 of 20 answers" in " ".join(result.stderr.split())


def test_wrong_labels_are_found_before_the_model_is_loaded(
    run: Run, opened: list[GuardOptions], artefact: Path, tmp_path: Path
) -> None:
    file = traffic(tmp_path, [record(n, label="harmful") for n in range(10)])
    result = run("calibrate", artefact, "--model", "org/m", "--benign", file)
    assert (result.exit_code, opened) == (2, [])
    assert "10 of 10 records failed" in result.stderr


def test_a_probe_that_scores_every_answer_alike_is_refused(
    run: Run, opened: Any, probe: LinearProbe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    LinearProbe(np.zeros(32), 0.0, probe.card).save("flat.safetensors")
    file = traffic(tmp_path, [record(n) for n in range(10)])
    result = run("calibrate", "flat.safetensors", "--model", "org/m", "--benign", file)
    assert result.exit_code == 2
    assert "all 10 answers peak at 0.5: the probe tells no answer from another" in " ".join(result.stderr.split())
    assert not Path("flat.calibrated.safetensors").exists()


def test_a_probe_is_not_put_beside_the_card_of_another_one(
    run: Run, opened: Any, probe: LinearProbe, artefact: Path, benign: Path, tmp_path: Path
) -> None:
    other = write_folder(tmp_path / "other", LinearProbe(-probe.weight, 0.0, probe.card), {}, [], "x")
    before = {path.name: path.read_bytes() for path in other.iterdir()}
    result = run("calibrate", artefact, "--model", "org/m", "--benign", benign, "-o", other)
    assert result.exit_code == 2 and "holds another probe, with a model card of its own" in result.stderr
    assert {path.name: path.read_bytes() for path in other.iterdir()} == before


# -- the cascade -------------------------------------------------------------------------------------------------------


class Refuses:
    """In the place of a look-ahead: refuses at the named depths, in every answer; notes where it was run."""

    def __init__(self, *depths: int, broken: bool = False) -> None:
        self.depths, self.broken, self.asked = depths, broken, list[int]()

    def __call__(self, session: object, points: Sequence[CheckPoint]) -> list[Score]:
        if self.broken:
            raise CheckError("no text")
        self.asked += [point.depth for point in points]
        return [Score(float(point.depth in self.depths)) for point in points]


def look_ahead(monkeypatch: pytest.MonkeyPatch, *depths: int, **options: Any) -> Refuses:
    """A Rethink that is bound and proved as ever, with given scores."""
    found = Refuses(*depths, **options)
    monkeypatch.setattr(Rethink, "check", lambda self, session, points: found(session, points))
    return found


def test_a_cascade_is_calibrated_as_one_detector(
    run: Run,
    opened: Any,
    backend: TransformersBackend,
    probe: LinearProbe,
    artefact: Path,
    benign: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    second = look_ahead(monkeypatch, 0, 4, 8)
    given = ["--target", "0.1", "--policy", "threshold", "--cascade", "rethink", "--band-share", "0.5"]
    result = run("calibrate", artefact, "--model", "org/m", "--benign", benign, *given)
    assert result.exit_code == 0, result.stderr
    new = LinearProbe.load("mine.calibrated.safetensors")
    record = new.card.calibration["cascade"]
    alone = [Guard.from_backend(backend, probe).scan(record_["prompt"], record_["response"]) for record_ in RECORDS]
    highest = sorted((max(check.score for check in each.checks) for each in alone), reverse=True)
    assert (record["low"], record["high"]) == (math.nextafter(highest[20], 1), math.nextafter(highest[0], 1))
    cascade = Cascade.calibrated(new)
    unsure = [c.depth for each in alone for c in each.checks if cascade.unsure(c.score)]
    assert second.asked == unsure and len(unsure) > 20
    assert (record["second_checks"], record["checks"]) == (len(unsure), sum(len(each.checks) for each in alone))
    assert (record["target"], record["answers"]) == (0.1, 40)
    assert record["band"] == {"share": 0.5, "answers": 40}
    # the guard over the calibrated cascade halts what the record says; it reads on forks: rounding is another one
    guard = Guard.from_backend(backend, cascade)
    assert guard.policy == cascade.policy
    scans = [guard.scan(each["prompt"], each["response"]) for each in RECORDS]
    peaks_ = [max(check.score for check in each.checks) for each in scans]
    assert sum(value > cascade.policy.threshold + 1e-5 for value in peaks_) == record["halted"] == 4
    assert new.policy == Threshold(new.card.policy["threshold"])  # pyright: ignore[reportOptionalSubscript]
    for fact in ("rethink (look-ahead) where the probe scores", "its rate", "rethink ran at"):
        assert fact in result.stdout


RECORDS = [record(n) for n in range(40)]


def test_the_guarantee_of_a_cascade_has_its_band_from_other_answers(
    run: Run, opened: Any, probe: LinearProbe, artefact: Path, benign: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    look_ahead(monkeypatch, 4)
    given = ["calibrate", artefact, "--model", "org/m", "--benign", benign, "--guarantee", "--cascade", "rethink"]
    result = run(*given, "--target", "0.1")
    assert result.exit_code == 2
    assert "--guarantee needs 58 answers for --target 0.1 and --cascade, the input has 40" in result.stderr
    folder = write_folder(tmp_path / "folder", probe, {}, [], "x")
    result = run(*given, "--target", "0.15", "--band-share", "0.4", "-o", folder)
    assert result.exit_code == 0, result.stderr
    record = LinearProbe.load(folder).card.calibration["cascade"]
    assert f"| cascade: band of the probe's scores | {record['low']:.4g} to" in (folder / "README.md").read_text()
    assert (record["answers"], record["band"]["answers"], record["verified"]) == (20, 20, True)
    assert "same answers, which" not in record["note"]


def test_answers_at_which_the_second_detector_fails_are_left_out(
    run: Run, opened: Any, artefact: Path, benign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_ahead(monkeypatch, broken=True)
    given = ["calibrate", artefact, "--model", "org/m", "--benign", benign, "--cascade", "rethink", "--band-share"]
    result = run(*given, "0.05")
    assert result.exit_code == 1
    assert "2 records failed and were left out" in result.stderr
    evidence = LinearProbe.load("mine.calibrated.safetensors").card.calibration
    assert (evidence["answers"], evidence["failed"], evidence["cascade"]["answers"]) == (38, 2, 38)
    Path("mine.calibrated.safetensors").unlink()
    result = run(*given, "0.5")
    assert result.exit_code == 2 and "20 of 40 records failed" in result.stderr
    assert not Path("mine.calibrated.safetensors").exists()


def test_a_cascade_that_is_not_calibrated_again_is_named(
    run: Run, opened: Any, probe: LinearProbe, artefact: Path, benign: Path
) -> None:
    LinearProbe(probe.weight, probe.bias, replace(probe.card, calibration={"cascade": {}})).save(artefact)
    result = run("calibrate", artefact, "--model", "org/m", "--benign", benign)
    assert result.exit_code == 0
    assert "the new probe has no cascade, the old one has" in " ".join(result.stderr.split())
