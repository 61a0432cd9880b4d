"""Say how far a judge agrees with labelled answers that it was not fitted on."""

from collections.abc import Sequence
from dataclasses import dataclass

from anydepth.conversations.dataset import Conversation, digest
from anydepth.evals import estimates
from anydepth.evals.figure import Figure
from anydepth.evals.judges.judge import Judge, Judged, Judgement, Tables

MIXED = "probe_validation"
"""The table with answers of both labels, from several sources."""

_ANSWERED = ("responses_xstest", "pairs_benign_validation", "pairs_deep_validation", "attacks_validation")
_HARMFUL = ("pairs_deep_validation", "attacks_validation")
_HARMLESS = ("pairs_benign_validation", "responses_xstest")
_NOT_ASKED = "ordinary answers to harmless requests; a judge of compliance is not to be asked about them"
_LOWER_BOUND = "harmless answers to harmful requests: most of them refuse, not all, so this is a lower bound"


@dataclass(frozen=True, slots=True)
class _Set:
    """Labelled answers of one kind, judged."""

    name: str
    rows: Sequence[Conversation]
    found: Sequence[Judgement]

    def said(self, asked: str) -> list[bool]:
        """Whether the judge says so of each answer; `asked` is `refused` or `harmful`."""
        return [bool(getattr(each, asked)) for each in self.found]


def agreement(judge: Judge, tables: Tables, *, limit: int | None = None) -> list[Figure]:
    """Judge the labelled validation tables and compare.

    `judge_agreement` is the share of a set's answers of which the judge says what the label says; the group has the
    `judge`, the `set`, what was `asked` (refused or harmful) and what is `true` of the set (yes or no).
    `judge_refusals_found` is the share of harmless answers to harmful requests that it takes for refusals,
    `judge_false_harm` that of answers to harmless requests that it takes for harm.
    `judge_auroc` is how well its score tells harmful from harmless answers to harmful requests.

    Args:
        judge: The judge; one that is fitted was fitted on another table.
        tables: Gives the named tables.
        limit: Judge this many answers of each set at most; a judge behind an endpoint costs money.
    """
    whole = {name: _judged(judge, name, tables(name), limit) for name in _ANSWERED}
    mixed = _by_source(judge, tables(MIXED), limit)
    figures = [_agrees(judge, each, "refused", "no") for each in whole.values()]
    figures += [_agrees(judge, harmful, "refused", "no") for harmful, _ in mixed]
    figures += [_share("judge_refusals_found", judge, each, each.said("refused"), _LOWER_BOUND) for _, each in mixed]
    if not judge.says_harm:
        return figures
    figures += [_agrees(judge, whole[name], "harmful", "yes") for name in _HARMFUL]
    ordinary = [whole[name] for name in _HARMLESS]
    figures += [_share("judge_false_harm", judge, each, each.said("harmful"), _NOT_ASKED) for each in ordinary]
    for harmful, harmless in mixed:
        figures += [_agrees(judge, harmful, "harmful", "yes"), _agrees(judge, harmless, "harmful", "no")]
        figures.append(_auroc(judge, harmful.name, [harmful], [harmless]))
    others = [harmless for _, harmless in mixed]
    figures += [_auroc(judge, f"{name}, against {MIXED}", [whole[name]], others) for name in _HARMFUL]
    return figures


def _judged(judge: Judge, name: str, rows: Sequence[Conversation], limit: int | None) -> _Set:
    chosen = sorted(rows, key=lambda row: digest(row.id))[:limit]
    items = [Judged(row.tags.get("goal") or row.prompt, row.response) for row in chosen]
    return _Set(name, chosen, judge.judge(items))


def _by_source(judge: Judge, rows: Sequence[Conversation], limit: int | None) -> list[tuple[_Set, _Set]]:
    """Harmful and harmless answers of each source that has both."""
    found = []
    for source in sorted({row.source for row in rows}):
        sides = [[row for row in rows if (row.source, row.label) == (source, label)] for label in ("harmful", "benign")]
        if all(sides):
            harmful, harmless = (_judged(judge, source, side, limit) for side in sides)
            found.append((harmful, harmless))
    return found


def _share(
    name: str, judge: Judge, judged: _Set, values: Sequence[bool], note: str | None = None, **group: str
) -> Figure:
    group = {"judge": judge.name, "set": judged.name, **group}
    return estimates.share(name, values, group, judge=judge.name, note=note)


def _agrees(judge: Judge, judged: _Set, asked: str, true: str) -> Figure:
    values = [each == (true == "yes") for each in judged.said(asked)]
    return _share("judge_agreement", judge, judged, values, asked=asked, true=true)


def _auroc(judge: Judge, name: str, harmful: Sequence[_Set], harmless: Sequence[_Set]) -> Figure:
    above, below = (
        [judgement.score for each in side for judgement in each.found if judgement.score is not None]
        for side in (harmful, harmless)
    )
    return estimates.auroc("judge_auroc", above, below, {"judge": judge.name, "set": name}, judge=judge.name)
