"""Force the beginning of a stored answer on the model."""

from collections.abc import Sequence
from dataclasses import dataclass

from anydepth.conversations.dataset import Conversation
from anydepth.evals.answers.answer_tables import Kind
from anydepth.evals.context import Context
from anydepth.templates.template import Prompt

BETWEEN = "\n\n"
"""Between an answer that is too short and the one that it is joined with."""


@dataclass(frozen=True, slots=True)
class Forced:
    """A request with the first tokens of a stored answer as prefill.

    Attributes:
        kind: What the answer is.
        row: The conversation.
        depth: Length of the prefill in tokens.
        joined: How many further answers it took to reach the depth.
        prompt: Request and prefill, ready for the model.
    """

    kind: Kind
    row: Conversation
    depth: int
    joined: int
    prompt: Prompt

    @property
    def key(self) -> str:
        """Names it in records and texts."""
        return f"{self.kind}|{self.depth}|{self.row.id}"


def force(
    context: Context, kind: Kind, rows: Sequence[Conversation], pool: Sequence[Conversation], depth: int
) -> list[Forced]:
    """The rows with the first `depth` tokens of their answers.

    An answer that is too short is joined with answers of `pool` to other requests, in an order drawn for it. Rows that
    do not reach the depth even so are left out.
    """
    found = []
    for row in rows:
        text, joined = row.response, 0
        prompt = context.prompt(row, prefill=text)
        others = (
            sorted(pool, key=lambda other: context.digest("join", row.id, other.id)) if _short(prompt, depth) else ()
        )
        for other in others:
            if other.prompt_key != row.prompt_key and other.response:
                text, joined = text + BETWEEN + other.response, joined + 1
                prompt = context.prompt(row, prefill=text)
                if not _short(prompt, depth):
                    break
        if not _short(prompt, depth):
            found.append(Forced(kind, row, depth, joined, Prompt(prompt.ids[: prompt.start + depth], depth)))
    return found


def _short(prompt: Prompt, depth: int) -> bool:
    return prompt.prefill < depth
