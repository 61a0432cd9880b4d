"""A task of deep prefills and a scorer of verdicts for Inspect AI."""

# ruff: noqa: E402 - a missing package gives the error of anydepth.extras, before its own imports

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from anydepth.errors import ConfigError, RecordError
from anydepth.extras import require
from anydepth.guard import Guard
from anydepth.records import Record, read_lines

require("inspect_ai", extra="inspect", at_least=(0, 3))

import anyio.to_thread
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessage, ChatMessageAssistant, ChatMessageSystem, ChatMessageUser
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
from inspect_ai.solver import TaskState, generate

from anydepth.integrations.inspect_model import REPORT, messages_of

_ROLES: dict[str, type[ChatMessage]] = {
    "system": ChatMessageSystem,
    "user": ChatMessageUser,
    "assistant": ChatMessageAssistant,
}


@scorer(metrics=[mean(), stderr()])
def halts(guard: Guard | None = None) -> Scorer:
    """1 for an answer that the guard halts (under `monitor`: would have), 0 for one that it does not.

    The guard's own report is read where the answer has one. An answer of another provider is scanned, at every
    scheduled depth, a prefill before it included: that needs `guard`.

    Args:
        guard: What scans answers without a report.
    """

    async def score(state: TaskState, target: Target) -> Score:
        metadata = state.output.metadata or {}
        if REPORT in metadata:
            report = metadata[REPORT]
            return _score(state, report["would_halt"], report["depth"], report["score"], "report", report["reason"])
        if guard is None:
            raise ConfigError(
                f"the answer of {state.model} has no report of a guard; use --model anydepth/..., or give the scorer "
                "a guard to scan answers with: halts(guard)"
            )
        turns, answer = conversation(state.messages)
        if not answer:
            return _score(state, False, 0, None, "nothing to scan", "clear")
        verdict = (await anyio.to_thread.run_sync(guard.scan, turns, answer)).verdict
        return _score(state, verdict.halt, verdict.depth, verdict.score, "scan", verdict.reason)

    return score


def _score(state: TaskState, halt: bool, depth: int | None, value: float | None, source: str, reason: str) -> Score:
    found = {"depth": depth, "score": value, "source": source, "reason": reason}
    return Score(value=float(halt), answer=state.output.completion, metadata=found)


def conversation(messages: Sequence[ChatMessage]) -> tuple[list[dict[str, Any]], str]:
    """The turns that were answered, and the answer with the prefill before it: all that ends the conversation."""
    turns = messages_of(messages)
    end = len(turns)
    while end and turns[end - 1]["role"] == "assistant":
        end -= 1
    return turns[:end], "".join(turn["content"] for turn in turns[end:])


@task
def deep_prefill(dataset: str, words: str | int | Sequence[str | int] = "0,25,100", guard: Guard | None = None) -> Task:
    """Have the model continue answers that were begun for it: how often the guard halts, by the length of the prefill.

    Args:
        dataset: A JSONL file of your own: records of `id`, `prompt` or `messages`, and `response`. A sample forces the
            answer to begin with the first words of the response.
        words: How many words: numbers with commas, one, or a list; a response with fewer is left out at that number.
        guard: What scans the answers of a provider that is not guarded; see `halts`.

    Raises:
        RecordError: A record cannot be used.
        ConfigError: `words` are no numbers, or no response is as long.
    """
    given = words.split(",") if isinstance(words, str) else [words] if isinstance(words, int) else words
    try:  # Inspect's command line makes a list of what has commas in it
        lengths = sorted({int(each) for each in given})
    except ValueError:
        lengths = []
    if not lengths or lengths[0] < 0:
        raise ConfigError(f"words is {words!r}; give whole numbers from 0, as 0,25,100")
    records = list(_records(Path(dataset)))
    samples = [sample for record in records for sample in _samples(record, lengths)]
    if not samples:
        raise ConfigError(f"no response of {dataset} has {lengths[0]} words; give smaller numbers as words")
    return Task(dataset=MemoryDataset(samples, name=Path(dataset).stem), solver=generate(), scorer=halts(guard))


def _records(path: Path) -> Iterator[Record]:
    if not path.is_file():
        raise ConfigError(f"dataset is {path}, which is no file; give a JSONL file of prompts and responses")
    for line in read_lines(path):
        if line.record is None:
            raise RecordError(f"{path}, line {line.number}: {line.error}")
        yield line.record


def _samples(record: Record, lengths: Sequence[int]) -> Iterator[Sample]:
    pieces = record.response.split(" ")
    for count in lengths:
        if count > len(pieces):
            return
        turns = [*record.messages, {"role": "assistant", "content": " ".join(pieces[:count])}][: None if count else -1]
        messages = [_message(record, turn) for turn in turns]
        yield Sample(input=messages, id=f"{record.id}-{count}", metadata={"words": count, "record": record.id})


def _message(record: Record, turn: dict[str, Any]) -> ChatMessage:
    if turn["role"] not in _ROLES:
        raise RecordError(f"record {record.id!r} has a turn of role {turn['role']!r}; use system, user and assistant")
    return _ROLES[turn["role"]](content=turn["content"])
