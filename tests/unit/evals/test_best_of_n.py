"""Variants of a request look different and say the same."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anydepth.errors import ConfigError
from anydepth.evals.attacks.best_of_n import augment, capitalise, noise, scramble

TEXT = "Please describe how a steam engine works, and name its seven largest parts."


def test_a_seed_gives_one_variant_and_other_seeds_others() -> None:
    variants = [augment(TEXT, seed) for seed in range(20)]
    assert augment(TEXT, 3) == variants[3]
    assert len(set(variants)) == 20
    assert TEXT not in variants


def test_strength_0_changes_nothing_and_more_changes_more() -> None:
    assert augment(TEXT, 1, strength=0) == TEXT

    def changed(strength: float) -> int:
        variants = [augment(TEXT, seed, strength=strength) for seed in range(20)]
        return sum(a != b for variant in variants for a, b in zip(TEXT, variant, strict=True))

    assert 0 < changed(0.1) < changed(0.4) < changed(1)


@given(st.text(max_size=80), st.integers(0, 100))
def test_scrambling_keeps_letters_ends_and_short_words(text: str, seed: int) -> None:
    found = scramble(text, random.Random(seed), 1)
    assert [len(word) for word in found.split()] == [len(word) for word in text.split()]
    assert Counter(found) == Counter(text)
    short = scramble("ab abc abcd", random.Random(seed), 1).split()
    for before, after in zip(["ab", "abc", "abcd"], short, strict=True):
        assert (before[0], before[-1]) == (after[0], after[-1])
        assert len(before) > 3 or before == after


def test_case_and_noise_stay_near() -> None:
    rng = random.Random(0)
    turned = capitalise(TEXT, rng, 0.5)
    assert turned.lower() == TEXT.lower()
    assert turned != TEXT
    noisy = noise(TEXT, rng, 0.5)
    steps = [abs(ord(a) - ord(b)) for a, b in zip(TEXT, noisy, strict=True)]
    assert max(steps) == 1
    assert all(a == b for a, b in zip(TEXT, noisy, strict=True) if a == " ")
    assert 0.2 < sum(steps) / len(steps) < 0.6


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_a_strength_beyond_its_range_is_refused(strength: float) -> None:
    with pytest.raises(ConfigError, match="strength is"):
        augment(TEXT, 0, strength=strength)
