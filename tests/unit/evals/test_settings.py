"""Options of single suites: what they may be is known, and seen before anything runs."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from anydepth.errors import ConfigError
from anydepth.evals.attacks.attack_options import AdaptiveOptions, AttackOptions
from anydepth.evals.suite import SUITES
from anydepth.evals.suite_options import SETTINGS, check_settings

SOURCES = Path(__file__).parents[3] / "src" / "anydepth" / "evals"
_READ = re.compile(r"""(?:setting|value|number|samples)\(\s*"([a-z_-]+)\"""")


def test_every_suite_has_its_options() -> None:
    assert set(SETTINGS) == set(SUITES)


def test_every_option_that_a_suite_asks_for_is_known() -> None:
    asked = {name for file in SOURCES.rglob("*.py") for name in _READ.findall(file.read_text())}
    asked |= {each.name for kind in (AttackOptions, AdaptiveOptions) for each in fields(kind)}
    assert {"tokens", "layers", "ratios", "gcg_steps", "held-out"} <= asked
    assert asked <= {name for options in SETTINGS.values() for name in options}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"separability.layers": "0"}, "separability.layers is '0'; give blocks from 1 on"),
        ({"separability.layers": "0,8"}, "separability.layers is '0,8'"),
        ({"separability.layers": "8,,9"}, "separability.layers is '8,,9'"),
        ({"separability.layer": "8"}, "separability has no option 'layer'; it has layers, data, held-out"),
        ({"separability.held-out": "non"}, "separability.held-out is 'non'; give pairs or none"),
        ({"separability.data": " "}, "separability.data is ' '"),
        ({"speed.rounds": "1"}, "there is no suite 'speed'; choose from deep-prefill"),
        ({"interval.tokens": "0"}, "interval.tokens is '0'; give a whole number of at least 1"),
        ({"interval.tokens": "1e3"}, "interval.tokens is '1e3'"),
        ({"interval.tokens": "9" * 5000}, "interval.tokens is"),
        ({"deep-prefill.depths": "0,-5"}, "deep-prefill.depths is '0,-5'; give whole numbers with commas"),
        ({"deep-prefill.content_probe": "/no/such.safetensors"}, "give a file or folder that is there"),
        ({"attacks.attacks": "gcg,pear"}, "attacks.attacks is 'gcg,pear'; give names of none, stored, gcg"),
        ({"adaptive.ratios": "25:50,x"}, "adaptive.ratios is '25:50,x'; give HARMFUL:BENIGN"),
        ({"adaptive.ratios": "0:50"}, "adaptive.ratios is '0:50'"),
        ({"erosion.steps": "5,10"}, "erosion.steps is '5,10'; give rising whole numbers that begin with 0"),
        ({"erosion.data": "good"}, "erosion.data is 'good'"),
        ({"causal.strengths": "1,nan"}, "causal.strengths is '1,nan'; give finite numbers other than 0"),
        ({"causal.strengths": "inf"}, "causal.strengths is 'inf'"),
        ({"causal.strengths": "0"}, "causal.strengths is '0'"),
        ({"latency.samples": ""}, "latency.samples is ''"),
    ],
)
def test_what_an_option_cannot_be_is_said(settings: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_settings(settings)
    assert says in str(error.value)


def test_what_they_can_be_is_taken(tmp_path: Path) -> None:
    check_settings(
        {
            "separability.layers": "8, 16",
            "separability.held-out": "none",
            "deep-prefill.depths": "0,25",
            "deep-prefill.content_probe": str(tmp_path),
            "adaptive.ratios": "25:0,5:20",
            "erosion.steps": "0,5",
            "causal.strengths": "-8,0.5",
            "latency.rounds": "3",
        }
    )
