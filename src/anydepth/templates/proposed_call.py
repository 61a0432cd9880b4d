"""Write a tool call that an assistant proposes as the end of its turn, as the chat template writes calls."""

import json
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from anydepth.errors import PromptError, RecordError
from anydepth.jsonl import read_value
from anydepth.templates.call_formats import ToolFormat, formats
from anydepth.templates.channels import Openers
from anydepth.templates.messages import normal, other_arguments
from anydepth.templates.pieces import shared_start
from anydepth.templates.prompt import Prompt
from anydepth.templates.rendering import Renderer

PromptOf = Callable[[list[dict[str, Any]], Sequence[Any] | None], str]
Written = ToolFormat | None

_ID = "anydepth0"
"""Id of the call: some templates (Mistral's) want nine letters or digits, none writes it for the model to read."""

_ABOUT = ("id", "type", "index", "call_id", "status")
"""Fields of a call that tell it from others, in the forms of OpenAI's two APIs."""

_NAME, _KEY, _VALUE, _TEXT = (f"anydepth{each}" for each in ("callname", "callkey", "callvalue", "calltext"))


@dataclass(frozen=True, slots=True)
class ProposedCall:
    """A tool call before it is run.

    Attributes:
        name: Name of the function.
        arguments: Its arguments by name.
    """

    name: str
    arguments: Mapping[str, Any]

    def message(self, turn: Mapping[str, Any], text: str) -> dict[str, Any]:
        """The assistant's message with this call and `text` beside it; its other fields are those of `turn`."""
        function = {"name": self.name, "arguments": dict(self.arguments)}
        call = {"id": _ID, "type": "function", "function": function}
        return {**turn, "role": "assistant", "content": text, "tool_calls": [call]}


_TRIAL = ProposedCall(_NAME, {_KEY: _VALUE})


@dataclass(frozen=True, slots=True)
class CallPrompt:
    """A conversation whose last turn, the prefill of its prompt, proposes a tool call.

    Attributes:
        call: The call.
        prompt: The prompt; the Safety Tokens after the call stand behind all of it.
        before: Depth in tokens at which the call begins: 0, or the end of the text beside it.
    """

    call: ProposedCall
    prompt: Prompt
    before: int


def read_call(call: Any) -> ProposedCall:
    """Read a tool call in OpenAI's form, or as `{"name": ..., "arguments": ...}`.

    Args:
        call: The call. Its arguments are an object, or the JSON text of one; missing, null or empty are no arguments.
            `id`, `type` and what else tells one call from another may stand beside them.

    Raises:
        PromptError: It has no name, its arguments are no JSON object or name one thing twice, or it has a field that
            is not read, which may be the arguments in another form.
    """
    if not isinstance(call, Mapping):
        raise PromptError(
            f'the tool call is {reprlib.repr(call)}; give {{"name": ..., "arguments": {{...}}}}, or OpenAI\'s form'
        )
    function = call.get("function", call)
    if not isinstance(function, Mapping):
        raise PromptError(f"the function of the tool call is {reprlib.repr(function)}; give its name and arguments")
    if function is call:
        unknown = set(call) - {"name", "arguments", *_ABOUT}
    else:
        unknown = (set(call) - {"function", *_ABOUT}) | (set(function) - {"name", "arguments"})
    if unknown:
        raise PromptError(
            f"the tool call has {min(map(repr, unknown))}, which is not read; give the tool as `name`, and what it is "
            "called with as `arguments`"
        )
    name = function.get("name")
    if not isinstance(name, str) or not name.strip() or name != name.encode(errors="replace").decode():
        raise PromptError(f"the name of the tool call is {name!r}; give the name of the tool that it calls")
    return ProposedCall(name, _arguments(name, function.get("arguments")))


def _arguments(name: str, given: Any) -> Mapping[str, Any]:
    value = given
    try:
        if isinstance(given, str):
            value = read_value(given) if given.strip() else None
        value = {} if value is None else value
        if isinstance(value, Mapping):
            json.dumps(
                value, allow_nan=False, ensure_ascii=False
            ).encode()  # what is no JSON could not be written either
            return value
        why = ""
    except RecordError as error:
        why = f", which {error}" if str(error).startswith("has ") else ""
    except (TypeError, ValueError, RecursionError):
        why = ""
    raise PromptError(
        f"the arguments of the tool call {name!r} are {reprlib.repr(given)}{why}; give a JSON object, or its text"
    )


@dataclass(frozen=True, slots=True)
class _Turn:
    """The turn that proposes a call.

    Attributes:
        history: The messages before it.
        fields: What the message has besides text and call, e.g. thoughts.
        text: The text beside the call; empty without one.
        call: The call.
        tools: Tool schemas for the template.
        prompt: The text of the prompt that the turn answers.
    """

    history: list[dict[str, Any]]
    fields: Mapping[str, Any]
    text: str
    call: ProposedCall
    tools: Sequence[Any] | None
    prompt: str

    def ways(self) -> Iterator[tuple[list[Any], list[Any]]]:
        """The conversation up to an example's call and up to the real one, with arguments in each form there is."""
        example = [*self.history, _TRIAL.message(self.fields, _TEXT if self.text else "")]
        real = [*self.history, self.call.message(self.fields, self.text)]
        yield example, real
        yield from zip(other_arguments(example), other_arguments(real), strict=True)


