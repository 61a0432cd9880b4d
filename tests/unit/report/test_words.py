"""Numbers and names as people read them."""

import pytest

from anydepth.evals.figure import Figure
from anydepth.report import words


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "share", "–"),
        (0.0, "share", "0.0 %"),
        (1.0, "share", "100.0 %"),
        (0.12345, "share", "12.3 %"),
        (0.0004, "share", "0.04 %"),
        (0.9997, "share", "99.97 %"),
        (-0.021, "share", "−2.1 %"),
        (0.98765, "auroc", "0.988"),
        (2500, "tokens", "2,500"),
        (0.6189, "ratio", "0.619"),
        (12.345, "seconds", "12.3"),
        (812.4, "MiB", "812"),
        (0.00001234, "seconds", "1.2e−05"),
    ],
)
def test_an_amount_has_the_digits_of_its_unit(value: float | None, unit: str, text: str) -> None:
    assert words.amount(value, unit) == text.replace(" %", "\u00a0%")


@pytest.mark.parametrize(
    ("figure", "value", "interval"),
    [
        (Figure("leak", 3.0, (2.5, 3.5), 9, "tokens"), "3.00", "[2.50, 3.50]"),
        (Figure("leak", 120.2, (99.0, 140.0), 9, "tokens"), "120", "[99, 140]"),
        (Figure("depth", 6.0, (5.0, 7.0), 9, "tokens"), "6", "[5, 7]"),
        (Figure("halted", 0.5, (0.25, 0.75), 9), "50.0\u00a0%", "[25.0, 75.0]"),
        (Figure("change", -0.004, (-0.014, 0.006), 9), "−0.4\u00a0%", "[−1.4, 0.6]"),
        (Figure("layers", 15.0, None, 0, "count"), "15", "–"),
        (Figure("halted", None, (0.0, 1.0), 0), "–", "–"),
        (Figure("cost", 0.0, (0.0, 0.0), 3, "seconds"), "0", "[0, 0]"),
    ],
)
def test_a_number_and_its_interval_have_the_same_digits(figure: Figure, value: str, interval: str) -> None:
    assert (words.value(figure), words.interval(figure)) == (value, interval)


def test_names() -> None:
    assert words.spaced("attack_success__auroc") == "attack success AUROC"
    assert words.about("layer", 14) == "layer 14"
    assert words.about("token", "<|im_start|>") == words.axis_value("<|im_start|>") == "<|im_start|>"
    assert words.slug("AUROC, by depth & layer!") == "auroc-by-depth-layer"
    assert words.slug("…") == "figure"
    assert words.counted(1, "answer") == "1 answer"
    assert words.counted(2000, "answer") == "2,000 answers"
    assert words.span([40, 120]) == "40–120"
    assert list(words.in_parts("3 % of `x`.")) == [("3\u00a0% of ", False), ("x", True), (".", False)]
