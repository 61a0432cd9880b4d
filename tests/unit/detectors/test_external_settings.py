"""Where an external guard is named: guard.toml, the command line, Python; and what comes of it."""

from pathlib import Path
from typing import Any

import pytest

from anydepth.cli.options import GuardOptions
from anydepth.config import external_named
from anydepth.detectors import Cascade, ExternalGuard, LinearProbe, Rethink, cascade_without_probe, detector_over
from anydepth.errors import ConfigError
from anydepth.prices import Prices
from anydepth.settings import load_settings, parse_settings

URL = "http://127.0.0.1:9/v1"
TABLE: dict[str, Any] = {"url": URL, "model": "g"}
UPSTREAM = {"url": "http://127.0.0.1:8/v1", "model": "m"}


def test_the_table_of_guard_toml(tmp_path: Path) -> None:
    (tmp_path / "guard.toml").write_text(
        f'[guard]\ndetector = "cascade"\n[external]\nurl = "{URL}"\nmodel = "g"\nform = "moderations"\n'
        "unsure = [0.3, 0.6]\ntimeout_seconds = 3\nprices = {prompt = 1.0, completion = 2.0}\n"
    )
    assert load_settings(tmp_path / "guard.toml").external.options() == {
        "url": URL,
        "model": "g",
        "form": "moderations",
        "question": None,
        "unsure": [0.3, 0.6],
        "key_env": None,
        "retries": 1,
        "request": {},
        "timeout": 3.0,
        "prices": Prices(1.0, 2.0),
    }
    assert parse_settings({}).external.options() is None


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"external": TABLE}, "[external] goes with [guard] detector = \"cascade\", not 'probe'"),
        ({"external": {"url": URL}}, "url and model go together"),
        ({"external": {"url": "http://me:pw@x/v1", "model": "g"}}, "without a user, a key or a query in it"),
        ({"external": {**TABLE, "key": "secret"}}, "there is no key 'external.key'"),
        ({"external": {**TABLE, "unsure": [0.6, 0.3]}}, "external.unsure"),
        ({"external": {**TABLE, "form": "words"}}, "external.form is 'words'"),
        ({"external": {**TABLE, "timeout_seconds": 0.0}}, "external.timeout_seconds is 0.0"),
        ({"upstream": UPSTREAM, "guard": {"detector": "cascade"}}, "give [external] url and model, and no band"),
        (
            {"upstream": UPSTREAM, "guard": {"detector": "cascade", "band": [0.2, 0.8]}, "external": TABLE},
            "and no band",
        ),
    ],
)
def test_what_cannot_be_is_named(tables: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_settings(tables)
    assert words in str(caught.value)


def test_on_the_command_line() -> None:
    assert external_named(f"g@{URL}") == {"model": "g", "url": URL}
    assert external_named(f"moderations:org/g@x@{URL}") == {"form": "moderations", "model": "org/g@x", "url": URL}
    assert GuardOptions(detector="cascade", external=f"g@{URL}").external_options() == {"model": "g", "url": URL}
    assert GuardOptions().external_options() is None
    for spec in ("g", "g@localhost:8000", f"@{URL}"):
        with pytest.raises(ConfigError, match=r"write \[FORM:\]MODEL@URL"):
            GuardOptions(detector="cascade", external=spec)
    with pytest.raises(ConfigError, match="goes with --detector cascade, not with rethink"):
        GuardOptions(detector="rethink", external=f"g@{URL}")


def test_the_cascade_that_is_made_of_it(probe: LinearProbe) -> None:
    found = detector_over(probe, "cascade", [0.2, 0.8], {**TABLE, "unsure": [0.3, 0.6]})
    assert isinstance(found, Cascade) and isinstance(found.third, ExternalGuard)
    assert (found.third_band, found.policy.threshold) == ((0.3, 0.6), pytest.approx(0.5))
    with pytest.raises(ConfigError, match="goes with the detector cascade, not with probe"):
        detector_over(probe, "probe", None, TABLE)


def test_without_a_probe_it_is_asked_where_the_look_ahead_does_not_refuse() -> None:
    found = cascade_without_probe(Rethink(), TABLE)
    assert (found.low, found.high, found.third) == (0.0, 1.0, None)
    assert [found.unsure(score) for score in (0.0, 0.5, 1.0)] == [True, True, False]
    assert isinstance(found.second, ExternalGuard) and found.policy.threshold == 0.5
    narrow = cascade_without_probe(Rethink(), {**TABLE, "unsure": [0.1, 0.7]})
    assert (narrow.low, narrow.high) == (0.1, 0.7)
