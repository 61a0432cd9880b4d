"""Read harmless answers: which records of a file can be used, and what the guard's checks make of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rich.progress import track
from rich.text import Text

from anydepth.cli.output import err, plural, warn
from anydepth.conversations.dataset import digest
from anydepth.conversations.splits import Text as Words
from anydepth.conversations.splits import copies
from anydepth.detectors import Cascade, Detector
from anydepth.errors import AnydepthError, RecordError
from anydepth.fields import LABELS, label_of, text_of
from anydepth.intervals import percent
from anydepth.probes.fitting.band import CascadeTrail, cascade_trail
from anydepth.probes.fitting.calibrate import Trail
from anydepth.probes.recipe.pairs import one_a_prompt
from anydepth.records import InputLine, Record, read_lines
from anydepth.scan import scores_at
from anydepth.types import Score

if TYPE_CHECKING:
    from anydepth.guard import Guard

T = TypeVar("T")

MOST_FAILED = 0.1
"""Share of the records that may fail: the rest would no longer be your traffic."""


@dataclass(frozen=True)
class TrafficAnswer:
    """A record of a file, and where it stands."""

    file: str
    place: str
    record: Record
    source: str

    @cached_property
    def text(self) -> Words:
        """What to compare it by."""
        return Words.of(self.record.messages, self.record.response)

    @property
    def prompt_keys(self) -> tuple[str, str]:
        """Keys of its own prompt and of the one whose request is read, as `Conversation` has them.

        Columns `prompt_key` and `host_key` say them; without them both are of the last message before the answer.
        """
        own = text_of(self.record.row, "prompt_key") or digest(self.text.turns.rpartition("\n")[2])
        return own, text_of(self.record.row, "host_key") or own


class TrafficReading:
    """The checks of the answers so far, and what could not be read."""

    def __init__(self) -> None:
        self.read: list[tuple[TrafficAnswer, Trail]] = []
        self.failed = 0
        self.first_failure = ""
        self.notes: set[str] = set()

    @property
    def trails(self) -> list[Trail]:
        """The checks of each answer that was read."""
        return [trail for _, trail in self.read]

    def usable(self, files: Iterable[Path]) -> list[TrafficAnswer]:
        """The answers that can be scanned; what is wrong with the others needs no model to be seen."""
        found = []
        for path in files:
            for line in read_lines(path):
                place = f"{path.name} line {line.number}"
                try:
                    found.append(_answer(path.name, place, line))
                except RecordError as error:
                    self._fail(place, error)
        return found

    def scan(self, guard: "Guard", answers: Sequence[TrafficAnswer]) -> None:
        """Read each answer at all its depths, or report what is wrong with it; its text is never shown."""
        for answer in _shown("scan", answers):
            try:
                self.read.append((answer, self._trail(guard, answer)))
            except Exception as error:  # whatever one record does, a long run goes on
                self._fail(answer.place, error)
        self.refuse_if_too_many_failed()

    def look_twice(
        self, guard: "Guard", cascade: Cascade, read: Sequence[tuple[TrafficAnswer, Trail]]
    ) -> list[CascadeTrail]:
        """Score answers that were read by the whole cascade; one at which its second detector fails counts no more."""
        found = []
        for answer, trail in _shown("cascade", read):
            try:
                found.append(cascade_trail(cascade, trail, partial(_scores, guard, cascade.second, answer)))
            except Exception as error:
                self.read.remove((answer, trail))
                self._fail(answer.place, error)
        self.refuse_if_too_many_failed()
        return found

    def refuse_if_too_many_failed(self, to_come: int = 0) -> None:
        """Raise RecordError if what is left, with the answers still `to_come`, does not stand for the input."""
        total = self.failed + len(self.read) + to_come
        if total == 0:
            raise RecordError("the input has no records; give harmless answers to calibrate on")
        if self.failed > MOST_FAILED * total:
            raise RecordError(
                f"{self.failed} of {plural(total, 'record')} failed, more than {percent(MOST_FAILED)}, and nothing was "
                f"written; the first: {self.first_failure}"
            )

    def _fail(self, place: str, error: Exception) -> None:
        message = f"{place}: {' '.join(str(error).split()) or type(error).__name__}"
        self.failed += 1
        self.first_failure = self.first_failure or message
        err.print(Text(message, style="red"), soft_wrap=True)

    def _trail(self, guard: "Guard", answer: TrafficAnswer) -> Trail:
        record = answer.record
        try:
            result = guard.scan(record.messages, record.response)
        except AnydepthError as error:
            raise RecordError(f"id {record.id!r}: {error}") from error
        for note in set(result.notes) - self.notes:
            self.notes.add(note)
            warn(f"note: {note}")
        for check in result.checks:
            if check.error is not None:
                raise RecordError(f"id {record.id!r}: the check at depth {check.depth} failed: {check.error}")
        depths, scores = zip(*((check.depth, check.score) for check in result.checks), strict=True)
        return Trail(f"{answer.file}: {record.id}", answer.source, depths, scores)


def once(answers: Sequence[TrafficAnswer]) -> list[TrafficAnswer]:
    """The answers without copies of earlier ones: as evidence, a copy is worth nothing."""
    found = copies([answer.text for answer in answers])
    return [answer for place, answer in enumerate(answers) if place not in found]


def one_each_prompt(answers: Sequence[TrafficAnswer]) -> list[TrafficAnswer]:
    """The answers that share no prompt, in their order: a guarantee takes its answers for independent draws."""
    prompts, hosts = zip(*(answer.prompt_keys for answer in answers), strict=True) if answers else ((), ())
    mask = one_a_prompt([answer.text.key for answer in answers], prompts, hosts)
    return [answer for answer, kept in zip(answers, mask, strict=True) if kept]


COPIES = (
    "record",
    "are copies of others (the same text but for case, space and punctuation, or nearly so); each counts once",
)
SHARED_PROMPTS = (
    "answer",
    "share a prompt with others; a guarantee holds for independent answers, so one a prompt counts",
)


def left_out_note(before: Sequence[TrafficAnswer], after: Sequence[TrafficAnswer], why: tuple[str, str]) -> str:
    """How many answers do not count, as one sentence; empty if all do.

    Args:
        before: The answers.
        after: Those that count.
        why: What one of `before` is called, and what is said of the others: `COPIES` or `SHARED_PROMPTS`.
    """
    if len(before) == len(after):
        return ""
    thing, reason = why
    return f"{len(before) - len(after)} of {plural(len(before), thing)} {reason}, which leaves {len(after)}"


def _shown(what: str, each: Sequence[T]) -> Iterable[T]:
    return track(each, description=what, console=err, transient=True, disable=not err.is_terminal)


def _scores(
    guard: "Guard", detector: Detector, answer: TrafficAnswer, depths: Sequence[int]
) -> list[Score | Exception]:
    prompt = guard.template.prompt(answer.record.messages, prefill=answer.record.response)
    return scores_at(guard.backend, detector, prompt, depths)


def _answer(file: str, place: str, line: InputLine) -> TrafficAnswer:
    """The harmless answer of a line; RecordError says what is wrong with any other."""
    record = line.record
    if record is None:
        raise RecordError(str(line.error))
    if (label := label_of(record.row, "label", LABELS, None)) == "harmful":
        raise RecordError(f"id {record.id!r} is labelled {label!r}; give harmless answers only")
    return TrafficAnswer(file, place, record, text_of(record.row, "source") or file)
