"""Read stored traces: answers with the thoughts before them, as `<think>thought</think>answer`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from anydepth.conversations.dataset import Conversation, Label
from anydepth.errors import ConfigError
from anydepth.evals.context import Context, fresh_first
from anydepth.evals.transcript import Transcript
from anydepth.templates.published import Channel

PLAIN = Channel("<think>", "</think>", "\n</think>\n\n")
"""How a table writes a thought, and how a model without a thinking channel reads it: as text of the answer."""


@dataclass(frozen=True, slots=True)
class ThoughtTrace:
    """One stored trace, as if the model wrote it now.

    Attributes:
        transcript: The thought with its markers, and the answer behind it.
        answer_from: Depth in tokens at which the answer begins, the thought and both of its markers behind it.
        case: What kind of trace it is, by the table's column `case`; `harmful` or `benign` without that column.
        label: Whether thought or answer are harmful.
        request: Whether the request is harmful, by the table's column `request`; None if that is not known.
        prompt: Key of the request: traces with one key answer the same request.
    """

    transcript: Transcript
    answer_from: int
    case: str
    label: Label
    request: str | None
    prompt: str


def thought_traces(
    context: Context, table: str, count: int, *, thought_tokens: int, answer_tokens: int
) -> list[ThoughtTrace]:
    """At most `count` traces of each case, each to another request, both parts cut at so many tokens.

    Raises:
        ConfigError: A row has no thought, answer or label, a case has both labels, or one label is missing.
    """
    cases: dict[str, list[Conversation]] = {}
    for row in context.table(table):
        cases.setdefault(_case(row, table), []).append(row)
    for case, rows in cases.items():
        if len({row.label for row in rows}) > 1:
            raise ConfigError(
                f"{table}: the case {case!r} has harmful and harmless traces; give each label its own case"
            )
    if missing := {"harmful", "benign"} - {rows[0].label for rows in cases.values()}:
        raise ConfigError(f"{table} has no trace labelled {sorted(missing)[0]}; the suite compares harmful with benign")
    return [
        trace
        for case in sorted(cases)
        for row in _first_of_each(cases[case])[:count]
        for trace in _written(context, row, case, thought_tokens, answer_tokens)
    ]


def _case(row: Conversation, table: str) -> str:
    thought, answer = parts(row)
    missing = {"thought": thought, "answer behind it": answer, "label": row.label}
    if lacking := next((name for name, there in missing.items() if not there), None):
        raise ConfigError(
            f"{table}: row {row.id!r} has no {lacking}; give a label and the response <think>thought</think>answer"
        )
    return row.tags.get("case") or str(row.label)


def parts(row: Conversation) -> tuple[str, str]:
    """Thought and answer of a trace, spaces around them left out; the thought is empty if none is closed."""
    thought, closed, answer = row.response.partition(PLAIN.think_close)
    return (thought.strip().removeprefix(PLAIN.think_open).strip(), answer.strip()) if closed else ("", "")


def _first_of_each(rows: Sequence[Conversation]) -> list[Conversation]:
    ordered = fresh_first(rows, lambda row: row.prompt_key)
    return ordered[: len({row.prompt_key for row in rows})]


def _written(
    context: Context, row: Conversation, case: str, thought_tokens: int, answer_tokens: int
) -> Iterator[ThoughtTrace]:
    """The trace of a row; none if its answer is empty once it is cut, or the model cannot take so long a text."""
    thought, answer = (
        _cut(context, text, tokens) for text, tokens in zip(parts(row), (thought_tokens, answer_tokens), strict=True)
    )
    opening = written_thought(context.backend.template.channel or PLAIN, thought)
    whole, begun = (context.prompt(row, prefill=opening + text) for text in (answer, ""))
    ids, length = whole.ids[whole.start :], _shared(whole.ids, begun.ids) - whole.start
    limit = context.backend.context_length
    if 0 < length < len(ids) and (limit is None or len(whole.ids) + len(context.backend.header.ids) <= limit):
        question = replace(whole, ids=whole.ids[: whole.start], prefill=0)
        transcript = Transcript(f"{case}|{row.id}", question, ids, "stop", 1)
        assert row.label is not None
        yield ThoughtTrace(transcript, length, case, row.label, row.tags.get("request"), row.prompt_key)


def written_thought(channel: Channel, thought: str) -> str:
    """`thought` with its markers, up to where the answer begins; line breaks stand on both sides of it or on none."""
    line = "\n" if channel.skip.startswith("\n") else ""
    return f"{channel.think_open}{line}{thought}{channel.skip}"


def _cut(context: Context, text: str, tokens: int) -> str:
    tokenizer = context.backend.template.tokenizer
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return text if len(ids) <= tokens else tokenizer.decode(ids[:tokens], skip_special_tokens=False)


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two texts have in common at their beginning."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
