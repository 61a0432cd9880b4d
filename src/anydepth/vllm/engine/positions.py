"""Find where in a sequence of tokens the states of a check stand."""

from collections.abc import Sequence

from anydepth.backends.protocol import Read
from anydepth.templates.template import ChatTemplate, Prompt

Place = tuple[int, int]
"""Position in the sequence (from 0) and index of the read that is made there."""


def locate(template: ChatTemplate, ids: Sequence[int]) -> Prompt:
    """Tell the client's prefill from the prompt: what follows the last generation prompt.

    It does not depend on what is read at a check: a prefill that ends like the header is a prefill all the same. A
    prompt without a generation prompt, such as a text to complete, is a prompt without a prefill.

    Args:
        template: The chat template.
        ids: The prompt as the engine got it.
    """
    begin = template.turn_begin(ids)
    return Prompt(tuple(ids), prefill=0 if begin is None else len(ids) - begin)


def start_places(template: ChatTemplate, prompt: Prompt, reads: Sequence[Read]) -> list[Place] | None:
    """Where the reads of depth 0 stand in the prompt itself; None if its generation prompt lacks one of them.

    Means have no place of their own: they are made of the answer's tokens.
    """
    single = _single(reads)
    found = ((template.position(prompt, read.token), index) for index, read in single)
    places = [(position, index) for position, index in found if position is not None and position >= 0]
    return places if len(places) == len(single) else None


def end_places(length: int, reads: Sequence[Read]) -> list[Place]:
    """Where the reads stand if the header follows `length` tokens; means have no place of their own."""
    return [(length + read.token, index) for index, read in _single(reads)]


def _single(reads: Sequence[Read]) -> list[tuple[int, Read]]:
    """The reads of a single state, with their indices."""
    return [(index, read) for index, read in enumerate(reads) if not read.is_mean]
