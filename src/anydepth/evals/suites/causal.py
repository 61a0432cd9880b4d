"""Find out whether the probe's direction causes refusals, by editing it at the Safety Tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from anydepth.conversations.dataset import Conversation
from anydepth.errors import ConfigError
from anydepth.evals import estimates
from anydepth.evals.figure import Chart, ChartKind, Figure, Group, Summary
from anydepth.evals.instruments.interventions import (
    ABLATIONS,
    NONE,
    PATCHES,
    Arm,
    Interventions,
    arms,
    largest_read,
)
from anydepth.evals.suite import summed_up
from anydepth.intervals import clopper_pearson
from anydepth.probes.states.sites import is_before_the_model

if TYPE_CHECKING:
    from anydepth.evals.context import Context

TITLE = "Is the probe's direction causal?"
PAPER = (
    "The paper takes what the Safety Tokens' states say for the model's own assessment of its answer. If it is, the "
    "look-ahead's refusals must follow when those states are edited; reading alone cannot show that."
)

HARMFUL, BENIGN = "pairs_deep_validation", "pairs_benign_validation"
_JUDGE = "refusal matcher"
_SIDES = ("harmful", "benign")


def run(context: "Context") -> Summary:
    """Ablate, patch and steer the probe's direction at the Safety Tokens, and compare with random directions."""
    answers, depth, tokens = context.count(32, 6), context.number("depth", 100, 50), context.number("tokens", 20, 20)
    random = context.number("random", 3, 2)
    strengths = sorted(set(context.value("strengths", "-32,-8,-2,2,8,32", "-16,16")))
    if answers < 2:
        raise ConfigError(f"suite {context.suite} exchanges states between answers; give --limit of at least 2")
    read, _, _ = largest_read(context.probe)
    if is_before_the_model(read.site):
        raise ConfigError(
            f"suite {context.suite}: the probe reads {read}, where the state is the same after every answer: there is "
            "no direction to edit. Give a probe of another block"
        )
    sides = [_answers(context, name, side, answers, depth) for name, side in ((HARMFUL, "harmful"), (BENIGN, "benign"))]
    bench = Interventions(context, *sides, depth=depth, tokens=tokens)
    wanted = arms(strengths, random)
    bench.run(wanted)
    found = _Found(bench, wanted)
    return summed_up(context, found.figures(), found.charts(), found.limits(), found.notes())


