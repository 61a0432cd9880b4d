"""Say at which depths the stretch of an answer lies that its label is about."""

from collections.abc import Sequence

from anydepth.templates.template import ChatTemplate
from anydepth.types import Message

NOWHERE = (-1, -1)
"""The place of a stretch that there is not: the label is about the whole answer."""


def in_tokens(
    template: ChatTemplate,
    messages: Sequence[Message],
    response: str,
    stretch: tuple[int, int] | None,
    answer_ids: Sequence[int],
) -> tuple[int, int]:
    """Where `stretch`, characters `[begin, end)` of `response`, lies in tokens; NOWHERE for None.

    Args:
        template: The chat template of the model.
        messages: The prompt.
        response: The answer.
        stretch: Characters of the answer.
        answer_ids: All tokens of the answer, as the template makes them of `response`.

    Returns:
        (begins, ends): the first `begins` tokens have nothing of the stretch, the first `ends` have all of it. A token
        that lies on both sides of an edge belongs to the stretch.
    """
    if stretch is None:
        return NOWHERE
    before, whole = (_ids(template, messages, response[:edge]) for edge in stretch)
    ends = _shared(whole, answer_ids)
    return _shared(before, answer_ids), min(len(answer_ids), ends + (ends < len(whole)))


def _ids(template: ChatTemplate, messages: Sequence[Message], text: str) -> Sequence[int]:
    if not text:
        return ()
    prompt = template.prompt(list(messages), prefill=text)
    return prompt.ids[prompt.start :]


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens are the same from the beginning on."""
    count = 0
    for mine, theirs in zip(one, other, strict=False):
        if mine != theirs:
            break
        count += 1
    return count
