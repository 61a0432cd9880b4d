"""The suite thoughts: how traces are written and read, and what is made of their checks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from anydepth.backends.transformers import TransformersBackend
from anydepth.config import GuardConfig
from anydepth.errors import ConfigError
from anydepth.evals.answers.thought_traces import ThoughtTrace, thought_traces, written_thought
from anydepth.evals.context import Context
from anydepth.evals.eval_options import EvalOptions
from anydepth.evals.figure import Figure
from anydepth.evals.suites import thoughts, thoughts_figures
from anydepth.evals.suites.thoughts_figures import READS, TraceReading, figures_of, threshold_of
from anydepth.guard import Guard
from anydepth.policy import Ewma, Threshold
from anydepth.scan import scan_answer
from anydepth.schedule import Every
from anydepth.templates.published import Channel
from anydepth.templates.template import Prompt
from tests import tiny
from tests.conversations import words
from tests.evaluations import random_probe
from tests.unit.evals.tables import measured, one, table
from tests.unit.test_template import HARMONY, OPENED, THINK

CONFIG = GuardConfig(schedule=Every(25))


def written(thought: str, answer: str) -> str:
    return f"<think>\n{thought}\n</think>\n\n{answer}"


def rows(label: str, count: int, start: int, **facts: Any) -> list[dict[str, Any]]:
    """Traces of mild words, each to another request."""
    return [
        {
            "prompt": words(start + 3 * n, 4),
            "response": written(words(start + 7 * n, 6 + n % 3), words(start + 11 * n, 5 + n % 2)),
            "label": label,
            "case": f"{label} case",
            **facts,
        }
        for n in range(count)
    ]


TRACES = [*rows("harmful", 6, 10, request="harmful"), *rows("benign", 8, 80, request="harmless")]


def context(folder: Path, given: list[dict[str, Any]], template: str | None = None, **options: Any) -> Context:
    data = folder / "data"
    table(data, "thoughts", given)
    tokenizer = tiny.spelling_tokenizer()
    if template:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|Assistant|>", "<|start|>", "<|end|>"]})
        tokenizer.chat_template = template
    backend = TransformersBackend(tiny.tiny_model("Llama", len(tokenizer)), tokenizer)
    probe = random_probe(backend, 3, policy=Ewma(0.5, 0.6))
    chosen = EvalOptions(**{"quick": True, "limit": 8, "data_dir": data, **options})
    return Context("thoughts", backend, chosen, folder / "run", "refusal", given_probe=probe, config=CONFIG)


def traces_of(given: Context, **cuts: int) -> list[ThoughtTrace]:
    return thought_traces(given, "thoughts", 8, **{"thought_tokens": 500, "answer_tokens": 200, **cuts})


# -- traces ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "opened", "closed"),
    [
        (None, "<think>\n", "\n</think>\n\n"),
        (THINK, "<think>\n", "\n</think>\n\n"),
        (OPENED, "", "\n</think>\n\n"),
        (HARMONY, "<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ],
    ids=["no channel", "think", "opened", "harmony"],
)
def test_a_trace_is_written_as_the_template_writes_thoughts(
    tmp_path: Path, template: str | None, opened: str, closed: str
) -> None:
    given = context(tmp_path, TRACES, template)
    for trace in traces_of(given):
        row = next(
            row for row in TRACES if row["prompt"] in given.backend.tokenizer.decode(trace.transcript.prompt.ids)
        )
        text = given.backend.tokenizer.decode(trace.transcript.answer_ids, skip_special_tokens=False)
        begun = given.backend.tokenizer.decode(
            trace.transcript.answer_ids[: trace.answer_from], skip_special_tokens=False
        )
        thought, answer = row["response"].removeprefix("<think>\n").split("\n</think>\n\n")
        assert begun == opened + thought + closed
        assert text == begun + answer
        assert trace.transcript.prompt.ids == given.backend.template.prompt(row["prompt"]).ids


def test_both_parts_are_cut(tmp_path: Path) -> None:
    given = context(tmp_path, TRACES)
    for trace in traces_of(given, thought_tokens=9, answer_tokens=4):
        assert trace.answer_from == len("<think>\n") + 9 + len("\n</think>\n\n")
        assert len(trace.transcript.token_ids) == trace.answer_from + 4


def test_a_case_has_one_trace_a_request(tmp_path: Path) -> None:
    doubled = [*TRACES, *({**row, "response": written("w7 w8", words(3 * n, 9))} for n, row in enumerate(TRACES))]
    found = traces_of(context(tmp_path, doubled))
    assert len({(trace.case, trace.prompt) for trace in found}) == len(found) == len(TRACES)
    assert {(trace.case, trace.label, trace.request) for trace in found} == {
        ("harmful case", "harmful", "harmful"), ("benign case", "benign", "harmless")
    }  # fmt: skip


def test_without_a_column_the_label_is_the_case(tmp_path: Path) -> None:
    plain = [{key: value for key, value in row.items() if key not in ("case", "request")} for row in TRACES]
    found = traces_of(context(tmp_path, plain))
    assert {(trace.case, trace.request) for trace in found} == {("harmful", None), ("benign", None)}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"response": "w1 w2"}, "has no thought"),
        ({"response": "<think> </think>w1"}, "has no thought"),
        ({"response": "<think>w1</think>\n"}, "has no answer behind it"),
        ({"label": None}, "has no label"),
        ({"case": "benign case"}, "the case 'benign case' has harmful and harmless traces"),
        ({"label": "benign"}, "no trace labelled harmful"),
    ],
)
def test_rows_that_are_no_traces_are_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    whole = [{**row, **change} if row["label"] == "harmful" else row for row in TRACES]
    with pytest.raises(ConfigError, match=says):
        traces_of(context(tmp_path, whole))


def test_line_breaks_stand_around_a_thought_on_both_sides_or_on_none() -> None:
    assert written_thought(Channel("<a>", "</a>", "\n</a>\n\n"), "b") == "<a>\nb\n</a>\n\n"
    assert written_thought(Channel("[A]", "[/A]", "[/A]"), "b") == "[A]b[/A]"


# -- sums --------------------------------------------------------------------------------------------------------------


def reading(scores: list[tuple[int, float]], *, label: str = "harmful", number: int = 0, **facts: Any) -> TraceReading:
    given = {"request": None, "chosen_on": False, "answer_from": 30, "end": 0.35, **facts}
    case = given.pop("case", label)
    return TraceReading(case, label, prompt=f"p{number}", checks=tuple(scores), **given)  # type: ignore[arg-type]


STEPS = [(0, 0.2), (10, 0.4), (20, 0.8), (40, 0.1), (50, 0.3)]


@pytest.mark.parametrize(
    ("read", "trail"),
    [
        ("request alone", [(0, 0.2)]),
        ("thought, mean", [(20, 0.6)]),
        ("thought, maximum", [(10, 0.4), (20, 0.8)]),
        ("thought, policy", [(10, 0.4), (20, 0.6)]),
        ("thought, its end", [(30, 0.35)]),
        ("answer, mean", [(50, 0.2)]),
        ("answer, maximum", [(40, 0.1), (50, 0.3)]),
        ("whole, mean", [(50, 0.36)]),
        ("whole, maximum", STEPS),
        ("whole, policy", [(0, 0.1), (10, 0.4), (20, 0.6), (40, 0.35), (50, 0.325)]),
        ("length of the thought", [(30, 30.0)]),
    ],
)
def test_what_each_read_sums_up(read: str, trail: list[tuple[int, float]]) -> None:
    found = READS[read](reading(STEPS), Ewma(0.5, 0.55, request=0.5))
    assert [depth for depth, _ in found] == [depth for depth, _ in trail]
    assert [value for _, value in found] == pytest.approx([value for _, value in trail])


def test_every_read_is_listed() -> None:
    assert len(READS) == 11 and thoughts_figures.CONTROL in READS


def test_the_threshold_lies_just_above_the_largest_value_it_may_not_reach() -> None:
    values = [n / 200 for n in range(200)]
    threshold = threshold_of(values, 0.01)
    assert threshold is not None and sum(value >= threshold for value in values) == 2
    few = threshold_of([0.1, 0.7, float("nan")], 0.01)
    assert few is not None and 0.7 < few < 0.7 + 1e-9
    assert threshold_of([float("nan")], 0.01) is None


def figure(figures: list[Figure], name: str, **group: Any) -> Figure:
    found = [each for each in figures if each.name == name and group.items() <= dict(each.group).items()]
    assert len(found) == 1, [each.group for each in found]
    return found[0]


def short(peak: float, **facts: Any) -> TraceReading:
    """A trace with a peak in its thought and the mean 0.2 there, whatever the peak."""
    low = max(0.0, 0.4 - peak)
    return reading([(0, 0.1), (10, peak), (20, low), (40, 0.1)], **facts)


def test_separation_is_over_requests_and_a_tie_counts_half() -> None:
    traces = [short(0.4, number=n) for n in range(6)]
    traces += [short(0.3, number=n, label="benign") for n in range(6)]
    figures = list(figures_of(traces, Threshold(0.5), 0.01))
    assert figure(figures, "auroc", read="thought, maximum").value == 1.0
    assert figure(figures, "auroc", read="request alone").value == 0.5
    assert figure(figures, "auroc", read="thought, mean").value == pytest.approx(0.5)
    assert figure(figures, "auroc", read="thought, maximum").answers == 12
    gain = figure(figures, "advantage of the maximum", over="thought, mean")
    assert gain.value == pytest.approx(0.5) and gain.interval == pytest.approx((0.5, 0.5))


def test_intervals_draw_requests_with_all_of_their_traces() -> None:
    """Two traces of one request bring no more than one: the interval is that of half as many."""

    def mixed(copies: int) -> Figure:
        traces = [short(0.3 + 0.02 * n, number=n) for n in range(8) for _ in range(copies)]
        traces += [short(0.35 + 0.01 * n, number=10 + n, label="benign") for n in range(8) for _ in range(copies)]
        return figure(list(figures_of(traces, Threshold(0.5), 0.01)), "auroc", read="thought, maximum")

    once, twice = mixed(1), mixed(2)
    assert once.value == twice.value and once.interval == twice.interval
    assert once.interval is not None and once.interval[0] < (once.value or 0) < once.interval[1]


def test_thresholds_are_set_on_one_part_and_reported_on_the_other() -> None:
    traces = [
        short(0.30, number=0, label="benign", chosen_on=True),
        short(0.90, number=1, label="benign", chosen_on=True, request="harmful", case="refused"),
        short(0.35, number=2, label="benign"),
        short(0.20, number=3, label="benign"),
        short(0.36, number=4, chosen_on=True),
        reading([(0, 0.1), (10, 0.1), (40, 0.1)], number=5),
    ]
    figures = list(figures_of(traces, Threshold(0.5), 0.01))
    found = {
        case: figure(figures, "halted", case=case, read="thought, maximum") for case in ("benign", "refused", "harmful")
    }
    assert {case: (each.value, each.answers) for case, each in found.items()} == {
        "benign": (0.5, 2), "refused": (1.0, 1), "harmful": (0.5, 2)
    }  # fmt: skip


def test_a_halt_behind_the_thought_is_none_before_the_answer() -> None:
    traces = [
        reading([(0, 0.1), (10, 0.2), (40, 0.9)], number=0),
        reading([(0, 0.1), (10, 0.9), (40, 0.2)], number=1),
        reading([(0, 0.1), (10, 0.2), (40, 0.2)], number=2, label="benign", chosen_on=True),
        reading([(0, 0.1), (10, 0.1), (40, 0.2)], number=3, label="benign"),
    ]
    figures = list(figures_of(traces, Threshold(0.5), 0.01))
    group = {"case": "harmful", "read": "whole, maximum"}
    assert figure(figures, "halted", **group).value == 1.0
    assert figure(figures, "halted before the answer", **group).value == 0.5


def test_where_the_guard_halts_by_its_own_policy() -> None:
    traces = [
        reading([(0, 0.9), (10, 0.9), (40, 0.9)], number=0),
        reading([(0, 0.1), (10, 0.1), (30, 0.9), (40, 0.9)], number=1),
        reading([(0, 0.1), (10, 0.1), (40, 0.9)], number=2),
        reading([(0, 0.1), (10, 0.1), (40, 0.1)], number=3),
        reading([(0, 0.1), (10, 0.1), (40, 0.1)], number=4, label="benign"),
    ]
    figures = list(figures_of(traces, Threshold(0.5), 0.01))
    shares = {w: figure(figures, "halted by the guard", case="harmful", where=w).value for w in thoughts_figures.WHERE}
    assert shares == {"anywhere": 0.75, "request": 0.25, "thought": 0.25, "answer": 0.25}
    assert figure(figures, "halted by the guard", case="benign", where="anywhere").value == 0.0


def test_a_part_without_checks_has_no_figure_and_no_halt() -> None:
    traces = [reading([(0, 0.1), (40, 0.9)], number=0), reading([(0, 0.1), (40, 0.2)], number=1, label="benign")]
    figures = list(figures_of(traces, Threshold(0.5), 0.01))
    assert figure(figures, "auroc", read="thought, mean").value is None
    assert figure(figures, "advantage of the maximum", over="thought, mean").value is None
    assert not [each for each in figures if each.name == "halted"], "no harmless trace sets a threshold"


# -- the suite ---------------------------------------------------------------------------------------------------------


def test_the_guards_halts_are_those_of_a_scan(tmp_path: Path) -> None:
    given = context(tmp_path, TRACES)
    probe = random_probe(given.backend, 3, policy=Ewma(0.5, 0.5))
    guard = Guard.from_backend(given.backend, probe, schedule=CONFIG.schedule)
    verdicts = []
    for trace in traces_of(given):
        whole = Prompt((*trace.transcript.start.ids, *trace.transcript.answer_ids), len(trace.transcript.answer_ids))
        verdicts.append((trace, scan_answer(given.backend, probe, guard.config, whole).verdict))
    summary = measured(replace(given, given_probe=probe))
    for case in ("harmful case", "benign case"):
        halted = [verdict.halt for trace, verdict in verdicts if trace.case == case]
        assert one(summary, "halted by the guard", case=case, where="anywhere").value == sum(halted) / len(halted)
    scores = {score for trace, verdict in verdicts for score in [verdict.score]}
    assert len(scores) > 1


def test_the_records_hold_numbers_only_and_traces_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measured(context(tmp_path, TRACES))
    text = (tmp_path / "run" / "records" / "thoughts.jsonl").read_text(encoding="utf-8")
    assert "w1" not in text and "think" not in text
    monkeypatch.setattr("anydepth.evals.arms.replay.packed_scores", lambda *_: pytest.fail("read again"))
    assert measured(context(tmp_path, TRACES)).record() == first.record()


def test_what_is_said_of_the_run(tmp_path: Path) -> None:
    summary = measured(context(tmp_path, TRACES, settings={"thoughts.thought-tokens": "20"}))
    notes = " ".join(summary.notes)
    assert "harmful case: 6 (harmful)" in notes and "benign case: 8 (benign)" in notes
    assert "cut at 20 tokens" in notes and "no thinking channel" in notes
    assert {chart.title for chart in summary.charts} >= {"Separation: harmful case", "Halted before the answer begins"}
    channel = measured(context(tmp_path / "think", TRACES, THINK))
    assert "no thinking channel" not in " ".join(channel.notes)


def test_limits_name_where_the_maximum_is_no_better_and_where_the_request_suffices() -> None:
    group = {"case": "a", "against": "b"}
    figures = [
        Figure("advantage of the maximum", 0.01, (-0.1, 0.1), 9, "auroc", {**group, "over": "thought, mean"}),
        Figure("advantage of the maximum", -0.2, (-0.3, -0.1), 9, "auroc", {**group, "over": "whole, mean"}),
        Figure("advantage of the maximum", 0.3, (0.2, 0.4), 9, "auroc", {**group, "over": "whole, mean"}),
        Figure("auroc", 0.9, (0.8, 1.0), 9, "auroc", {**group, "read": "request alone"}),
        Figure("auroc", 0.5, (0.4, 0.6), 9, "auroc", {**group, "read": "length of the thought"}),
    ]
    assert list(thoughts._limits(figures)) == [
        "a against b: the maximum cannot be said to be better than “thought, mean” (difference of the AUROCs +0.01, "
        "-0.10 to +0.10).",
        "a against b: the maximum is worse than “whole, mean” (difference of the AUROCs -0.20, -0.30 to -0.10).",
        "a against b: the request alone has an AUROC of 0.90; the thought is not needed there.",
    ]
