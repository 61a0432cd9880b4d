"""Guarded models as a provider of Inspect AI: `--model anydepth/ORG/MODEL`."""

# ruff: noqa: E402 - a missing package gives the error of anydepth.extras, before its own imports

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from anydepth.errors import ConfigError
from anydepth.extras import require
from anydepth.guard import Guard
from anydepth.guard_report import GuardReport
from anydepth.types import Answer

require("inspect_ai", extra="inspect", at_least=(0, 3))

import anyio.to_thread
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    Model,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    StopCategory,
    StopDetails,
    get_model,
    modelapi,
)
from inspect_ai.tool import ToolChoice, ToolInfo

REPORT = "anydepth"
"""Key of the guard's report in `ModelOutput.metadata`."""

MAX_TOKENS = 512
"""Length of an answer where the eval sets none."""

_SAMPLING = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "stop_seqs": "stop_strings"}
_OURS = {*_SAMPLING, "max_tokens", "seed"}
_INSPECTS = {  # carried out by Inspect, or without a meaning for a model of this process
    "adaptive_connections", "attempt_timeout", "cache_prompt", "extra_headers", "fail_on_refusal",
    "internal_tools", "max_connections", "max_retries", "max_tool_output", "parallel_tool_calls", "reasoning_history",
    "stream_idle_timeout", "system_message", "timeout",
}  # fmt: skip
_HARMLESS = {"num_choices": 1, "best_of": 1, "logprobs": False, "batch": False, "cache": False}


@dataclass(frozen=True, slots=True)
class _Fresh:
    """A guard on its way to a model of its own."""

    guard: Guard


def guarded_model(guard: Guard, name: str = "guarded") -> Model:
    """A model for `eval(task, model=...)` that answers by `guard`; it is called `anydepth/NAME` in logs."""
    return get_model(f"anydepth/{name}", memoize=False, guard=_Fresh(guard))


class GuardedModel(ModelAPI):
    """A model of this process whose answers are guarded.

    A halted answer has the stop reason `content_filter`, with `StopDetails`, and the refusal as its last words; the
    guard's report of every answer is in `output.metadata["anydepth"]`. A last message of the assistant is continued,
    and checked as a prefill.

    Args:
        model_name: Hub id or folder; any name of a guard that is there.
        base_url: Not used.
        api_key: Not used.
        config: Sampling options.
        guard: A guard that is there already; `guarded_model` gives it.
        **model_args: Otherwise the arguments of `Guard.from_pretrained`: `probe` (a path), `dtype`, `device`, ...

    Raises:
        ConfigError: `guard` comes from elsewhere, or an argument cannot be used.
        ModelError: The model cannot be loaded, or a check does not work on it.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008
        guard: "_Fresh | None" = None,
        **model_args: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        if guard is not None and not isinstance(guard, _Fresh):
            raise ConfigError(
                "guard cannot be an argument of get_model(), which keeps models by name: a second guard would not be "
                "used; pass model=guarded_model(guard), of anydepth.integrations.inspect_model"
            )
        self.guard = guard.guard if guard is not None else Guard.from_pretrained(model_name, **model_args)

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """Answer under guard.

        Raises:
            ConfigError: There are tools, a message is not text, or an option of `config` cannot be guarded.
            PromptError: The messages do not fit the chat template or the model's context.
        """
        if tools:
            raise ConfigError(
                f"the provider anydepth/ has no tools, and the task has {', '.join(tool.name for tool in tools)}; "
                "serve the model with `anydepth serve` and use Inspect's openai-api provider"
            )
        options = sampling_of(config)
        length = options.pop("max_new_tokens")
        answer = await anyio.to_thread.run_sync(
            partial(self.guard.generate, messages_of(input), max_new_tokens=length, **options)
        )
        return output_of(answer, self.guard, self.model_name, length)

    def max_connections(self) -> int:
        """One answer at a time: there is one model, which a second answer would only slow down."""
        return 1

    def collapse_assistant_messages(self) -> bool:
        """Consecutive messages of the assistant are one prefill."""
        return True


def messages_of(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """The messages as chat templates take them; ConfigError if one is not text."""
    for place, message in enumerate(messages):
        kinds = [] if isinstance(message.content, str) else [part.type for part in message.content]
        if odd := [kind for kind in kinds if kind != "text"]:
            raise ConfigError(f"message {place} has a part of type {odd[0]}; the guard reads text only")
        if message.role == "tool" or getattr(message, "tool_calls", None):
            raise ConfigError(f"message {place} belongs to a tool call; the provider anydepth/ has no tools")
    return [{"role": message.role, "content": message.text} for message in messages]


def sampling_of(config: GenerateConfig) -> dict[str, Any]:
    """Options of `Guard.generate`; ConfigError names an option that cannot be carried out."""
    given = {name: value for name, value in config.model_dump(exclude_none=True).items() if value != []}
    for name, value in given.items():
        if name not in _OURS | _INSPECTS and not (name in _HARMLESS and value == _HARMLESS[name]):
            raise ConfigError(f"{name}={value!r} is no option of the provider anydepth/; leave it out")
    options = {ours: given[name] for name, ours in _SAMPLING.items() if name in given}
    if given.get("temperature") == 0:
        options = {"do_sample": False, **{name: options[name] for name in options if name == "stop_strings"}}
    elif options.keys() - {"stop_strings"}:
        options["do_sample"] = True
    return {**options, "seed": given.get("seed"), "max_new_tokens": given.get("max_tokens", MAX_TOKENS)}


def output_of(answer: Answer, guard: Guard, model: str, length: int) -> ModelOutput:
    """What Inspect gets of an answer of at most `length` tokens."""
    report = GuardReport.of(answer, guard.config, tell=True)
    reasons: dict[str, Literal["stop", "max_tokens", "model_length", "content_filter"]] = {
        "stop": "stop",
        "length": "max_tokens" if answer.generated_tokens >= length else "model_length",
        "content_filter": "content_filter",
    }
    details = None
    if answer.halted:
        why = "a check failed" if report.reason == "error" else f"the guard's score was {report.score:.3f}"
        details = StopDetails(
            type="anydepth",
            category=report.reason,
            explanation=f"Halted at depth {report.depth} of the answer: {why}.",
            categories=[StopCategory(category=report.reason)],
        )
    message = ChatMessageAssistant(content=answer.text, model=model, source="generate")
    choice = ChatCompletionChoice(message=message, stop_reason=reasons[answer.finish_reason], stop_details=details)
    read, written = answer.prompt_tokens + answer.prefill_tokens, answer.generated_tokens
    usage = ModelUsage(input_tokens=read, output_tokens=written, total_tokens=read + written)
    return ModelOutput(model=model, choices=[choice], usage=usage, metadata={REPORT: report.record()})


@modelapi(name="anydepth")
def anydepth() -> type[ModelAPI]:
    """The provider `anydepth/`."""
    return GuardedModel
