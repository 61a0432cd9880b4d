"""The detector that an operator names."""

import pytest

from anydepth.config import check_detector_name
from anydepth.detectors import Rethink, detector_named
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
    assert detector_named("probe") is None
    found = detector_named("rethink"), detector_named("rethink-score")
    assert all(isinstance(each, Rethink) for each in found)
    assert [each.mode for each in found if isinstance(each, Rethink)] == ["look-ahead", "score"]


def test_a_class_of_ones_own() -> None:
    found = detector_named(f"{__name__}:Own")
    assert found is not None and found.name == "own"


@pytest.mark.parametrize("name", ["", "prob", "a.b", "a:b:c", ":Own", "mod:", "os.system('x'):y"])
def test_what_cannot_name_a_detector_is_refused_everywhere(name: str) -> None:
    for use in (check_detector_name, detector_named, lambda each: parse_settings({"guard": {"detector": each}})):
        with pytest.raises(ConfigError, match="choose probe, rethink, rethink-score, or name one of your own"):
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
