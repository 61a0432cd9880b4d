"""What a library said, in one line."""

import json

import pytest

from anydepth.reasons import LONGEST, reason


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


def test_all_lines_are_kept() -> None:
    said = "401 Client Error.\n\nRepository Not Found for url: x.\n\tPlease log in."
    assert reason(OSError(said)) == "401 Client Error. Repository Not Found for url: x. Please log in"


def test_colours_are_left_out() -> None:
    assert reason(RuntimeError("do \x1b[1mthis\x1b[0m")) == "do this"


def test_a_long_list_is_cut_at_a_word() -> None:
    said = reason(ValueError("one of " + ", ".join(f"Config{n}" for n in range(999))))
    assert len(said) <= LONGEST + 2 and said.startswith("one of Config0, ") and said.endswith(", …")


@pytest.mark.parametrize("error", [KeyError("nonesuch"), AttributeError("no attribute"), TypeError("x"), Exception()])
def test_what_is_not_written_for_people_says_its_kind_and_place(error: Exception) -> None:
    said = reason(raised(error))
    assert said.startswith(type(error).__name__) and said.endswith(f" in {__name__}.raised")
    assert str(error) in said


def test_the_place_is_the_librarys_own() -> None:
    with pytest.raises(TypeError) as caught:
        json.dumps(object())
    assert reason(caught.value).endswith(" in json.encoder.JSONEncoder.default")


def test_an_error_that_was_never_raised_has_no_place() -> None:
    assert reason(KeyError("x")) == "KeyError: 'x'"