class CallWriter:
    """Writes the turns that propose calls.

    Args:
        renderer: Renders messages.
        openers: What prompts end with, and what then opens the answer.
        turn_end: How an answer ends where the conversation goes on; empty if that is not known.
        name: Name of the model, for messages.
    """

    def __init__(self, renderer: Renderer, openers: Openers, turn_end: str, name: str) -> None:
        self._renderer, self._openers, self._name = renderer, openers, name
        self._turn_end = turn_end.strip()

    def prompt(
        self, messages: Any, tool_call: Any, prompt_of: PromptOf, *, tools: Sequence[Any] | None, written: Written
    ) -> CallPrompt:
        """The prompt of a proposed call; see `ChatTemplate.call_prompt`.

        Args:
            messages: The conversation.
            tool_call: The call.
            prompt_of: Gives the text of a prompt, and refuses messages that the template drops.
            tools: Tool schemas for the template.
            written: How the call is written where the template writes none.
        """
        call = read_call(tool_call)
        history, fields, text = _split(normal(messages))
        turn = _Turn(history, fields, text, call, tools, prompt_of(history, tools))
        opened = self._opened(turn)
        if opened is None:
            body = "\n".join(filter(None, (text, self._in_format(written, call))))
            opened = self._openers.continued(turn.prompt, body)
        ids = self._renderer.ids(turn.prompt)
        answer = self._renderer.ids_after(turn.prompt, opened, ids)
        whole = Prompt((*ids, *answer), prefill=len(answer), messages=tuple(history))
        return CallPrompt(call, whole, self._start_of_call(turn, opened, answer))

    def _opened(self, turn: _Turn) -> str | None:
        """What the assistant writes behind the prompt, as the template has it; None if the template writes no calls."""
        for shown, asked in turn.ways():
            example, whole = (self._renderer.tried(each, generate=False, tools=turn.tools) for each in (shown, asked))
            if example is None or whole is None or (start := self._turn_start(turn.prompt, example)) is None:
                continue
            own = example[start:]
            if whole[:start] != example[:start] or not all(each in own for each in (_NAME, _KEY, _VALUE)):
                continue
            body = self._without_end(turn, whole, example)[start:]
            beside = "" if not turn.text or _TEXT in own else f"{turn.text}\n"
            if start == len(turn.prompt) and example.startswith(turn.prompt):
                return beside + body
            return self._openers.continued(turn.prompt, beside + self._without_opener(turn.prompt, body))
        return None

    def _turn_start(self, prompt: str, example: str) -> int | None:
        """Where in a rendered conversation the assistant's last turn goes on behind the prompt, or behind its role.

        It is looked for in an example: the arguments of the real call may have the opener of a turn in them.
        """
        if example.startswith(prompt):
            return len(prompt)
        stem, opens = self._openers.stem, self._openers.rest_of(prompt) is not None
        if stem and example.count(stem) == prompt.count(stem) + (not opens):
            return example.rfind(stem) + len(stem)
        return None

    def _without_opener(self, prompt: str, body: str) -> str:
        """The turn without what stands between the role and an answer: the prompt has another opener."""
        for opener in (self._openers.answer, self._openers.rest_of(prompt)):
            if opener and body.startswith(opener):
                return body.removeprefix(opener)
        shared = shared_start(body, self._openers.rest)
        return body.removeprefix(shared) if not shared.strip() else body

    def _without_end(self, turn: _Turn, whole: str, example: str) -> str:
        """The conversation without the end of the turn, which the Safety Tokens begin with.

        What follows the example's call is the template's own. Some templates end calls in a way of their own.
        """
        tail = example[max(example.rfind(each) + len(each) for each in (_NAME, _KEY, _VALUE, _TEXT)) :]
        plain = [*turn.history, {"role": "assistant", "content": _TEXT}]
        said = self._renderer.tried(plain, generate=False, tools=turn.tools) or ""
        ends = [tail[tail.find(self._turn_end) :]] if self._turn_end and self._turn_end in tail else []
        ends.append(said.rpartition(_TEXT)[2])
        if end := next((end for end in ends if end.strip() and whole.endswith(end)), ""):
            return whole.removesuffix(end)
        special = [each for each in _special_tokens(self._renderer.tokenizer) if tail.rstrip().endswith(each)]
        return whole.rstrip().removesuffix(max(special, key=len)) if special else whole

    def _in_format(self, written: Written, call: ProposedCall) -> str:
        if written is not None:
            return written.write(call.name, call.arguments)
        known = ", ".join(row.name for row in formats())
        raise PromptError(
            f"the chat template of {self._name} writes no tool calls, so that the call {call.name!r} cannot be read; "
            f"name the format in which the model writes them: format= ([tools] format in guard.toml), one of {known}"
        )

    def _start_of_call(self, turn: _Turn, opened: str, answer: tuple[int, ...]) -> int:
        """The depth at which the text before the call ends; 0 without one, and where the template puts it behind."""
        text = turn.text.strip()
        at = opened.find(text) + len(text) if text and text in opened else 0
        if not at or turn.call.name not in opened[at:]:
            return 0
        head = self._renderer.ids_after(turn.prompt, opened[:at])
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(head, answer, strict=False)))


def _split(messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any], str]:
    """The messages before the assistant's turn, that turn's message, and the text in it."""
    if messages[-1]["role"] != "assistant":
        return messages, {}, ""
    *history, turn = messages
    if not history:
        raise PromptError("the only message is the assistant's; put a user message before it")
    return history, turn, turn.get("content") or ""


def _special_tokens(tokenizer: Any) -> set[str]:
    """The texts of the special tokens, of which one may end a turn."""
    names = set(map(str, getattr(tokenizer, "all_special_tokens", None) or ()))
    added: Mapping[int, Any] = getattr(tokenizer, "added_tokens_decoder", None) or {}
    return names | {str(token) for token in added.values() if getattr(token, "special", False)}
