"""Two answers in one, in the order of each."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anydepth.errors import ConfigError
from anydepth.evals.attacks.interleave import interleave
from anydepth.evals.ratio import Ratio

HARMFUL, BENIGN = tuple(range(100)), tuple(range(1000, 1100))


def test_parts_take_turns_and_the_harmless_one_begins() -> None:
    mixture = interleave(HARMFUL, BENIGN, Ratio(2, 3), 12)
    assert mixture.token_ids == (1000, 1001, 1002, 0, 1, 1003, 1004, 1005, 2, 3, 1006, 1007)
    assert mixture.harmful == tuple(id < 1000 for id in mixture.token_ids)
    assert [mixture.harmful_before(depth) for depth in (0, 3, 4, 9, 12)] == [0, 0, 1, 3, 4]


@given(st.integers(1, 30), st.integers(0, 30), st.integers(0, 260))
def test_each_answer_stays_in_order_and_the_length_is_kept(harmful: int, benign: int, length: int) -> None:
    mixture = interleave(HARMFUL, BENIGN, Ratio(harmful, benign), length)
    bad = [id for id in mixture.token_ids if id < 1000]
    good = [id for id in mixture.token_ids if id >= 1000]
    assert bad == list(HARMFUL[: len(bad)])
    assert good == list(BENIGN[: len(good)])
    assert mixture.harmful_before(len(mixture.token_ids)) == len(bad)
    used_up = len(bad) == len(HARMFUL) or len(good) == len(BENIGN)
    assert len(mixture.token_ids) == length or used_up


def test_a_ratio_reads_what_it_writes() -> None:
    assert str(Ratio.of(" 25:50")) == "25:50"
    assert interleave(HARMFUL, BENIGN, Ratio.of("25:0"), 40).token_ids == HARMFUL[:40]
    for text in ("25", "25:", "a:b", "-1:2", "0:5"):
        with pytest.raises(ConfigError, match="ratio is"):
            Ratio.of(text)
