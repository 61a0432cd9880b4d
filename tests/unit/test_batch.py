"""Prompts of about one length are put together."""

from hypothesis import given
from hypothesis import strategies as st

from anydepth.backends.batch import ROWS, TOKENS_A_BATCH, batches
from anydepth.templates.template import Prompt


def cut(lengths: list[int], new: int, rows: int | None = None) -> list[list[int]]:
    prompts = {f"{place:03d}": Prompt((1,) * length) for place, length in enumerate(lengths)}
    found = batches(list(prompts), lambda key: prompts[key], new, str, rows=rows)
    return [[len(prompts[key].ids) for key in batch] for batch in found]


@given(st.lists(st.integers(1, 3000), max_size=120), st.integers(0, 200), st.sampled_from([None, 8]))
def test_each_item_is_in_one_batch_that_is_neither_too_large_nor_mostly_padding(lengths, new, rows):
    found = cut(lengths, new, rows)
    assert [length for batch in found for length in batch] == sorted(lengths)
    for batch in found:
        assert 0 < len(batch) <= (rows or ROWS)
        assert len(batch) == 1 or len(batch) * (batch[-1] + new) <= TOKENS_A_BATCH
        assert batch[-1] + new <= 2 * (batch[0] + new)


def test_a_long_prompt_does_not_make_short_ones_long():
    assert cut([40, 50, 60, 600, 50], 20) == [[40, 50, 50, 60], [600]]
