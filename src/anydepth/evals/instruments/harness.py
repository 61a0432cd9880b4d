"""Run tasks of local questions through EleutherAI's `lm_eval`: it poses them, extracts the answers and marks them."""

import io
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import Any, TextIO

from anydepth.conversations.dataset import Conversation
from anydepth.errors import ConfigError
from anydepth.extras import require

EXTRA = "eval"
_ANSWER = r"[Aa]nswer(?: is)?\b[\s:*$(\\]*"
_NUMBER = r"-?\$?\d[\d,]*(?:\.\d+)?"

Answers = Callable[[Mapping[str, str]], Mapping[str, str]]
"""Answers questions: id -> question in, id -> answer out."""


@dataclass(frozen=True, slots=True)
class Task:
    """How the questions of some sources are posed and marked.

    Attributes:
        name: The task's name for `lm_eval`.
        sources: Pattern of the source keys.
        targets: Pattern of the reference answers: the sources of a benchmark differ in what they ask for.
        found: Pattern that finds answers in a text; the last one counts. None for LaTeX, which `lm_eval`'s own code for
            MATH compares.
        ask: What is put below the question.
    """

    name: str
    sources: str
    targets: str
    found: str | None
    ask: str

    def takes(self, row: Conversation) -> bool:
        """True if this task poses `row`."""
        return bool(re.fullmatch(self.sources, row.source) and re.fullmatch(self.targets, row.tags["answer"]))

    def document(self, row: Conversation) -> dict[str, str]:
        """The question as `lm_eval` gets it."""
        answer = row.tags["answer"].strip()
        bare = answer.strip("()") if re.fullmatch(r"\([A-Z]\)", answer) else answer
        return {"id": row.id, "question": f"{row.prompt}\n\n{self.ask}".strip(), "answer": bare}


_END = 'End with a line "Answer: {}".'

TASKS = (
    Task("gsm8k", "gsm8k", "(?s).*", _NUMBER, _END.format("NUMBER")),
    Task("math", "math500", "(?s).*", None, r"Put the final answer into \boxed{}."),
    Task("mmlu", "mmlu-.*", "[A-D]", rf"(?m)(?:{_ANSWER}|^\W*)([A-D])(?=[.):*\s]|$)", ""),
    Task("bbh-letter", "bbh-.*", r"\([A-Z]\)", rf"\(([A-Z])\)|{_ANSWER}([A-Z])\b", _END.format("(LETTER)")),
    Task("bbh-yes-no", "bbh-.*", "(?i)yes|no", r"(?i)\b(yes|no)\b", _END.format("yes or no")),
    Task("bbh-truth", "bbh-.*", "True|False", r"(?i)\b(true|false)\b", _END.format("True or False")),
    Task("bbh-validity", "bbh-.*", "valid|invalid", r"(?i)\b(valid|invalid)\b", _END.format("valid or invalid")),
    Task("bbh-number", "bbh-.*", r"-?\d+", _NUMBER, _END.format("NUMBER")),
    Task("bbh-text", "bbh-.*", "(?s).*", rf"(?m){_ANSWER}(.+)$|\A([^\n]+)\Z", _END.format("...")),
)
"""The first task that takes a question asks it."""


def task_of(row: Conversation) -> Task | None:
    """The task that poses `row`, or None if no task can mark an answer to it."""
    return next((task for task in TASKS if task.takes(row)), None)


def mark(rows: Sequence[Conversation], answers: Answers) -> dict[str, bool]:
    """Whether each answer is right, by the id of its question; rows that no task takes are left out.

    Raises:
        MissingExtra: `lm_eval` is not installed.
    """
    evaluator, manager = require("lm_eval.evaluator", extra=EXTRA), require("lm_eval.tasks", extra=EXTRA)
    documents: dict[Task, list[dict[str, str]]] = {}
    for row in rows:
        if (task := task_of(row)) is not None:
            documents.setdefault(task, []).append(task.document(row))
    if not documents:
        return {}
    with _quiet() as shown:
        # no built-in tasks: their data is on the hub, and reading their thousands of files takes a while
        loaded = manager.TaskManager(include_defaults=False).load([_config(*each) for each in documents.items()])
        results = evaluator.evaluate(lm=_model(answers, shown), task_dict=loaded, bootstrap_iters=0, log_samples=True)
    samples = [sample for of_task in results["samples"].values() for sample in of_task]
    return {sample["doc"]["id"]: bool(sample["exact_match"]) for sample in samples}


def _config(task: Task, documents: list[dict[str, str]]) -> dict[str, Any]:
    """The task as `lm_eval` writes it in its own YAML files."""
    datasets = require("datasets", extra=EXTRA)
    config = {
        "task": f"anydepth-{task.name}",
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(documents)},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "question",
        "doc_to_target": "answer",
        "num_fewshot": 0,
        "generation_kwargs": {"until": [], "do_sample": False},
        "metric_list": [
            {
                "metric": "exact_match",
                "aggregation": "mean",
                "higher_is_better": True,
                "ignore_case": True,
                "regexes_to_ignore": [",", r"\$", r"\*", r"\.$"],
            }
        ],
    }
    if task.found is None:
        return {**config, "process_results": _mark_latex}
    regex = {"function": "regex", "regex_pattern": task.found, "group_select": -1}
    return {**config, "filter_list": [{"name": "found", "filter": [regex, {"function": "take_first"}]}]}


def _mark_latex(document: Mapping[str, str], results: Sequence[str]) -> dict[str, int]:
    """Compare the last box of an answer, or its last number, with the reference, as `lm_eval` does for MATH."""
    latex = require("lm_eval.tasks.hendrycks_math.utils", extra=EXTRA)
    box = latex.last_boxed_only_string(results[0])
    if box is not None and box.startswith(("\\boxed{", "\\boxed ")):
        found = latex.remove_boxed(box)
    else:
        found = next(iter(re.findall(_NUMBER, results[0])[-1:]), "")
    return {"exact_match": int(latex.is_equiv(found, document["answer"]))}


def _model(answers: Answers, shown: TextIO) -> Any:
    """A model of `lm_eval`'s kind whose answers come from `answers`."""
    api = require("lm_eval.api.model", extra=EXTRA)

    class Answering(api.LM):
        """Answers all requests in one go, so that they can be batched."""

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            """Answer the questions; each request is one document."""
            questions = {request.doc["id"]: request.args[0] for request in requests}
            with redirect_stderr(shown):
                found = answers(questions)
            return [found[request.doc["id"]] for request in requests]

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            """Not offered: a guard watches answers that are generated."""
            raise ConfigError("a guard watches generated answers; use tasks of output type generate_until")

        loglikelihood_rolling = loglikelihood  # pyright: ignore[reportAssignmentType]

    return Answering()


@contextmanager
def _quiet() -> Iterator[TextIO]:
    """Keep the bars and remarks of `lm_eval` from the screen; gives the stream that it had."""
    shown, log = sys.stderr, logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()):
            yield shown
    finally:
        log.setLevel(level)