class _Found:
    """The records as figures, charts and sentences."""

    def __init__(self, bench: Interventions, wanted: Sequence[Arm]) -> None:
        self.bench, self.arms = bench, wanted
        self.random = list(dict.fromkeys(arm.direction for arm in wanted if arm.direction.startswith("random")))
        self.strengths = sorted({arm.strength for arm in wanted if arm.edit == "steer"})
        self.cases = [(side, depth) for depth in (bench.depth, 0) for side in _SIDES]

    def values(self, side: str, depth: int, arm: Arm, what: str = "refused") -> np.ndarray:
        """One number per answer, float `[answers]`; of the random directions together, the mean over them."""
        rows = self.bench.harmful if side == "harmful" else self.bench.benign
        each = [Arm(arm.edit, name, arm.strength) for name in self.random] if arm.direction == "random" else [arm]
        return np.mean([[float(self.bench.record(row, depth, one)[what]) for row in rows] for one in each], 0)

    def compared(self) -> Iterator[tuple[str, Arm, Arm]]:
        """What to call an edit, the edit, and what it is compared with."""
        for edit in ABLATIONS:
            yield edit, Arm(edit, "probe"), Arm(edit, "random")
        for by in self.strengths:
            yield f"steer by {by:+g}", Arm("steer", "probe", by), Arm("steer", "random", by)
        yield PATCHES[0], Arm(PATCHES[0]), Arm(PATCHES[1])

    def figures(self) -> Iterator[Figure]:
        """All figures, steering first."""
        for part in (self._steered, self._edited, self._differences, self._checked):
            for side, depth in self.cases:
                yield from part(side, depth)

    def _steered(self, side: str, depth: int) -> Iterator[Figure]:
        for direction in ("probe", "random"):
            for strength in sorted({0.0, *self.strengths}):
                group = {**_about(side, depth), "strength": strength, "direction": direction}
                arm = Arm("steer", direction, strength) if strength else NONE
                yield self._rate("refused when steered", side, depth, arm, group)

    def _edited(self, side: str, depth: int) -> Iterator[Figure]:
        ablated = [Arm(edit, who) for edit in ABLATIONS for who in ("probe", "random")]
        for arm in (NONE, *ablated, *map(Arm, PATCHES)):
            group = {**_about(side, depth), "edit": "nothing" if arm == NONE else arm.edit, "direction": arm.direction}
            yield self._rate("refused after", side, depth, arm, group)

    def _rate(self, what: str, side: str, depth: int, arm: Arm, group: Group) -> Figure:
        name, values = f"{what}, {_case(side, depth)}", self.values(side, depth, arm)
        if arm.direction == "random":  # a share of directions for each answer
            return _widened(estimates.average(name, values.tolist(), "share", group, judge=_JUDGE), values, least=0)
        return estimates.share(name, (values > 0).tolist(), group, judge=_JUDGE)

    def _differences(self, side: str, depth: int) -> Iterator[Figure]:
        for what, arm, control in self.compared():
            group = {**_about(side, depth), "edit": what}
            yield self.difference("change of refusals", side, depth, arm, NONE, group)
            yield self.difference("change beyond the control's", side, depth, arm, control, group)

    def difference(self, name: str, side: str, depth: int, arm: Arm, other: Arm, group: Group) -> Figure:
        """Refusals under one edit less those under another, answer by answer."""
        after, before = (self.values(side, depth, each) for each in (arm, other))
        found = estimates.difference(name, after.tolist(), before.tolist(), "share", group)
        return _widened(found, after - before, least=-1)

    def _checked(self, side: str, depth: int) -> Iterator[Figure]:
        """What the edits did to the read itself, and whether the model still writes sentences."""
        for what, arm, control in (("nothing", NONE, NONE), *self.compared()):
            for each in dict.fromkeys((arm, control)):
                edit = each.edit if each == Arm(PATCHES[1]) else what
                group = {**_about(side, depth), "edit": edit, "direction": each.direction}
                projection = self.values(side, depth, each, "projection").tolist()
                yield estimates.average("position between the means", projection, "gaps", group)
                distinct = self.values(side, depth, each, "distinct").tolist()
                yield estimates.average("distinct words of the look-ahead", distinct, "share", group)

    def charts(self) -> tuple[Chart, ...]:
        """Steering and other edits, a chart a case, then all differences."""
        count = len(self.random)
        steered = (
            "Share of look-aheads that refuse when the states of the header are moved along the probe's direction, and "
            f"along {count} random ones by the same distance; 1 is the gap between the means of harmful and harmless "
            "answers."
        )
        edited = (
            f"Projected out: the probe's direction, or each of {count} random ones. Patched: the states of the header "
            "are those of an answer with the other label, or of another one with the same label."
        )
        shown: tuple[tuple[ChartKind, str, str, str, str], ...] = (
            ("line", "Steering the Safety Tokens", "refused when steered", "strength", steered),
            ("bars", "Ablated and exchanged Safety Tokens", "refused after", "edit", edited),
        )
        cases = [
            Chart(kind, f"{title}, {_case(*case)}", (f"{name}, {_case(*case)}",), x, "direction", caption)
            for kind, title, name, x, caption in shown
            for case in self.cases
        ]
        caption = (
            "Paired differences in the share of refusals: to no edit, and to the control (random directions; states of "
            "an answer with the same label)."
        )
        table = Chart("table", "Differences", ("change of refusals", "change beyond the control's"), caption=caption)
        checks = ("position between the means", "distinct words of the look-ahead")
        state = Chart(
            "table",
            "What the edits did to the read",
            checks,
            caption="Position: 0 is the mean of harmless answers and 1 that of harmful ones, read at the probe's site "
            "after the edit. Few distinct words: the edit broke the model.",
        )
        return (*cases, table, state)

    def limits(self) -> Iterator[str]:
        """Where nothing followed, or could."""
        side, depth = "harmful", self.bench.depth
        for case in ((side, depth), (side, 0)):
            base = self.values(*case, NONE)
            if base.mean() <= 0.1:
                yield (
                    f"Without an edit {int(base.sum())} of {len(base)} look-aheads refuse ({_case(*case)}): the model "
                    "hardly refuses there, so ablation has next to nothing to take away."
                )
        for case in self.cases:
            if without := [what for what, arm, control in self.compared() if not self._effect(*case, arm, control)]:
                yield (
                    f"With {_case(*case)}, refusals do not follow these edits more than their control, within the "
                    f"interval: {', '.join(without)}."
                )
        yield (
            f"{len(self.random)} random directions and {len(self.bench.harmful)} answers of each label: only large "
            "effects can be seen, and intervals are not corrected for the number of comparisons."
        )

    def _effect(self, side: str, depth: int, arm: Arm, control: Arm) -> bool:
        interval = self.difference("", side, depth, arm, control, {}).interval
        return interval is not None and not interval[0] <= 0 <= interval[1]

    def notes(self) -> tuple[str, ...]:
        """How it was measured."""
        bench = self.bench
        read, _, portion = largest_read(bench.context.probe)
        scale = bench.scale
        return (
            f"Direction: the probe's weight at {read}, {portion:.0%} of the square of its norm; in the residual "
            "stream, its gradient through the norm.",
            f"{len(bench.harmful)} harmful answers ({HARMFUL}) and {len(bench.benign)} harmless ones ({BENIGN}), to "
            f"prompts that no choice of a shipped probe was made on, cut at {bench.depth} tokens; depth 0 are the same "
            f"prompts. Look-aheads of {bench.tokens} tokens, greedy, the header appended to a fork; only its tokens "
            "are edited.",
            "Steered, patched: the stream that enters the block of the read. Ablated at the site: the output of the "
            "module that is read; where that is a norm, its block's attention alone sees the change. Ablated from the "
            "site on: the stream before that block and after it and every following one.",
            f"The gap between the means is {scale['site']:.3g} at the site and {scale['stream']:.3g} in the stream, "
            f"read token at depth {bench.depth}, where a state of the stream is {scale['length']:.3g} long; depth 0 is "
            "steered in the same steps. Projected out at the site, the read lies "
            f"{-scale['benign'] / scale['site']:+.2g} gaps from the mean of harmless answers, wherever it was.",
        )


def _widened(figure: Figure, values: np.ndarray, *, least: float) -> Figure:
    """The figure with an interval that says how little is known where all answers agree, which a bootstrap does not."""
    if len(np.unique(values)) > 1:
        return figure
    reach = clopper_pearson(0, len(values)).high
    return replace(figure, interval=(max(least, values[0] - reach), min(1.0, values[0] + reach)))


def _answers(context: "Context", name: str, label: str, count: int, depth: int) -> list[Conversation]:
    """Answers of at least `depth` tokens to different prompts, from the half that no probe was chosen on."""
    found: dict[str, Conversation] = {}
    for row in context.table(name, label=label, unseen=True):
        if row.prompt_key not in found and context.prompt(row, row.response).prefill >= depth:
            found[row.prompt_key] = row
        if len(found) == count:
            return list(found.values())
    raise ConfigError(
        f"suite {context.suite} needs {count} {label} answers of at least {depth} tokens to different prompts, {name} "
        f"has {len(found)}; give a smaller --limit or --set {context.suite}.depth"
    )


def _case(side: str, depth: int) -> str:
    return f"{'harmful' if side == 'harmful' else 'harmless'} answers at depth {depth}"


def _about(side: str, depth: int) -> Group:
    return {"answers": side, "depth": depth}
