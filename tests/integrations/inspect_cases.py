"""Evals of Inspect AI over guarded models; prints a line of JSON per case.

Run by test_inspect.py in an environment that has inspect_ai: `python inspect_cases.py FOLDER PAGE_EXAMPLE`.
"""

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import (
    ChatMessageUser,
    ContentImage,
    ContentText,
    GenerateConfig,
    ModelOutput,
    ModelUsage,
    get_model,
)
from inspect_ai.solver import generate
from inspect_ai.tool import ToolInfo

from anydepth import Guard
from anydepth.testing import ScriptedBackend, ScriptedDetector

FOLDER = Path(sys.argv[1])
GONE = {0: 0.1, 5: 0.9}
QUIET = {"display": "none", "log_format": "json", "log_dir": str(FOLDER / "logs")}


def guard_of(answer: str, scores: Any, **options: Any) -> Guard:
    return Guard.from_backend(ScriptedBackend([answer]), ScriptedDetector(scores), **options)


def guarded_model(*arguments: Any) -> Any:
    """Imported late: the first case shows that nobody has to import it."""
    from anydepth.integrations import inspect_model

    return inspect_model.guarded_model(*arguments)


def run(task: Task, guard: Guard, **options: Any) -> Any:
    (log,) = eval(task, model=guarded_model(guard, "scripted"), **QUIET, **options)
    return log


def asked(text: str = "question", **options: Any) -> Task:
    return Task(dataset=[Sample(input=text)], solver=generate(), **options)


def told(log: Any) -> Any:
    (sample,) = log.samples
    output = sample.output
    details = output.choices[0].stop_details
    return {
        "status": log.status,
        "completion": output.completion,
        "stop_reason": output.stop_reason,
        "details": details.model_dump() if details else None,
        "report": output.metadata["anydepth"],
        "usage": [output.usage.input_tokens, output.usage.output_tokens],
    }


def unguarded(*answers: str) -> Any:
    """A model without a guard; with its usage, since Inspect would fetch a tokenizer to count."""
    outputs = [ModelOutput.from_content("mockllm/model", answer) for answer in answers]
    for output in outputs:
        output.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
    return get_model("mockllm/model", custom_outputs=outputs)


def halted() -> Any:
    from anydepth.integrations.inspect_tasks import halts

    log = run(asked(scorer=halts()), guard_of("a long answer", GONE))
    return {**told(log), "score": log.samples[0].scores["halts"].model_dump(include={"value", "metadata"})}


def refusal_as_error() -> Any:
    log = run(asked(), guard_of("a long answer", GONE), fail_on_refusal=True)
    return [log.status, log.samples[0].error.message]


def failed_check() -> Any:
    return told(run(asked(), guard_of("a long answer", {0: 0.1, 5: RuntimeError("no state")})))


def monitored() -> Any:
    return told(run(asked(), guard_of("a long answer", GONE, release="monitor")))


def prefills() -> Any:
    from anydepth.integrations.inspect_tasks import deep_prefill

    task = deep_prefill(str(FOLDER / "questions.jsonl"), words="0,2,9")
    log = run(task, guard_of(" and", lambda row, depth: 0.9 if depth >= 8 else 0.1))
    samples = [
        [each.id, [message.role for message in each.messages], each.output.stop_reason, each.scores["halts"].value]
        for each in log.samples
    ]
    return [samples, log.results.scores[0].metrics["mean"].value]


def scanned() -> Any:
    from anydepth.integrations.inspect_tasks import deep_prefill

    reader = guard_of("unused", lambda row, depth: 0.9 if depth >= 12 else 0.1)
    task = deep_prefill(str(FOLDER / "questions.jsonl"), words="2", guard=reader)
    (log,) = eval(task, model=unguarded(" and on", " no"), max_samples=1, **QUIET)
    return [[each.scores["halts"].value, each.scores["halts"].metadata] for each in log.samples]


def unscannable() -> Any:
    from anydepth.integrations.inspect_tasks import halts

    (log,) = eval(asked(scorer=halts()), model=unguarded("text"), **QUIET)
    return [log.status, log.samples[0].error.message]


