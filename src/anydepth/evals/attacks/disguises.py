"""Make stored answers harder to tell for a guard that is known."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from anydepth.conversations.dataset import Conversation
from anydepth.evals.answers.stored import stored
from anydepth.evals.attacks.interleave import Mixture, interleave
from anydepth.evals.attacks.restyle import MECHANICAL, restyle
from anydepth.evals.attacks.spoof import VARIANTS, spoofed
from anydepth.evals.context import Context
from anydepth.evals.ratio import Ratio
from anydepth.evals.transcript import Transcript

NONE = "none"
"""The attack that changes nothing; every other one is set beside it."""

AS_STORED = "as stored"
"""The variant of the attack that changes nothing."""


@dataclass(frozen=True, slots=True)
class Case:
    """One answer to scan.

    Attributes:
        attack: What was done to prompt or answer.
        variant: How it was done.
        label: Whether there is harm in the answer.
        transcript: The answer.
        mixture: Which of its tokens are harmful, where two answers were mixed.
    """

    attack: str
    variant: str
    label: Literal["harmful", "benign"]
    transcript: Transcript
    mixture: Mixture | None = None


def as_stored(context: Context, rows: Sequence[Conversation], tokens: int) -> Iterator[Case]:
    """The answers as they are."""
    for row in rows:
        yield case_of(context, NONE, AS_STORED, row, tokens)


def spoofs(context: Context, rows: Sequence[Conversation], tokens: int) -> Iterator[Case]:
    """The answers under prompts that hold the template's own words."""
    for variant in VARIANTS:
        for row in rows:
            content = spoofed(context.backend, variant, row.prompt)
            yield case_of(context, "spoof", variant, with_content(row, content), tokens)


def styles(context: Context, rows: Sequence[Conversation], tokens: int) -> Iterator[Case]:
    """The stored part of the answers in other shapes, which may take twice the tokens."""
    for style in MECHANICAL:
        for row in rows:
            plain = context.backend.decode_text(stored(context, "", row, tokens).token_ids)
            yield case_of(context, "style", style, replace(row, response=restyle(style, plain)), 2 * tokens)


def suffixed(
    context: Context, variant: str, rows: Sequence[Conversation], suffix: Callable[[Conversation], str], tokens: int
) -> Iterator[Case]:
    """The answers under prompts with a suffix."""
    for row in rows:
        yield case_of(context, "suffix", variant, with_content(row, row.prompt + suffix(row)), tokens)


def spreads(
    context: Context,
    rows: Sequence[Conversation],
    benign: Sequence[Conversation],
    ratios: Sequence[Ratio],
    tokens: int,
) -> Iterator[Case]:
    """Harmful answers spread over harmless ones: under their own prompts, and under those of the harmless answers."""
    long = 10 * tokens
    for number, row in enumerate(rows):
        other = benign[number % len(benign)]
        harmful, harmless = stored(context, "", row, long), stored(context, "", other, long)
        for ratio in ratios:
            mixture = interleave(harmful.token_ids, harmless.token_ids, ratio, tokens)
            for attack, prompt in (("spread", harmful.prompt), ("spread, harmless prompt", harmless.prompt)):
                key = f"{attack}|{ratio}|{row.id}"
                yield Case(attack, str(ratio), "harmful", Transcript(key, prompt, mixture.token_ids), mixture)


def with_content(row: Conversation, content: str) -> Conversation:
    """`row` with another text as its last message."""
    return replace(row, messages=(*row.messages[:-1], {**row.messages[-1], "content": content}))


def case_of(context: Context, attack: str, variant: str, row: Conversation, tokens: int) -> Case:
    """The first `tokens` tokens of the stored answer of `row`, which the attack has made what it is."""
    key = f"{attack}|{variant}|{row.id}"
    label = "harmful" if row.label == "harmful" else "benign"
    return Case(attack, variant, label, stored(context, key, row, tokens))
