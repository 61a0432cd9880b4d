"""The detector that an operator names."""

import pytest

from anydepth.config import check_detector_name
from anydepth.detectors import Cascade, LinearProbe, Rethink, detector_named, detector_over
from anydepth.errors import ConfigError
from anydepth.settings import parse_settings


class Own:
    """Fits anything and finds nothing."""

    name, needs = "own", frozenset[str]()

    def bind(self, backend: object) -> None:
        """Nothing to verify."""

    def check(self, session: object, points: object) -> list[object]:
        """Not called here."""
        return []


def test_built_in_names() -> None:
    assert detector_named("probe") is None and detector_named("cascade") is None
    found = detector_named("rethink"), detector_named("rethink-score")
    assert all(isinstance(each, Rethink) for each in found)
    assert [each.mode for each in found if isinstance(each, Rethink)] == ["look-ahead", "score"]


def test_a_class_of_ones_own() -> None:
    found = detector_named(f"{__name__}:Own")
    assert found is not None and found.name == "own"


@pytest.mark.parametrize("name", ["", "prob", "a.b", "a:b:c", ":Own", "mod:", "os.system('x'):y"])
def test_what_cannot_name_a_detector_is_refused_everywhere(name: str) -> None:
    for use in (check_detector_name, detector_named, lambda each: parse_settings({"guard": {"detector": each}})):
        with pytest.raises(ConfigError, match="choose probe, rethink, rethink-score, cascade, or name one of your own"):
            use(name)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("no_such_module_here:Own", "ModuleNotFoundError"),
        (f"{__name__}:Missing", "AttributeError"),
        (f"{__name__}:ConfigError", "lacks name, needs, bind, check"),
    ],
)
def test_what_gives_no_detector_says_why(name: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        detector_named(name)


def test_what_is_made_of_a_probe(probe: LinearProbe) -> None:
    assert detector_over(probe, "probe") is probe
    found = detector_over(probe, "cascade", [0.1, 0.7])
    assert isinstance(found, Cascade) and isinstance(found.second, Rethink)
    assert (found.first, found.low, found.high) == (probe, 0.1, 0.7)
    with pytest.raises(ConfigError, match="not calibrated for a cascade"):
        detector_over(probe, "cascade")
    with pytest.raises(ConfigError, match="'rethink' is not made of a probe"):
        detector_over(probe, "rethink")


def test_a_band_in_guard_toml() -> None:
    guard = parse_settings({"guard": {"detector": "cascade", "band": [0.2, 0.8]}}).guard
    assert guard.band == [0.2, 0.8]
    for band in ([0.8, 0.2], [0.1], [0.1, 0.2, 0.3]):
        with pytest.raises(ConfigError, match=r"guard\.band"):
            parse_settings({"guard": {"detector": "cascade", "band": band}})
    with pytest.raises(ConfigError, match="band goes with detector"):
        parse_settings({"guard": {"band": [0.2, 0.8]}})
