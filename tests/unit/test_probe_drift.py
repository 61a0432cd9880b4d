"""benchmarks/probe_drift.py: the weights of quantised layers, and the figures of a format."""

import json
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from anydepth.backends.transformers import load
from anydepth.detectors import LinearProbe
from anydepth.detectors.probe import shipped_probes
from anydepth.errors import ConfigError
from anydepth.evals.context import probe_digest
from anydepth.evals.instruments.tuning import TrainingExample
from anydepth.probes.fitting.drift import DriftReading
from benchmarks import probe_drift as script
from benchmarks.joined_drift import DriftRun, joined
from tests import tiny
from tests.contract.test_cache_kinds import quanto_in_python  # noqa: F401  a fixture

RUNS = Path(__file__).parents[2] / "benchmarks" / "evals"


@pytest.mark.usefixtures("quanto_in_python")
def test_a_plain_model_gets_the_weights_of_a_quantised_one(tmp_path: Path) -> None:
    pytest.importorskip("optimum.quanto")
    tiny.tiny_model("Qwen2").save_pretrained(tmp_path)
    tiny.tiny_tokenizer().save_pretrained(tmp_path)
    plain, quantised = load(tmp_path), load(tmp_path, quantization_config=transformers.QuantoConfig(weights="int8"))
    before = plain.model.lm_head.weight.clone()
    layers = sum(isinstance(each, torch.nn.Linear) for each in plain.model.model.modules())
    assert script.dense(quantised, plain) == layers
    ids = torch.arange(9)[None]
    with torch.no_grad():
        one, other = (each.model.model(ids).last_hidden_state for each in (plain, quantised))
    assert torch.allclose(one, other, atol=1e-5)
    assert not torch.allclose(one, load(tmp_path).model.model(ids).last_hidden_state, atol=1e-5)
    assert torch.equal(plain.model.lm_head.weight, before)


def test_gptq_is_calibrated_on_the_examples() -> None:
    config = script.gptq([TrainingExample((5, 6, 7), 1), TrainingExample((8, 9), 1)])
    assert [row["input_ids"] for row in config.dataset] == [[[5, 6, 7]], [[8, 9]]]
    assert [row["attention_mask"] for row in config.dataset] == [[[1, 1, 1]], [[1, 1]]]
    assert (config.bits, config.group_size) == (4, 128)


def readings(by: float) -> list[dict[str, Any]]:
    made = []
    for name in script.SETS:
        label = "harmful" if name in {pair[0] for pair in script.PAIRS} else "benign"
        for number in range(4):
            peak = (0.6 if label == "harmful" else 0.2) + 0.1 * number - by
            key = f"{name} {number}"
            made.append(asdict(DriftReading(key, name, label, key, key, (0.0, peak), peak, peak >= 0.55)))
    return made


def summed_up(folder: Path, drift: dict[str, float]) -> Path:
    """A run folder with bfloat16 and other formats, whose peaks are lower by so much."""
    work = folder / "work"
    work.mkdir(parents=True)
    about = {"dtype": "bfloat16", "probe": "0123", "seconds": 3, "shape": {"answers": 4}}
    for name, by in drift.items():
        weights = "" if name == script.REFERENCE else name
        facts = {"format": name, "weights": weights, **about, "readings": readings(by)}
        (work / f"{name.replace(' ', '-')}.json").write_text(json.dumps(facts))
    args = Namespace(model="org/tiny", work=work, answers=4, words=100, out=folder / "run", card=None)
    script.sum_up(args)
    return args.out


def test_what_was_scanned_is_summed_up(tmp_path: Path) -> None:
    run = summed_up(tmp_path, {"bfloat16": 0.0, "4-bit (quanto)": 0.1})
    (suite,) = json.loads((run / "summary.json").read_text())["suites"].values()
    found = {
        (each["name"], each["group"]["of"]): each["value"]
        for each in suite["figures"]
        if each["group"]["weights"] == "4-bit (quanto)"
    }
    assert found["halted", "long harmful"] == 0.75
    assert found["halting change", "all harmful"] == -0.25
    assert found["halting change", "all harmless"] == 0
    assert found["verdicts changed", "all answers"] == pytest.approx(3 / 24)
    assert found["score difference", "largest"] == pytest.approx(0.1)
    assert found["auroc difference", "jailbreaks against benign"] == 0
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["options"]["formats"] == ["bfloat16", "4-bit (quanto)"]


def test_runs_whose_formats_were_scanned_apart_are_joined(tmp_path: Path) -> None:
    one, other = {"bfloat16": 0.0, "4-bit (quanto)": 0.1}, {"bfloat16": 0.0, "8-bit (quanto)": 0.0}
    apart = [DriftRun.read(summed_up(tmp_path / str(number), each)) for number, each in enumerate((one, other))]
    together = DriftRun.read(summed_up(tmp_path / "together", one | other))
    found = joined(*apart, "run")
    assert found.by_weights == together.by_weights
    for key in ("command", "options", "probe", "data"):
        assert found.manifest[key] == together.manifest[key]
    assert set(found.suite["notes"]) == set(together.suite["notes"])


def test_runs_of_other_answers_or_verdicts_are_not_joined(tmp_path: Path) -> None:
    one, halting = (DriftRun.read(summed_up(tmp_path / str(by), {"bfloat16": by})) for by in (0.0, 0.1))
    others = DriftRun({**one.manifest, "data": {"held-out answers": {"rows": 1, "sha256": ""}}}, one.suite)
    with pytest.raises(ConfigError, match="join runs of the same data"):
        joined(one, others, "run")
    with pytest.raises(ConfigError, match="scan all formats in one run"):
        joined(one, halting, "run")


@pytest.mark.parametrize(("name", "probe"), list(shipped_probes()))
def test_the_card_of_a_shipped_probe_has_what_its_run_says(name: str, probe: LinearProbe) -> None:
    run = RUNS / f"{name.removesuffix('.safetensors').removesuffix('-instruct')}-drift"
    (suite,) = json.loads((run / "summary.json").read_text())["suites"].values()
    for side in ("harmful", "harmless"):
        told = {each["weights"]: each["sides"][side.replace("harmless", "benign")] for each in probe.card.drift}
        measured = {
            each["group"]["weights"]: each
            for each in suite["figures"]
            if each["name"] == "halting change" and each["group"]["of"] == f"all {side}"
        }
        assert {"8-bit (torchao)", "4-bit (torchao)", "4-bit (gguf Q4_K_M)"} <= set(told) <= set(measured)
        for weights, found in told.items():
            assert found["difference"] == pytest.approx(measured[weights]["value"])
            assert found["interval"] == pytest.approx(measured[weights]["interval"])
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["probe"]["digest"] == probe_digest(probe)
