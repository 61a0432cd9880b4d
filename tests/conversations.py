"""Harmless conversations in the words of the tiny tokenizer."""

from typing import Any

from anydepth.conversations.dataset import Conversation, Label


def words(start: int, count: int) -> str:
    """`count` words of the tiny vocabulary from number `start` on."""
    return " ".join(f"w{(start + n) % 200}" for n in range(count))


def conversation(number: int, length: int = 20, **facts: Any) -> Conversation:
    """Conversation `number`, with an answer of `length` tokens; both labels occur."""
    label: Label = "harmful" if number % 2 else "benign"
    given = {"response": words(7 * number + 3, length), "label": label, "source": f"s{number % 3}", "licence": "MIT"}
    prompt = ({"role": "user", "content": words(5 * number, 3 + number % 5)},)
    return Conversation(f"c{number}", **{"messages": prompt, **given, **facts})


def conversations(count: int, *, shortest: int = 1, longest: int = 60) -> list[Conversation]:
    """`count` conversations whose answers have different lengths."""
    return [conversation(n, shortest + 13 * n % (longest - shortest + 1)) for n in range(count)]
