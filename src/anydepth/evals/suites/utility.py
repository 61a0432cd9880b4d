"""Measure whether a guarded model answers benign questions as well as the bare one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from anydepth.backends.batch import batches
from anydepth.conversations.dataset import Conversation
from anydepth.errors import ConfigError
from anydepth.evals import estimates
from anydepth.evals.answers.sets import family, spread
from anydepth.evals.arms.answer_records import traced_arms
from anydepth.evals.arms.arms import defence
from anydepth.evals.arms.replay import Detecting
from anydepth.evals.context import Context
from anydepth.evals.figure import Chart, Figure, Summary
from anydepth.evals.instruments.harness import mark, task_of
from anydepth.evals.suite import summed_up
from anydepth.evals.transcript import Transcript
from anydepth.guard import Guard
from anydepth.templates.template import Prompt
from anydepth.types import Answer

TITLE = "Utility: benign questions with and without the guard"
PAPER = "utility on benign tasks is preserved (abstract): GSM8K, MATH, BBH, MMLU"

_ARMS = ("probe",)
_ALL = "all"


@dataclass(frozen=True, slots=True)
class _Asked:
    """The questions, and what the harness makes of the answers.

    Attributes:
        rows: The questions by id.
        right: Arm -> id -> whether the answer is right.
        guarded: Arm -> id -> what the guard did.
    """

    rows: Mapping[str, Conversation]
    right: Mapping[str, Mapping[str, bool]]
    guarded: Mapping[str, Mapping[str, Mapping[str, Any]]]

    def sources(self) -> Iterator[tuple[str, list[str]]]:
        """Ids by source, those of all sources last."""
        for name in dict.fromkeys(family(row.source) for row in self.rows.values()):
            yield name, [key for key, row in self.rows.items() if family(row.source) == name]
        yield _ALL, list(self.rows)


def run(context: Context) -> Summary:
    """Measure; see `anydepth.evals.suite.Suite`."""
    arms, remarks = traced_arms(context, _ARMS)
    tokens = context.number("new-tokens", 160, 48)
    rows, left_out = _questions(context, context.count(20, 3))
    right = {"base": mark(list(rows.values()), partial(_bare, context, tokens))}
    for arm in arms:
        right[arm] = mark(list(rows.values()), partial(_guarded, context, arm, tokens))
    guarded = {arm: {key: context.records.rows[_key(arm, key)] for key in rows} for arm in arms}
    for arm, marks in right.items():
        for key, value in marks.items():
            context.record(f"right|{arm}|{key}", partial(dict, arm=arm, right=value))
    asked = _Asked(rows, right, guarded)
    figures = tuple(_figures(asked))
    return summed_up(context, figures, _charts(), _limits(figures), (*_notes(context, tokens, left_out), *remarks))


def _questions(context: Context, count: int) -> tuple[dict[str, Conversation], dict[str, int]]:
    """`count` questions of each benchmark by id, spread over its sources; and how many no task can mark."""
    benchmarks: dict[str, list[Conversation]] = {}
    left_out: dict[str, int] = {}
    for row in context.table("prompts_utility"):
        if "answer" not in row.tags:
            raise ConfigError(f"suite {context.suite}: question {row.id!r} of prompts_utility has no column `answer`")
        name = family(row.source)
        if task_of(row) is None:
            left_out[name] = left_out.get(name, 0) + 1
        else:
            benchmarks.setdefault(name, []).append(row)
    if not benchmarks:
        raise ConfigError(f"suite {context.suite}: prompts_utility has no question of GSM8K, MATH, BBH or MMLU")
    chosen = [row for name in sorted(benchmarks) for row in spread(benchmarks[name], count, lambda row: row.source)]
    return {row.id: row for row in chosen}, left_out


def _bare(context: Context, tokens: int, questions: Mapping[str, str]) -> dict[str, str]:
    """Answers of the model without a guard."""
    context.write(_prompts(context, questions), tokens)
    return {key: context.text(key) for key in questions}


def _guarded(context: Context, arm: str, tokens: int, questions: Mapping[str, str]) -> dict[str, str]:
    """What a user of the guarded model reads; of a halted answer the refusal alone, which is wrong.

    The guard runs live, in the batches in which the bare model wrote, so that a difference is the guard's.
    """
    guard, prompts = _guard(context, arm), _prompts(context, questions)
    bare = context.write(prompts, tokens)
    done = sum(_made(context, _key(arm, key)) for key in prompts)
    for batch in batches(list(prompts), lambda key: prompts[key], tokens, str):
        missing = [key for key in batch if not _made(context, _key(arm, key))]
        if missing:
            asked = [questions[key] for key in batch]
            answers = dict(zip(batch, guard.generate(asked, max_new_tokens=tokens, do_sample=False), strict=True))
            for key in missing:
                _write(context, _key(arm, key), arm, answers[key], bare[key])
            done += len(missing)
        context.told(f"answer with {arm}", done, len(prompts))
    return {
        key: guard.config.refusal if context.records.rows[_key(arm, key)]["halted"] else context.text(_key(arm, key))
        for key in questions
    }


def _write(context: Context, key: str, arm: str, answer: Answer, bare: Transcript) -> None:
    """Keep one guarded answer: its text apart from what is published."""
    if key not in context.texts:
        context.texts.write(key, {"id": key, "ids": list(answer.token_ids), "text": answer.text})
    facts = {"halted": answer.halted, "depth": answer.verdict.depth, "checks": len(answer.checks)}
    context.record(key, lambda: {"arm": arm, **facts, "same": _same(answer, bare)})


def _made(context: Context, key: str) -> bool:
    return key in context.records and key in context.texts


def _same(answer: Answer, bare: Transcript) -> bool:
    """True if the guard let out what the bare model wrote, token for token."""
    whole = len(answer.token_ids) == len(bare.token_ids) + bare.end_tokens
    return whole and answer.token_ids[: len(bare.token_ids)] == bare.token_ids


def _prompts(context: Context, questions: Mapping[str, str]) -> dict[str, Prompt]:
    return {key: context.backend.template.prompt(text) for key, text in questions.items()}


def _guard(context: Context, arm: str) -> Guard:
    asked = defence(arm, context)
    if not isinstance(asked, Detecting):
        raise ConfigError(f"suite {context.suite}: {arm} cannot guard an answer while it is written; leave out --arm")
    config = asked.config(context.config)
    options = {each.name: getattr(config, each.name) for each in fields(config)}
    return Guard.from_backend(context.backend, asked.detector, **options)


def _key(arm: str, key: str) -> str:
    return f"{arm}|{key}"


def _figures(asked: _Asked) -> Iterator[Figure]:
    for name, keys in asked.sources():
        before = [asked.right["base"][key] for key in keys]
        yield estimates.share("accuracy", before, {"source": name, "arm": "base"})
        for arm, records in asked.guarded.items():
            group = {"source": name, "arm": arm}
            after = [asked.right[arm][key] for key in keys]
            yield estimates.share("accuracy", after, group)
            yield estimates.difference("difference", after, before, "share", group)
            yield estimates.share("halted", [records[key]["halted"] for key in keys], group)
            yield estimates.share("changed", [not records[key]["same"] for key in keys], group)
            others = [not records[key]["same"] for key in keys if not records[key]["halted"]]
            yield estimates.share("changed, not halted", others, group)


def _charts() -> Iterator[Chart]:
    yield Chart(
        "bars",
        "Accuracy with and without the guard",
        ("accuracy",),
        x="source",
        by="arm",
        caption="Answers marked by lm_eval; a halted answer is wrong.",
    )
    yield Chart(
        "table",
        "What the guard changes",
        ("difference", "halted", "changed", "changed, not halted"),
        x="source",
        by="arm",
        caption="Paired over the same questions. An answer that is not halted must be the bare model's, token for "
        "token: the last figure is then 0.",
    )


def _limits(figures: Sequence[Figure]) -> Iterator[str]:
    for figure in figures:
        if figure.group["source"] != _ALL or not figure.value:
            continue
        arm = figure.group["arm"]
        if figure.name == "changed, not halted":
            yield (
                f"{figure.value:.1%} of the answers that {arm} did not halt differ from the bare model's: on this "
                "machine the guard changes what the model computes, which it must not."
            )
        if figure.name == "difference" and figure.value < 0:
            low, high = figure.interval or (0.0, 0.0)
            yield f"With {arm} the accuracy is {-figure.value:.1%} lower (difference {low:.1%} to {high:.1%})."


def _notes(context: Context, tokens: int, left_out: Mapping[str, int]) -> Iterator[str]:
    yield (
        f"Asked and marked by lm_eval through its own interface, zero-shot, on local questions, at most {tokens} new "
        "tokens, greedily: longer reasoning is cut and counts as wrong, so the accuracies are below published ones. "
        "What counts here is the difference."
    )
    yield "The guard runs live, not over stored answers; it decodes in the same batches as the bare model."
    for name, count in sorted(left_out.items()):
        yield f"{name}: left out ({count} questions); its table has no tests that an answer could be run against."
    yield f"Small samples: {context.count(20, 3)} questions a benchmark."
