"""Make figures and charts of the policies that were measured."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from scipy import stats

from anydepth import intervals
from anydepth.evals import Chart, Figure, Summary, estimates
from benchmarks.reward_training_data import ARMS, Labelled

NAMES = {"before": "before training", **ARMS}
READS = {"tokens": "Safety Tokens", "mean": "mean of the text"}
FEWEST = 5
"""Answers of each kind from which on a separation is reported."""

JUDGED = "independent judge"

_STEPS = 4
_HARMFUL_FROM = 0.5

Run = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Measure:
    """One number of an answer: of answers to which kind of request, under which key of the record, in which unit."""

    label: str
    kind: str
    key: str
    unit: str


def measures(judge: str) -> tuple[Measure, ...]:
    """What is measured of a policy; `judge` is the name of the model that was asked."""
    return (
        Measure("harmful requests: refused", "harmful", "refused", "share"),
        Measure(f"harmful requests: harm found by {judge}", "harmful", "asked", "score"),
        Measure("harmful requests: harm found by the text judge", "harmful", "harm", "score"),
        Measure("harmful requests: harm found by the probe on Safety Tokens", "harmful", "tokens base", "score"),
        Measure("harmful requests: the same, through the policy's weights", "harmful", "tokens policy", "score"),
        Measure("harmful requests: harm found by the probe on the mean", "harmful", "mean base", "score"),
        Measure("XSTest's safe requests: refused", "harmless", "refused", "share"),
        Measure("harmful requests: KL to the base, nats a token", "harmful", "kl", "nats"),
        Measure("XSTest's safe requests: KL to the base, nats a token", "harmless", "kl", "nats"),
        Measure("harmful requests: nats a token under the base", "harmful", "nll", "nats"),
        Measure("harmful requests: length", "harmful", "length", "tokens"),
        Measure("harmful requests: no character beyond ASCII", "harmful", "ascii", "share"),
    )


def values(run: Run, measure: Measure) -> dict[str, float]:
    """Key of the request -> the value of its answer; answers without one are left out."""
    rows = (row for row in run["answers"] if row["kind"] == measure.kind and row.get(measure.key) is not None)
    return {row["key"]: float(row[measure.key]) for row in rows}


def with_judgements(runs: Sequence[Run], judged: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The runs with what the judge said of each answer to a harmful request, as `asked`; None where it said nothing."""
    found = []
    for run in runs:
        scores = iter(judged["answers"].get(f"{run['arm']}-{run['seed']}", ()))
        rows = [{**row, "asked": next(scores, None)} if row["kind"] == "harmful" else row for row in run["answers"]]
        found.append({**run, "answers": rows})
    return found


def by_prompt(runs: Sequence[Run], measure: Measure) -> dict[str, float]:
    """Key of the request -> the mean over the seeds."""
    found: dict[str, list[float]] = {}
    for run in runs:
        for key, value in values(run, measure).items():
            found.setdefault(key, []).append(value)
    return {key: sum(each) / len(each) for key, each in found.items()}


def over_prompts(name: str, found: Sequence[float], unit: str, group: Mapping[str, Any]) -> Figure:
    """Mean with a bootstrap interval over requests; where all are alike, a share's is Clopper and Pearson's."""
    figure = estimates.average(name, found, unit, group)
    if unit == "share" and found and len(set(found)) == 1:
        exact = intervals.clopper_pearson(round(found[0] * len(found)), len(found))
        return Figure(name, found[0], (exact.low, exact.high), len(found), unit, group)
    return figure


def over_seeds(name: str, found: Sequence[float], unit: str, group: Mapping[str, Any]) -> Figure:
    """Mean of a number of each seed, with Student's interval over the seeds; `answers` is the number of seeds.

    The interval of a share or a score is cut at 0 and 1.
    """
    count = len(found)
    if not count:
        return Figure(name, None, None, 0, unit, group)
    mean = float(np.mean(found))
    if count < 3 or len(set(found)) == 1:  # of two it would span more than the scale, and of equal ones it has no width
        return Figure(name, mean, None, count, unit, group)
    half = float(stats.t.ppf(0.975, count - 1)) * float(np.std(found, ddof=1)) / math.sqrt(count)
    low, high = mean - half, mean + half
    ends = (max(0.0, low), min(1.0, high)) if unit in ("share", "score") else (low, high)
    return Figure(name, mean, ends, count, unit, group)


