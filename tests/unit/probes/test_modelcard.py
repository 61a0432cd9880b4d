"""The probe folder: what its README says, to people and to the hub, and that it stays true."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from anydepth.backends.protocol import ModelIdentity, Read, Site
from anydepth.detectors import LinearProbe, ProbeCard
from anydepth.errors import ProbeError
from anydepth.intervals import Rate
from anydepth.policy import Ewma, Threshold
from anydepth.probes.artefact.modelcard import artefact_in, readme, refresh, write_folder
from anydepth.probes.fitting.calibrate import Trail, calibrate, recalibrated
from anydepth.probes.fitting.operating import from_prefill, operating_point

CARD = ProbeCard(
    model=ModelIdentity("org/tiny", "abc123", "llama", 4, 6, "f00d"),
    header_ids=(7, 8, 9),
    reads=(Read(Site(3), 1),),
    dtype="bfloat16",
    sources=(
        {"name": "first-set", "licence": "MIT", "repo": "people/first-set"},
        {"name": 'odd: "name" | #1', "licence": "CC-BY-4.0"},
    ),
    created="2026-11-22",
    versions={"numpy": "2.4"},
    seed=3,
    notes="A note.",
)
FIGURES = {
    "answers": 600,
    "AUROC": {
        "long harmful vs benign": {"value": 0.9971, "interval": [0.991, 0.9995]},
        "attacks vs benign": {"value": 0.95, "interval": None},
    },
    "halted from a prefill": [
        {"depth": 50, "halted": Rate.of(97, 100).record(), "at once": 0.9},
        {"depth": None, "halted": Rate.of(0, 0).record()},
    ],
}


def probe(policy: Any = None, **changes: Any) -> LinearProbe:
    plain = LinearProbe(np.arange(4.0), 0.5, replace(CARD, **changes))
    return plain if policy is None else recalibrated(plain, calibration(policy))


def calibration(policy: Any) -> Any:
    benign = [Trail(str(n), f"set {n % 2}", (0, 25, 60), (0.0, n / 300, 0.1)) for n in range(200)]
    return calibrate(policy, benign, target=0.02, data="benign answers of two sets")


def written(tmp_path: Path, made: LinearProbe, figures: Mapping[str, Any] = FIGURES, **options: Any) -> str:
    folder = write_folder(tmp_path / "probe", made, figures, ["Attacks of kinds unseen."], "anydepth fit X", **options)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "probe.safetensors"]
    return (folder / "README.md").read_text(encoding="utf-8")


def header(text: str) -> dict[str, Any]:
    before, block, _ = text.split("---\n", 2)
    assert before == ""
    return yaml.safe_load(block)


def section(text: str, name: str) -> str:
    return text.split(f"## {name}\n", 1)[1].split("\n## ")[0]


def test_the_hub_can_read_the_header(tmp_path: Path) -> None:
    assert header(written(tmp_path, probe(), licence="apache-2.0")) == {
        "library_name": "anydepth",
        "base_model": "org/tiny",
        "license": "apache-2.0",
        "tags": ["anydepth", "safety", "guardrail", "linear-probe"],
        "datasets": ["people/first-set"],
        "sources": [
            {"name": "first-set", "license": "MIT"},
            {"name": 'odd: "name" | #1', "license": "CC-BY-4.0"},
        ],
    }


def test_the_hubs_own_parser_takes_it(tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    data = hub.ModelCard(written(tmp_path, probe())).data
    assert (data.base_model, data.license, data.library_name) == ("org/tiny", "other", "anydepth")


def test_a_model_in_a_folder_is_no_base_model(tmp_path: Path) -> None:
    made = probe(model=replace(CARD.model, name="/home/me/models/tiny"), sources=())
    assert set(header(written(tmp_path, made))) == {"library_name", "license", "tags"}


def test_it_says_what_the_card_says(tmp_path: Path) -> None:
    text = written(tmp_path, probe(Ewma(0.4)))
    for fact in ("org/tiny, revision `abc123`", "f00d", "3.input_layernorm@1", "anydepth fit X", "seed 3", "A note."):
        assert fact in text
    assert 'Guard.from_pretrained("org/tiny", probe="probe.safetensors")' in section(text, "Use")
    assert "--probe probe.safetensors" in section(text, "Use")
    assert "- Attacks of kinds unseen." in section(text, "Where it does not hold")
    assert r'odd: "name" \| #1 | CC-BY-4.0' in section(text, "Training data")


def test_figures_become_tables(tmp_path: Path) -> None:
    figures = section(written(tmp_path, probe()), "Figures")
    assert "| answers | 600 |" in figures
    assert "### AUROC" in figures
    assert "| long harmful vs benign | 0.9971 [0.991, 0.9995] |" in figures
    assert "| depth | halted | at once |" in figures
    assert "| 50 | 97 % [91.5, 99.4] %, 97 of 100 | 0.9 |" in figures
    assert "| – | – [0, 100] %, 0 of 0 | – |" in figures
    assert "| attacks vs benign | 0.95 |" in figures
    widths = {line.replace(r"\|", "").count("|") for line in figures.splitlines() if line.startswith("|")}
    assert widths == {3, 4}
    assert "None were recorded." in section(written(tmp_path, probe(), {}), "Figures")


def test_operating_points_become_one_table(tmp_path: Path) -> None:
    harmful = [Trail("a", "s", (0, 25, 50), (0.1, 0.2, 0.9)), Trail("b", "s", (0, 25), (0.1, 0.2))]
    points = {
        "long": operating_point(Threshold(), harmful).record(),
        "none": operating_point(Threshold(1), harmful).record(),
    }
    prefill = {"long": [point.record() for point in from_prefill(Threshold(), harmful[:1], [25, None])]}
    separation = {"long vs benign": {"auroc": 0.99, "interval": [0.98, 1.0]}}
    figures = section(
        written(tmp_path, probe(), {"halted": points, "prefill": prefill, "separation": separation}), "Figures"
    )
    assert "|  | value | depth of halt | tokens before halt | tokens of missed |" in figures
    assert "| long | 50 % [1.26, 98.7] %, 1 of 2 | median 50, p90 50, largest 50 | median 25, p90 25, " in figures
    assert "| none | 0 % [0, 84.2] %, 0 of 2 | – | – | median 37.5," in figures
    assert "#### long\n\n| depth | halted | at_once |" in figures
    assert "| end | 100 % [2.5, 100] %, 1 of 1 |" in figures
    assert "| long vs benign | 0.99 [0.98, 1] |" in figures


def test_the_calibration_is_told_with_its_interval_and_its_sources(tmp_path: Path) -> None:
    found = calibration(Ewma(0.4))
    text = section(written(tmp_path, probe(Ewma(0.4))), "Calibration")
    assert f"ewma (alpha 0.4, threshold {found.policy.threshold:.4g})" in text
    assert "| 200 / 4 |" in text
    assert "[0.548, 5.04] %" in text
    assert found.note in text
    assert "| set 0 | 2 %" in text
    assert "| 51-100 | 200 | 0 | 200 | 0 |" in text
    assert "was not calibrated" in section(written(tmp_path, probe()), "Calibration")


def test_the_rate_on_the_other_half_is_told() -> None:
    found = {**calibration(Threshold()).record(), "other_half": Rate.of(1, 200).record()}
    made = LinearProbe(
        np.arange(4.0), 0.5, replace(CARD, policy={"name": "threshold", "threshold": 0.9}, calibration=found)
    )
    text = section(readme(made, {}, [], ""), "Calibration")
    assert "| on prompts that the threshold was not set on | 0.5 % [0.0127, 2.75] %, 1 of 200 |" in text


def test_an_older_card_is_told_as_far_as_it_goes(tmp_path: Path) -> None:
    card = {"policy": {"name": "threshold", "threshold": 0.9}, "calibration": {"target": 0.02, "achieved": 0.01}}
    text = section(written(tmp_path, LinearProbe(np.arange(4.0), 0.5, replace(CARD, **card))), "Calibration")
    assert "| false positives seen | 1 % |" in text
    assert "–" not in text


def test_a_new_calibration_replaces_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    old = written(tmp_path, probe(Ewma(0.4)))
    assert refresh(tmp_path / "probe" / "probe.safetensors", probe(Threshold()))
    new = (tmp_path / "probe" / "README.md").read_text(encoding="utf-8")
    assert new == written(tmp_path, probe(Threshold()))
    assert "ewma" in old
    assert "ewma" not in new


def test_a_readme_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    assert not refresh(tmp_path / "probe.safetensors", probe())
    (tmp_path / "README.md").write_text("# Mine")
    assert not refresh(tmp_path / "probe.safetensors", probe())
    assert (tmp_path / "README.md").read_text() == "# Mine"


def test_the_artefact_of_a_folder_or_of_itself(tmp_path: Path) -> None:
    written(tmp_path, probe(Ewma(0.4)))
    artefact = artefact_in(tmp_path / "probe")
    assert artefact_in(artefact) == artefact
    assert LinearProbe.load(artefact).policy == calibration(Ewma(0.4)).policy


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ProbeError, match="file"):
        write_folder(tmp_path / "file" / "probe", probe(), {}, [], "x")
