"""Copy the Safety Tokens into an answer, as if each of its paragraphs were the beginning of one."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from anydepth.conversations.dataset import Conversation
from anydepth.evals.attacks.disguises import Case, case_of
from anydepth.evals.attacks.recombined import token_ends
from anydepth.evals.context import Context

if TYPE_CHECKING:
    from anydepth.backends.transformers import TransformersBackend

COPIES = ("plain text", "control tokens")
"""The header spelled in ordinary tokens; its own tokens, but for those that end an answer."""

_PARAGRAPH = re.compile(r"\n\s*\n\s*(?=\S)")


def copied_headers(context: Context, rows: Sequence[Conversation], tokens: int) -> Iterator[Case]:
    """The first `tokens` tokens of the answers with a header before each paragraph; the answer's own tokens stay."""
    for variant in COPIES:
        header = copied(context.backend, variant)
        for row in rows:
            case = case_of(context, "copied-header", variant, row, tokens)
            ids = case.transcript.token_ids
            ends = token_ends(context, row, [found.end() for found in _PARAGRAPH.finditer(row.response)], len(ids))
            begins = [0, *(end for end in dict.fromkeys(ends) if 0 < end < len(ids))]
            parts = zip(begins, [*begins[1:], len(ids)], strict=True)
            written = tuple(each for begin, end in parts for each in (*header, *ids[begin:end]))
            yield replace(case, transcript=replace(case.transcript, token_ids=written))


def copied(backend: "TransformersBackend", variant: str) -> tuple[int, ...]:
    """The ids of the header as one of `COPIES`."""
    if variant == "control tokens":
        return tuple(each for each in backend.header.ids if each not in backend.end_tokens({}))
    ids = list(backend.header.ids)
    text = backend.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    pieces = _broken(text, list(backend.tokenizer.get_added_vocab()))
    return tuple(id for piece in pieces for id in backend.tokenizer(piece, add_special_tokens=False)["input_ids"])


def _broken(text: str, marks: Sequence[str]) -> list[str]:
    """`text` in pieces, none of which has one of the `marks`: each mark is broken behind its first character."""
    known = "|".join(re.escape(mark) for mark in sorted(marks, key=len, reverse=True) if len(mark) > 1)
    begins = [found.start() + 1 for found in re.finditer(known, text)] if known else []
    return [text[begin:end] for begin, end in zip([0, *begins], [*begins, len(text)], strict=True)]