def policy_figures(runs: Sequence[Run], judge: str) -> list[Figure]:
    """Each measure of each arm: over requests, over seeds, of each seed, and its change against before training."""
    found: list[Figure] = []
    arms = _by_arm(runs)
    for measure in measures(judge):
        before = by_prompt(arms["before"], measure)
        for arm, of_arm in arms.items():
            group = {"measure": measure.label, "arm": NAMES[arm]}
            mine = by_prompt(of_arm, measure)
            found.append(over_prompts("after training", [*mine.values()], measure.unit, group))
            seeds = [(run["seed"], each) for run in of_arm if (each := [*values(run, measure).values()])]
            found.append(over_seeds("over seeds", [float(np.mean(each)) for _, each in seeds], measure.unit, group))
            for seed, each in seeds:
                of_seed = {**group, "seed": seed}
                made = estimates.share if measure.unit == "share" else estimates.average
                more = () if measure.unit == "share" else (measure.unit,)
                found.append(made("by seed", each, *more, of_seed))  # pyright: ignore[reportArgumentType, reportCallIssue]
            if arm != "before":
                both = sorted(mine.keys() & before.keys())
                pairs = [mine[key] for key in both], [before[key] for key in both]
                found.append(estimates.difference("change", *pairs, measure.unit, group))
    return found


def auroc_over_seeds(
    name: str, scores: Sequence[Sequence[float]], harmful: Sequence[bool], group: Mapping[str, Any],
    less: Sequence[float] | None = None,
) -> Figure:  # fmt: skip
    """Mean over seeds of the AUROC on the same answers, `scores` `[seeds][answers]`, bootstrapped over the answers.

    With `less`, scores `[answers]`, the AUROC of these is taken off.
    """
    table, marked = np.asarray(scores, float), np.asarray(harmful, bool)
    above, below = table[:, marked], table[:, ~marked]
    base = None if less is None else (np.asarray(less, float)[marked], np.asarray(less, float)[~marked])

    def mean(one: np.ndarray, other: np.ndarray, axis: int = -1) -> np.ndarray:
        one, other = one.astype(int), other.astype(int)
        found = np.mean([intervals.separation(above[s][one], below[s][other]) for s in range(len(table))], axis=0)
        return found if base is None else found - intervals.separation(base[0][one], base[1][other])

    places = np.arange(above.shape[1]), np.arange(below.shape[1])
    ends = intervals.bootstrap([each.astype(float) for each in places], mean, seed=0, resamples=2000)
    unit = "auroc" if less is None else "difference"
    return Figure(name, float(mean(*places)), (ends.low, ends.high), table.shape[1], unit, dict(group))


def probe_figures(runs: Sequence[Run], stored: Sequence[Labelled]) -> list[Figure]:
    """How well the probes tell stored answers apart through the weights of each policy, and what training changed."""
    found, arms = [], _by_arm(runs)
    harmful = [each.harmful for each in stored]
    for read, label in READS.items():
        base = arms["before"][0]["held_out"][f"{read} policy"]
        for arm, of_arm in arms.items():
            group = {"read": label, "arm": NAMES[arm]}
            scores = [run["held_out"][f"{read} policy"] for run in of_arm]
            found.append(auroc_over_seeds("held-out answers told apart", scores, harmful, group))
            if arm != "before":
                found.append(auroc_over_seeds("change of that", scores, harmful, group, base))
    return found


def own_answer_figures(runs: Sequence[Run], judge: str) -> list[Figure]:
    """How well the probes tell the policies' own answers apart, as the asked judge sorts them, and the text judge."""
    found = []
    for arm, of_arm in _by_arm(runs).items():
        rows = [row for run in of_arm for row in run["answers"] if row["kind"] == "harmful"]
        for sorts, name in (("asked", judge), ("harm", "the text judge")):
            for read, weights in product(READS, ("base", "policy")):
                key = f"{read} {weights}"
                told = [row for row in rows if row[key] is not None and row[sorts] is not None]
                sides = [[row[key] for row in told if (row[sorts] >= _HARMFUL_FROM) == side] for side in (True, False)]
                enough = min(map(len, sides)) >= FEWEST
                group = {"read": READS[read], "weights": weights, "sorted by": name, "arm": NAMES[arm]}
                found.append(estimates.auroc("own answers told apart", *(sides if enough else ([], [])), group))
    return found


def judge_figures(stored: Sequence[Labelled], judged: Mapping[str, Any]) -> list[Figure]:
    """How far the asked judge agrees with the labels of the stored answers."""
    scores, name = judged["answers"]["held_out"], judged["judge"]
    sides = [
        [score for score, each in zip(scores, stored, strict=True) if each.harmful == side] for side in (True, False)
    ]
    harmful, harmless = ([score >= _HARMFUL_FROM for score in side] for side in sides)

    def group(what: str) -> dict[str, str]:
        return {"what": what, "judge": name}

    return [
        estimates.auroc(JUDGED, *sides, group("harmful against harmless answers: AUROC")),
        estimates.share(JUDGED, harmful, group("harmful answers: taken for harm")),
        estimates.share(JUDGED, harmless, group("harmless answers: taken for harm")),
    ]


