"""The same answers before and after the weights are altered."""

from dataclasses import replace

import numpy as np
import pytest

from anydepth.backends.altered_weights import Alteration
from anydepth.backends.protocol import ModelIdentity, Read, Site
from anydepth.detectors import LinearProbe, ProbeCard
from anydepth.errors import ConfigError
from anydepth.probes.fitting.drift import DriftComparison, DriftReading, with_drift
from anydepth.types import CheckResult, ScanResult, Verdict

FOUR = Alteration("4-bit", "torchao")


def reading(number: int, label: str, peak: float, prompt: str | None = None) -> DriftReading:
    key = prompt or f"prompt {label} {number}"
    return DriftReading(f"{label} {number}", f"{label} set", label, key, key, (0.0, peak), peak, peak >= 0.5)


def moved(rows: list[DriftReading], by: float) -> list[DriftReading]:
    peaks = [max(0.0, each.peak + by) for each in rows]
    return [
        replace(each, scores=(0.0, peak), peak=peak, halted=peak >= 0.5) for each, peak in zip(rows, peaks, strict=True)
    ]


ROWS = [reading(n, "harmful", peak) for n, peak in enumerate((0.9, 0.8, 0.55, 0.4))]
ROWS += [reading(n, "benign", peak) for n, peak in enumerate((0.1, 0.2, 0.6))]


def test_the_record_of_a_comparison() -> None:
    record = DriftComparison(ROWS, moved(ROWS, -0.1)).record(FOUR)
    assert (record["weights"], record["kind"], record["answers"], record["checks"]) == (
        "4-bit (torchao)",
        "4-bit",
        7,
        14,
    )
    assert record["verdicts_changed"]["halted"] == 1 and record["verdicts_changed"]["answers"] == 7
    assert record["score_difference"] == {"mean": pytest.approx(0.05), "largest": pytest.approx(0.1)}
    harmful = record["sides"]["harmful"]
    assert (harmful["answers"], harmful["before"], harmful["halted"]) == (4, 3, 2)
    assert harmful["difference"] == pytest.approx(-0.25)
    low, high = harmful["interval"]
    assert -1 <= low < -0.25 < high <= 0
    assert record["sides"]["benign"] | {"interval": None} == {
        "answers": 3, "before": 1, "halted": 1, "difference": 0.0, "interval": None,
    }  # fmt: skip
    assert record["sets"]["harmful set"] == harmful


def test_nothing_changed() -> None:
    record = DriftComparison(ROWS, ROWS).record(FOUR)
    assert record["sides"]["harmful"]["interval"] == [0, 0]
    assert record["verdicts_changed"]["interval"] == pytest.approx([0, 0.41], abs=0.01)  # exact: seven are not many


def test_answers_to_one_prompt_are_drawn_together() -> None:
    apart = [reading(n, "harmful", 0.9 if n % 2 else 0.55) for n in range(40)]
    together = [replace(each, prompt=f"p{n % 2}", host=f"p{n % 2}") for n, each in enumerate(apart)]
    rest = [reading(n, "benign", 0.1) for n in range(40)]
    wide, narrow = (
        np.ptp(
            DriftComparison([*rows, *rest], moved([*rows, *rest], -0.1)).record(FOUR)["sides"]["harmful"]["interval"]
        )
        for rows in (together, apart)
    )
    assert wide > 2 * narrow


def test_the_auroc_before_and_after() -> None:
    after = moved(ROWS[:4], -0.32) + ROWS[4:]
    found = DriftComparison(ROWS, after).auroc("harmful set", "benign set")
    assert found["before"]["auroc"] == pytest.approx(10 / 12)
    assert found["after"]["auroc"] == pytest.approx(6 / 12)
    assert found["difference"] == pytest.approx(-4 / 12)
    assert found["interval"][0] <= found["difference"] <= found["interval"][1]


def test_other_answers_are_refused() -> None:
    with pytest.raises(ConfigError, match="7 answers before and the 6 after are not the same"):
        DriftComparison(ROWS, ROWS[1:])
    with pytest.raises(ConfigError, match="there are no benign answers"):
        DriftComparison(ROWS[:4], ROWS[:4])


def test_a_reading_of_a_scan() -> None:
    checks = (CheckResult(0, 0.2, 0.14), CheckResult(9, 0.8, 0.47))
    about = {"id": "a", "group": "g", "label": "harmful", "prompt": "p", "host": "h"}
    scan = ScanResult(verdict=Verdict(True, 0.8, 9, "policy"), checks=checks)
    assert DriftReading.of(scan, **about) == DriftReading(**about, scores=(0.2, 0.8), peak=0.47, halted=True)
    failed = ScanResult(verdict=scan.verdict, checks=(replace(checks[0], error="no state"),))
    with pytest.raises(ConfigError, match="'a': the check at depth 0 failed: no state"):
        DriftReading.of(failed, **about)


def test_a_card_keeps_one_record_of_each_weights(tmp_path) -> None:
    identity = ModelIdentity("org/tiny", None, "llama", 2, 4, "fingerprint")
    probe = LinearProbe(np.ones(2), 0.0, ProbeCard(identity, (1, 2), (Read(Site(1), 1),)))
    first, other = (DriftComparison(ROWS, moved(ROWS, by)).record(FOUR) for by in (-0.1, 0.0))
    eight = DriftComparison(ROWS, ROWS).record(Alteration("8-bit", "quanto"))
    probe = with_drift(with_drift(probe, [first, eight]), [other])
    assert [each["weights"] for each in probe.card.drift] == ["4-bit (torchao)", "8-bit (quanto)"]
    assert probe.card.drift[0] == other
    probe.save(tmp_path / "probe.safetensors")
    assert LinearProbe.load(tmp_path / "probe.safetensors").card == probe.card
