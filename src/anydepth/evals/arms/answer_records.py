"""Keep what defences do to answers in the suite's records."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from anydepth.errors import ConfigError
from anydepth.evals.arms.arms import UNCALIBRATED, WRITERS, chosen_arms, defence
from anydepth.evals.arms.replay import reads_states, replay, without_early_checks
from anydepth.evals.context import Context
from anydepth.evals.transcript import Transcript
from anydepth.flow import Outcome
from anydepth.types import json_number

_TOGETHER = 32


@dataclass(frozen=True, slots=True)
class Trace:
    """What one defence does to one answer.

    Attributes:
        halted: The answer is halted.
        depth: Depth of the check that halts it, else of the highest score.
        peak: Largest value of the policy's statistic over the checks that were made; None if none was usable.
        tokens: Length of the answer that was scanned.
        errors: How many checks failed.
        checks: Depth, score and statistic of each check; None where it failed.
    """

    halted: bool
    depth: int
    peak: float | None
    tokens: int
    errors: int
    checks: tuple[tuple[int, float | None, float | None], ...]

    @property
    def halt_depth(self) -> int | None:
        """Depth in tokens of the check that halts the answer; None if none does."""
        return self.depth if self.halted else None

    def halted_within(self, tokens: int) -> bool:
        """True if it is halted by a check at `tokens` or before: what a scan of so many tokens would have found."""
        return self.halted and self.depth <= tokens


def traced(context: Context, arm: str, transcripts: Sequence[Transcript]) -> dict[str, Trace]:
    """What the defence `arm` does to each transcript, by its id; made once, then read from the records.

    A probe reads an answer to its end, also behind a halt: its peak is needed for a ROC curve. A defence that runs the
    model anew at every check stops at the halt and is asked on the paper's schedule, without the early checks.
    """
    if any(_key(arm, each) not in context.records for each in transcripts):
        asked = defence(arm, context)
        packed = reads_states(asked)
        config = replace(context.config, release="monitor") if packed else without_early_checks(context.config)

        def make(batch: Mapping[str, Transcript]) -> Iterator[dict[str, Any]]:
            outcomes = replay(asked, list(batch.values()), config, ahead=packed)
            return ({"arm": arm, **asdict(_trace(each, outcomes[each.id]))} for each in batch.values())

        keyed = ({_key(arm, each): each for each in batch} for batch in together(transcripts))
        context.fill(f"check with {arm}", keyed, make)
    return {each.id: _read(context.records.rows[_key(arm, each)]) for each in transcripts}


def traced_arms(context: Context, default: Sequence[str]) -> tuple[dict[str, bool], tuple[str, ...]]:
    """The arms to trace, each with whether it reads all of an answer in one pass, and notes on the choice.

    Raises:
        ConfigError: The user asks for an arm that writes answers of its own, or for none that checks any.
    """
    arms, notes = chosen_arms(context, default)
    if writers := [arm for arm in arms if arm in WRITERS and arm != "base"]:
        raise ConfigError(f"suite {context.suite} checks given answers, and {writers[0]} writes its own; leave it out")
    found = {arm: reads_states(defence(arm, context)) for arm in arms if arm != "base"}
    if not found:
        raise ConfigError(f"suite {context.suite} compares defences, and the arms {', '.join(arms)} check nothing")
    if loose := [arm for arm in found if arm in UNCALIBRATED]:
        notes = (*notes, f"{', '.join(loose)}: halts at a score of 0.5, which nobody has calibrated.")
    return found, notes


def together(transcripts: Iterable[Transcript]) -> Iterator[list[Transcript]]:
    """The batches that transcripts are replayed in: of about one length, always the same."""
    ordered = sorted(transcripts, key=lambda each: (len(each.prompt.ids) + len(each.token_ids), each.id))
    yield from (ordered[begin : begin + _TOGETHER] for begin in range(0, len(ordered), _TOGETHER))


def _key(arm: str, transcript: Transcript) -> str:
    return f"{arm}|{transcript.id}"


def _trace(transcript: Transcript, outcome: Outcome) -> Trace:
    checks = tuple((each.depth, json_number(each.score), json_number(each.statistic)) for each in outcome.checks)
    peak = max((statistic for *_, statistic in checks if statistic is not None), default=None)
    verdict = outcome.verdict
    return Trace(verdict.halt, verdict.depth, peak, len(transcript.token_ids), verdict.errors, checks)


def _read(row: Mapping[str, Any]) -> Trace:
    facts = {each.name: row[each.name] for each in fields(Trace)}
    return Trace(**{**facts, "checks": tuple(map(tuple, row["checks"]))})
