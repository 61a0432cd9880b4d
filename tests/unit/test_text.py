"""TextStream: tokens in, whole characters out."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anydepth.text import TextStream


def decode(ids: Sequence[int]) -> str:
    """Bytes of UTF-8 as tokens; 256 is a special token without text."""
    return bytes(i for i in ids if i < 256).decode(errors="replace")


def pieces(whole: Sequence[int], cuts: Sequence[int]) -> list[Sequence[int]]:
    places = sorted({0, len(whole), *(cut % (len(whole) + 1) for cut in cuts)})
    return [whole[a:b] for a, b in pairwise(places)]


texts = st.text(
    st.characters(codec="utf-8", exclude_characters="\ufffd") | st.sampled_from("é漢😀👩‍🚀नि \n"), max_size=30
)
cuts = st.lists(st.integers(0, 200), max_size=60)


@settings(deadline=None)
@given(texts, texts, cuts)
def test_pieces_join_to_the_text_and_break_no_character(before: str, text: str, where: list[int]) -> None:
    stream = TextStream(decode, before.encode())
    out = [stream.push(piece) for piece in pieces(text.encode(), where)]
    assert "".join(out) == text
    assert all("\ufffd" not in piece for piece in out)
    assert stream.flush() == ""


@settings(deadline=None)
@given(st.binary(max_size=30), cuts)
def test_bytes_that_are_no_text_come_out_once_and_in_order(whole: bytes, where: list[int]) -> None:
    stream = TextStream(decode)
    out = "".join(stream.push(piece) for piece in pieces(whole, where))
    assert decode(whole).startswith(out)
    assert out + stream.flush() == decode(whole)


def test_a_character_comes_when_it_is_whole() -> None:
    stream = TextStream(decode)
    assert [stream.push([byte]) for byte in "a😀b".encode()] == ["a", "", "", "", "😀", "b"]


def test_flush_gives_what_never_became_whole() -> None:
    stream = TextStream(decode)
    assert stream.push("a😀".encode()[:3]) == "a"
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


def test_special_tokens_add_nothing() -> None:
    stream = TextStream(decode)
    assert [stream.push([256]), stream.push([97, 256]), stream.push([]), stream.flush()] == ["", "a", "", ""]


@pytest.mark.parametrize("prefix", [(), (1,), (1, 2)])
def test_the_prefix_settles_the_spacing_and_is_not_said_again(prefix: tuple[int, ...]) -> None:
    """Tokenizers of the SentencePiece kind drop the space before the first word."""
    stream = TextStream(lambda ids: " ".join(f"w{i}" for i in ids), prefix)
    assert stream.push([3]) + stream.push([4]) == (" w3 w4" if prefix else "w3 w4")