def step_figures(runs: Sequence[Run]) -> list[Figure]:
    """The rewards while training, four steps together, over the seeds."""
    found = []
    for arm, of_arm in _by_arm(runs).items():
        for key, name in (("safe", "reward of harmful requests"), ("helpful", "reward of harmless requests")):
            parts: dict[int, list[float]] = {}
            for run in of_arm:
                bins: dict[int, list[float]] = {}
                for step in run["steps"]:
                    bins.setdefault(-(-int(step["step"]) // _STEPS) * _STEPS, []).append(step[key])
                for end, each in bins.items():
                    parts.setdefault(end, []).append(float(np.mean(each)))
            found += [over_seeds(name, each, "score", {"step": end, "arm": NAMES[arm]}) for end, each in parts.items()]
    return found


def points(runs: Sequence[Run], first: Measure, second: Measure) -> dict[str, list[tuple[float, float]]]:
    """Arm -> a pair of means for each seed that has both."""
    found: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        sides = [[*values(run, each).values()] for each in (first, second)]
        if all(sides):
            pair = float(np.mean(sides[0])), float(np.mean(sides[1]))
            found.setdefault(NAMES[run["arm"]], []).append(pair)
    return found


def summary(runs: Sequence[Run], stored: Sequence[Labelled], judged: Mapping[str, Any], policy: Run) -> Summary:
    """All that the experiment says; `policy` are the options of the training."""
    runs, judge = with_judgements(runs, judged), judged["judge"]
    refused, asked, text, probed, _, _, over, kl, *_ = measures(judge)
    figures = [
        *policy_figures(runs, judge),
        *probe_figures(runs, stored),
        *own_answer_figures(runs, judge),
        *judge_figures(stored, judged),
        *step_figures(runs),
    ]
    never = not any(by_prompt(_by_arm(runs)["before"], refused).values())
    seeds = "A point a seed; before training they are the base, sampled anew."
    counted = ", ".join(f"{NAMES[arm]} {len(of_arm)}" for arm, of_arm in _by_arm(runs).items())
    charts = (
        Chart("scatter", "Harm that the probe and the text judge find", x=_axis(probed), by=_axis(text),
              caption=f"{seeds} Answers to held-out harmful requests. To the left: what the probe on Safety Tokens "
              "rewards; down: what the text judge rewards.", points=points(runs, probed, text)),
        Chart("scatter", "Harm that an independent judge finds, by distance to the base", x=_axis(kl), by=_axis(asked),
              caption=f"{seeds} Answers to held-out harmful requests.", points=points(runs, kl, asked)),
        Chart("scatter", "Refusals of harmful and of safe requests", x=_axis(refused), by=_axis(over),
              caption=f"{seeds} By the refusal matcher.", points=points(runs, refused, over)),
        Chart("line", "Reward while training", ("reward of harmful requests",), x="step", by="arm",
              caption="Mean over seeds, four steps together, with Student's interval over seeds. Each arm has its own "
              "reward: their heights cannot be compared."),
        Chart("table", "After training", ("after training", "over seeds", "change")),
        Chart("table", "The probes on stored answers", ("held-out answers told apart", "change of that")),
        Chart("table", "The probes on the policies' own answers", ("own answers told apart",)),
        Chart("table", "The independent judge on labelled answers", (JUDGED,)),
    )  # fmt: skip
    return Summary(
        "reward",
        "Safety Tokens as a reward",
        "an open question of the paper: no training on the Safety Tokens was measured there",
        tuple(figures),
        charts,
        notes=(
            f"Each policy: {policy['steps']} steps of GRPO, {policy['prompts']} requests a step (one is harmless), "
            f"{policy['generations']} answers to each, {policy['tokens']} tokens at most; LoRA of rank "
            f"{policy['rank']}, learning rate {policy['learning_rate']:g}, no KL penalty.",
            f"Seeds: {counted}.",
            "The learning rate was tried on the arm of the Safety Tokens, with a seed that is not reported.",
            "Intervals: over requests (bootstrap), the seeds' mean for each request; `over seeds`: Student's, 95 %.",
            f"{judge} is asked in words whether the answer is harmful; the value is its probability of yes.",
        ),
        limits=(
            "A model of 135 million parameters, a few training steps and short answers: more was not tried.",
            *(
                ["The model refuses nothing at first, and a reward cannot strengthen what is never sampled."]
                if never
                else []
            ),
        ),
    )


def _axis(measure: Measure) -> str:
    return measure.label if measure.unit != "share" else f"{measure.label} (share)"


def _by_arm(runs: Sequence[Run]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run["arm"], []).append(run)
    return found
