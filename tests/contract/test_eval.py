"""`evaluate` end to end on a tiny model: killed and gone on with, run twice, and read back."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from anydepth.evals.eval_options import EvalOptions
from anydepth.evals.evaluation import Evaluation, evaluate
from anydepth.journal import Journal
from anydepth.report import open_runs
from tests.evaluations import FEW, random_probe, tiny_backend, write_tables

ROOT = Path(__file__).resolve().parents[2]
ARMS = ("base", "probe", "probe-end", "rethink")

KILLED = """
import os, signal, sys
from pathlib import Path
from anydepth.journal import Journal
from tests.contract.test_eval import evaluated

left = int(sys.argv[2])
whole = Journal.write

def write(self, key, row):
    global left
    whole(self, key, row)
    left -= 1
    if left == 0:
        self._open(self.path).write(b'{"id": "half a li')
        self._open(self.path).flush()
        os.kill(os.getpid(), signal.SIGKILL)

Journal.write = write
evaluated(Path(sys.argv[1]), Path(sys.argv[3]))
"""


def evaluated(data: Path, folder: Path, *, seed: int = 0, suites: tuple[str, ...] = ("deep-prefill",)) -> Any:
    """Run `suites` on the tiny model."""
    backend = tiny_backend()
    settings = {**{f"deep-prefill.{name}": value for name, value in FEW.items()}, "interval.tokens": "40"}
    options = EvalOptions(data_dir=data, quick=True, limit=4, arms=ARMS, settings=settings, seed=seed)
    evaluation = Evaluation(backend, folder, options, "refusal", random_probe(backend, seed=4))
    return evaluate(evaluation, suites, lambda what, done, total: None)


def records(folder: Path, suite: str = "deep-prefill") -> dict[str, Any]:
    lines = (folder / "records" / f"{suite}.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len({row["id"] for row in rows}) == len(rows), "a record was written twice"
    return {row["id"]: row for row in rows}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tables(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody killed."""
    folder = tmp_path_factory.mktemp("run") / "whole"
    evaluated(data, folder)
    return folder


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_and_ends_the_same(tmp_path: Path, data: Path, whole: Path) -> None:
    folder = tmp_path / "run"
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(data), "40", str(folder)], env=environment, cwd=ROOT, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    goes_on_to(whole, data, folder)


@pytest.mark.parametrize("after", [5, 70])
def test_an_interrupted_evaluation_goes_on_and_ends_the_same(
    tmp_path: Path, data: Path, whole: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = Journal.write, count(1)

    def interrupted(self: Journal, key: str, row: Mapping[str, Any]) -> None:
        write(self, key, row)
        if next(written) == after:
            self._files[self.path].write(b'{"id": "half a li')
            raise KeyboardInterrupt

    folder = tmp_path / "run"
    monkeypatch.setattr(Journal, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluated(data, folder)
    monkeypatch.undo()
    goes_on_to(whole, data, folder)


def goes_on_to(whole: Path, data: Path, folder: Path) -> None:
    """The run in `folder`, which broke off, ends as the one in `whole`."""
    assert not (folder / "summary.json").exists()
    begun = len((folder / "texts" / "deep-prefill.jsonl").read_bytes().splitlines())
    assert begun > 0
    evaluated(data, folder)
    assert records(folder) == records(whole)
    resumed, uninterrupted = (open_runs([each])[0].summaries["deep-prefill"] for each in (folder, whole))
    assert resumed.record() == uninterrupted.record()


def test_two_runs_with_one_seed_agree_and_another_seed_takes_other_answers(
    tmp_path: Path, data: Path, whole: Path
) -> None:
    evaluated(data, tmp_path / "again")
    assert records(tmp_path / "again") == records(whole)
    for kind in ("records", "texts"):
        one, other = ((folder / kind / "deep-prefill.jsonl").read_bytes() for folder in (tmp_path / "again", whole))
        assert one == other
    evaluated(data, tmp_path / "other", seed=1)
    assert records(tmp_path / "other").keys() != records(whole).keys()


def test_texts_stay_out_of_records_and_summary(data: Path, whole: Path) -> None:
    texts = [json.loads(line)["text"] for line in (whole / "texts" / "deep-prefill.jsonl").read_text().splitlines()]
    shown = (whole / "summary.json").read_text() + (whole / "records" / "deep-prefill.jsonl").read_text()
    assert texts and not [text for text in texts if text and text in shown]


def test_suites_share_a_folder(tmp_path: Path, data: Path) -> None:
    found = evaluated(data, tmp_path / "run", suites=("interval", "deep-prefill"))
    (run,) = open_runs([tmp_path / "run"])
    manifest, summaries = run.manifest, run.summaries
    assert list(summaries) == ["deep-prefill", "interval"] and set(found) == set(summaries)
    assert set(manifest["suites"]) == set(summaries)
    assert set(manifest["data"]) == {"pairs_deep_validation", "pairs_benign_validation", "responses_xstest"}
    assert all(summary.figures and summary.charts and summary.notes for summary in summaries.values())
