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
from anydepth.evals.context import probe_digest
from anydepth.probes.fitting.drift import DriftReading
from benchmarks import probe_drift as script
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


def readings(by: float) -> list[dict[str, Any]]:
    made = []
    for name in script.SETS:
        label = "harmful" if name in {pair[0] for pair in script.PAIRS} else "benign"
        for number in range(4):
            peak = (0.6 if label == "harmful" else 0.2) + 0.1 * number - by
            key = f"{name} {number}"
            made.append(asdict(DriftReading(key, name, label, key, key, (0.0, peak), peak, peak >= 0.55)))
    return made


def test_what_was_scanned_is_summed_up(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    about = {"dtype": "bfloat16", "probe": "0123", "seconds": 3, "shape": {"answers": 4}}
    for name, weights, by in (("bfloat16", "", 0.0), ("4-bit (quanto)", "4-bit (quanto)", 0.1)):
        facts = {"format": name, "weights": weights, **about, "readings": readings(by)}
        (work / f"{name.replace(' ', '-')}.json").write_text(json.dumps(facts))
    args = Namespace(model="org/tiny", work=work, answers=4, words=100, out=tmp_path / "run", card=None)
    script.sum_up(args)
    (suite,) = json.loads((args.out / "summary.json").read_text())["suites"].values()
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
    manifest = json.loads((args.out / "manifest.json").read_text())
    assert manifest["options"]["formats"] == ["bfloat16", "4-bit (quanto)"]


@pytest.mark.parametrize(("name", "probe"), shipped_probes())
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
