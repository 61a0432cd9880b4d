"""Read finished answers from JSONL files, and write what was found of them.

A record in is `{"id", "prompt" or "messages", "response"}`, a record out `{"id", "checks", "verdict", "text_digest",
"settings_digest"}`. A name that ends in `.gz` is gzip.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anydepth.errors import RecordError
from anydepth.fields import is_missing, messages_of, prompt_of, split_answer, text_of
from anydepth.jsonl import raw_lines, read_object
from anydepth.types import ScanResult, json_number

RecordId = str | int


@dataclass(frozen=True, slots=True)
class Record:
    """One finished answer to scan.

    Attributes:
        id: The id as it stands in the file.
        messages: The conversation that was answered.
        response: The answer.
        row: All columns of the record, those with nothing in them left out.
    """

    id: RecordId
    messages: list[dict[str, Any]]
    response: str
    row: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class InputLine:
    """One line of the input: a record, or what is wrong with it."""

    number: int
    record: Record | None
    error: str | None = None


def parse_record(raw: bytes) -> Record:
    """Read one record; RecordError says what is wrong with it."""
    row = {name: value for name, value in read_object(raw).items() if not is_missing(value)}
    key = row.get("id")
    if not isinstance(key, str | int) or isinstance(key, bool) or key == "":
        raise RecordError('"id" is missing or neither text nor a whole number')
    messages, answer = _conversation(row)
    response = text_of(row, "response")
    if answer and response:
        raise RecordError("column 'messages' ends with an answer and there is a response; keep one")
    if not answer and "response" not in row:
        raise RecordError('"response" is missing; give the answer to scan')
    return Record(key, messages, answer or response, row)


def _conversation(row: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """The messages that were answered, and the answer where the assistant's turn ends them."""
    if ("prompt" in row) == ("messages" in row):
        raise RecordError('needs either "prompt" or "messages"')
    if "prompt" in row:
        return [{"role": "user", "content": prompt_of(row, "prompt")}], ""
    messages, answer = split_answer(messages_of(row["messages"], "column 'messages'"))
    if not messages:
        raise RecordError("column 'messages' has no turn that the answer could belong to")
    return messages, answer


def read_lines(path: Path) -> Iterator[InputLine]:
    """Read a file line by line, once; a bad line or a repeated id is reported in its place, a blank one passed over.

    Ids are compared as text: `1` and `"1"` are one id.
    """
    seen: dict[str, int] = {}
    for number, raw in raw_lines(path):
        try:
            record = parse_record(raw)
            if (before := seen.setdefault(str(record.id), number)) != number:
                raise RecordError(f"id {record.id!r} was used on line {before} already")
        except RecordError as error:
            yield InputLine(number, None, str(error))
        else:
            yield InputLine(number, record)


def count_lines(path: Path) -> int:
    """Count the lines that `read_lines` will yield; not of a pipe, which can be read once only."""
    return sum(1 for _ in raw_lines(path))


def scan_record(key: RecordId, result: ScanResult, *, text: str, settings: str) -> dict[str, Any]:
    """Return the record out; a score that is not a number becomes null, with the reason beside it.

    Args:
        key: The record's id.
        result: What was found.
        text: Digest of prompt and answer.
        settings: Digest of model and guard.
    """
    checks = []
    for check in result.checks:
        record: dict[str, Any] = {"depth": check.depth, "score": json_number(check.score)}
        if record["score"] is None or check.error is not None:
            record["error"] = check.error or "the score is not a number"
        checks.append(record)
    verdict = result.verdict
    return {
        "id": key,
        "checks": checks,
        "verdict": {"halt": verdict.halt, "depth": verdict.depth, "score": json_number(verdict.score)},
        "text_digest": text,
        "settings_digest": settings,
    }
