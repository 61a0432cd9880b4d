"""What commands write: plain results on stdout, everything else on stderr."""

import codecs
import json
import math
import os
import sys
import time
import unicodedata
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from anydepth.files import writing
from anydepth.types import Answer, CheckResult, json_number

err = Console(stderr=True, highlight=False)
"""For errors, progress and summaries."""

HALTED = 3
"""Exit code of `generate --fail-on-halt` when the answer was halted."""


class Bars:
    """Bars on stderr, one for each thing that is done, with the time left; nothing where nobody looks.

    It is a `Progress`; the time of a bar runs from its first call on.
    """

    def __init__(self) -> None:
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        name, speed = TextColumn("[progress.description]{task.description}"), TextColumn("{task.fields[speed]}")
        self._shown = Progress(name, *columns, speed, console=err, disable=not err.is_terminal)
        self._begun: dict[str, tuple[TaskID, float]] = {}

    def __enter__(self) -> "Bars":
        self._shown.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._shown.stop()

    def __call__(self, what: str, done: int, total: int | None, tokens: int = 0, /) -> None:
        """Show how far it is; `total` is None where nobody can know it."""
        if what not in self._begun:
            self._begun[what] = self._shown.add_task(what, total=total, speed=""), time.monotonic()
        speed = f"{tokens / self.seconds(what):,.0f} tokens/s" if tokens else ""
        self._shown.update(self._begun[what][0], completed=done, total=total, speed=speed)

    def seconds(self, what: str) -> float:
        """How long it has taken so far."""
        return max(time.monotonic() - self._begun[what][1], 1e-9) if what in self._begun else 1e-9


def print_error(error: BaseException) -> None:
    """Print the message of `error` in red, on one line, on stderr."""
    message = " ".join(str(error).split()) or type(error).__name__
    err.print(Text(f"error: {message}", style="bold red"), soft_wrap=True)


def warn(message: str) -> None:
    """Print `message` in yellow on stderr."""
    err.print(Text(message, style="yellow"), soft_wrap=True)


def printable(text: str) -> str:
    """Return `text` without the control characters that could steer a terminal."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


def write(text: str) -> None:
    """Write text to stdout at once; control characters stay out of a terminal.

    Raises:
        ConfigError: Standard output takes no more: its disk is full, or it is closed.
    """
    with writing("standard output"):
        if sys.stdout is None:
            raise OSError("it is closed")
        try:
            sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
            sys.stdout.flush()
        except OSError:
            _drop_output()
            raise


def escape_unwritable() -> None:
    """Let characters that the encoding of stdout does not have be written as escapes, not end the command."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]


def flush_output() -> None:
    """Hand to the system what stdout still holds, as far as it is taken."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        _drop_output()


def _drop_output() -> None:
    """Send what stdout still holds nowhere: the interpreter would fail over it again when it ends."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _takes_unicode() -> bool:
    """Say whether stdout has an encoding with all characters: escapes of another one are not those of JSON."""
    try:
        return codecs.lookup(sys.stdout.encoding or "utf-8").name.startswith("utf")
    except (AttributeError, LookupError):
        return False


def write_json(record: Any, *, indent: int | None = None) -> None:
    """Write one JSON value and a newline to stdout."""
    write(json.dumps(record, ensure_ascii=not _takes_unicode(), allow_nan=False, indent=indent) + "\n")


def check_record(check: CheckResult) -> dict[str, Any]:
    """Return a check as JSON, with everything known about it."""
    record: dict[str, Any] = {
        "depth": check.depth,
        "score": json_number(check.score),
        "statistic": json_number(check.statistic),
    }
    if check.detail is not None:
        record["detail"] = check.detail
    if check.error is not None:
        record["error"] = check.error
    return record


def answer_record(answer: Answer) -> dict[str, Any]:
    """Return an Answer as one JSON object, with everything known about its verdict."""
    verdict = answer.verdict
    return {
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "halted": answer.halted,
        "leak": answer.leak,
        "verdict": {
            "halt": verdict.halt,
            "depth": verdict.depth,
            "score": json_number(verdict.score),
            "reason": verdict.reason,
            "errors": verdict.errors,
        },
        "checks": [check_record(check) for check in answer.checks],
        "windows": [asdict(window) for window in answer.windows],
        "token_ids": list(answer.token_ids),
        "prompt_tokens": answer.prompt_tokens,
        "prefill_tokens": answer.prefill_tokens,
        "generated_tokens": answer.generated_tokens,
        **({} if (stages := answer.stages) is None else {"stages": stages}),
    }


def check_number(answer: Answer) -> int | None:
    """Return which check decided, counted from 1."""
    return next((place for place, check in enumerate(answer.checks, 1) if check.depth == answer.verdict.depth), None)


def plural(count: int, noun: str) -> str:
    """Return `1 token`, `2 tokens`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def summary(answer: Answer) -> str:
    """Return checks and verdict of an answer as one line."""
    verdict = answer.verdict
    withheld = max(0, answer.generated_tokens - len(answer.token_ids))
    score = "no score" if math.isnan(verdict.score) else f"score {verdict.score:.2f}"
    checks = plural(len(answer.checks), "check")
    if answer.halted:
        why = (
            f"{score} reached the threshold" if verdict.reason == "policy" else "the check failed, the guard is closed"
        )
        if verdict.reason == "error":
            failed = next((check.error for check in answer.checks if check.error), None)
            why += f" ({failed})" if failed else ""
        return (
            f"HALTED at check {check_number(answer)} of {len(answer.checks)} (depth {verdict.depth}): {why}; "
            f"leak {plural(answer.leak, 'token')}, {withheld} withheld"
        )
    line = f"{checks}, highest {score} at depth {verdict.depth}; {plural(len(answer.token_ids), 'token')} released"
    if verdict.halt:
        line = f"would have halted at depth {verdict.depth} ({score}), release is monitor; {checks}"
    if verdict.errors:
        line += f"; {plural(verdict.errors, 'check')} FAILED and the guard is open"
    return line
