"""Hold a request against `[limits]`: BadRequest names the field that asks for too much."""

from collections.abc import Sequence

from anydepth.errors import BadRequest
from anydepth.settings import LimitsTable


def answer_length(limits: LimitsTable, wanted: int | None, name: str = "max_tokens") -> int:
    """Length of an answer, of which the field `name` asks for `wanted`."""
    if wanted is None:
        return min(limits.default_max_tokens, limits.max_tokens)
    if wanted > limits.max_tokens:
        raise BadRequest(f"{name} is {wanted}; this server allows {limits.max_tokens} at most", name)
    return wanted


def check_answers(limits: LimitsTable, n: int, prompts: int = 1) -> None:
    """Refuse more answers than the operator allows: `n` of each prompt."""
    if (wanted := n * prompts) > limits.choices:
        name = "n" if n > 1 else "prompt"
        raise BadRequest(f"{wanted} answers are asked for by {name}; this server allows {limits.choices} at most", name)


def check_entries(limits: LimitsTable, entries: Sequence[object], name: str) -> None:
    """Refuse a longer list of messages, or of inputs, than the operator allows."""
    if len(entries) > limits.messages:
        raise BadRequest(f"{name} has {len(entries)} entries; this server takes {limits.messages} at most", name)