def page() -> Any:
    Guard.from_pretrained = classmethod(lambda cls, *args, **options: guard_of("fine", {}))  # the page loads a model
    names: dict[str, Any] = {}
    exec(sys.argv[2], names)
    return [names["log"].status, names["rate"]]


def refused(*, tools: list[Any] | None = None, content: Any = "question", **config: Any) -> Callable[[], Any]:
    def ask() -> Any:
        model = guarded_model(guard_of("fine", {}))
        messages = [ChatMessageUser(content=content)]
        return asyncio.run(model.generate(messages, tools=tools or [], config=GenerateConfig(**config)))

    return ask


def sampling() -> Any:
    backend = ScriptedBackend(["fine"])
    guard = Guard.from_backend(backend, ScriptedDetector({}))
    settings: list[dict[str, Any]] = [
        {"temperature": 0.0, "top_p": 0.5},
        {"temperature": 0.7, "seed": 3, "max_tokens": 2},
        {"stop_seqs": ["x"]},
    ]
    reasons = []
    for setting in settings:
        output = asyncio.run(guarded_model(guard).generate("q", config=GenerateConfig(**setting)))
        reasons.append(output.stop_reason)
    return [[session.options for session in backend.sessions], reasons]


def found() -> Any:
    """The provider, by its name alone; and a task, as the command line finds it."""
    Guard.from_pretrained = classmethod(lambda cls, name, **options: guard_of(f"{name} {options}", {}))
    model = get_model("anydepth/org/model", probe="probe.safetensors")
    assert "anydepth.integrations.inspect_tasks" in sys.modules
    return [type(model.api).__name__, asyncio.run(model.generate("q")).completion]


def command_line() -> Any:
    from inspect_ai._cli.main import inspect
    from inspect_ai.log import list_eval_logs, read_eval_log

    Guard.from_pretrained = classmethod(
        lambda cls, name, **options: guard_of(" and", lambda row, depth: 0.9 if depth >= 8 else 0.1)
    )
    logs = str(FOLDER / "cli")
    words = ["eval", "anydepth/deep_prefill", "-T", f"dataset={FOLDER / 'questions.jsonl'}", "-T", "words=0,2"]
    model = ["--model", "anydepth/org/other", "-M", "probe=probe.safetensors"]
    inspect([*words, *model, "--log-dir", logs, "--log-format", "json", "--display", "none"], standalone_mode=False)
    (log,) = map(read_eval_log, list_eval_logs(logs))
    return [log.status, log.eval.task, log.eval.model, log.results.scores[0].metrics["mean"].value]


def words_of(words: Any) -> Callable[[], Any]:
    def make() -> Any:
        from anydepth.integrations.inspect_tasks import deep_prefill

        return [each.id for each in deep_prefill(str(FOLDER / "questions.jsonl"), words=words).dataset]

    return make


def kept_by_name() -> Any:
    get_model("anydepth/scripted", guard=guard_of("fine", {}))


CASES: dict[str, Callable[[], Any]] = {
    "found by its entry point": found,
    "passed": lambda: told(run(asked(), guard_of("a long answer", {}))),
    "halted": halted,
    "refusal as an error": refusal_as_error,
    "failed check": failed_check,
    "monitored": monitored,
    "prefills": prefills,
    "scanned": scanned,
    "unscannable": unscannable,
    "page": page,
    "tools": refused(tools=[ToolInfo(name="look", description="Look.")]),
    "image": refused(content=[ContentText(text="see"), ContentImage(image="data:image/png;base64,AA==")]),
    "option": refused(num_choices=2),
    "cache": refused(cache=True),
    "sampling": sampling,
    "kept by name": kept_by_name,
    "command line": command_line,
    "one number of words": words_of(3),
    "no number of words": words_of("some"),
    "too many words": words_of(99),
}


if __name__ == "__main__":
    for name, case in CASES.items():
        try:
            outcome = case()
        except Exception as error:
            outcome = {"error": type(error).__name__, "text": str(error)}
        sys.stdout.write(json.dumps({"case": name, "outcome": outcome}, default=str) + "\n")
