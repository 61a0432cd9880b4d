"""A journal goes on where it stopped, with the same settings only, and cuts nothing that is not its own."""

import json
from pathlib import Path

import pytest

from anydepth.errors import ConfigError
from anydepth.journal import Journal, digest_of, settings_before

SETTINGS = {"model": "m", "seed": 0}


def begun(path: Path, *keys: str, **more: object) -> Path:
    with Journal(path, SETTINGS) as journal:
        for key in keys:
            journal.write(key, {"id": key, "n": 1, "response": "text", **more})
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_it_goes_on_where_it_stopped(tmp_path: Path, name: str) -> None:
    path = begun(tmp_path / "deep" / name, "one")
    with Journal(path, SETTINGS) as journal:
        assert "one" in journal and "two" not in journal
        journal.write("two", {"id": "two"})
        journal.leave_out("three", "it does not fit")
    with Journal(path, SETTINGS) as journal:
        assert journal.rows == {"one": {"id": "one", "n": 1}, "two": {"id": "two"}}
        assert journal.left_out == {"three": "it does not fit"} and "three" in journal


def test_what_is_kept_in_memory_can_be_chosen(tmp_path: Path) -> None:
    with Journal(begun(tmp_path / "a.jsonl", "one"), SETTINGS, keep=lambda row: row["n"]) as journal:
        assert journal.rows == {"one": 1}


def test_other_settings_are_refused_before_anything_is_cut(tmp_path: Path) -> None:
    path = begun(tmp_path / "a.jsonl", "one")
    path.write_bytes(path.read_bytes() + b'{"id": "half')
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"a\.jsonl was begun with seed 0, now it is 1; give another place"):
        Journal(path, {**SETTINGS, "seed": 1})
    (tmp_path / "a.jsonl.run.json").unlink()
    with pytest.raises(ConfigError, match=r"was not written by an earlier run \(a\.jsonl\.run\.json is not there"):
        Journal(path, SETTINGS)
    assert path.read_bytes() == before


def test_some_settings_can_be_compared_before_the_others_are_known(tmp_path: Path) -> None:
    journal = Journal(begun(tmp_path / "a.jsonl", "one"))
    journal.check({"model": "m"})
    with pytest.raises(ConfigError, match="was begun with model 'm', now it is 'other'"):
        journal.check({"model": "other"})


def test_records_that_carry_the_digest_of_their_settings_may_be_moved(tmp_path: Path) -> None:
    moved = begun(tmp_path / "a.jsonl", "one", settings_digest=digest_of(SETTINGS)).rename(tmp_path / "b.jsonl")
    with pytest.raises(ConfigError, match=r"b\.jsonl was written with other settings"):
        Journal(moved, {**SETTINGS, "seed": 1})
    with Journal(moved, SETTINGS) as journal:
        assert "one" in journal
    assert json.loads((tmp_path / "b.jsonl.run.json").read_text()) == SETTINGS


def test_settings_without_records_are_replaced(tmp_path: Path) -> None:
    begun(tmp_path / "a.jsonl")
    with Journal(tmp_path / "a.jsonl", {**SETTINGS, "seed": 1}):
        pass
    assert json.loads((tmp_path / "a.jsonl.run.json").read_text())["seed"] == 1


def test_a_file_of_other_settings_is_no_file_of_a_run(tmp_path: Path) -> None:
    place = tmp_path / "settings.json"
    assert settings_before(place, SETTINGS, tmp_path) is None
    place.write_text('{"model": "m"}')
    with pytest.raises(ConfigError, match=r"settings\.json has no 'seed', so it is not of such a run"):
        settings_before(place, SETTINGS, tmp_path)
