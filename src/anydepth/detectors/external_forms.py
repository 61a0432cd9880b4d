"""How an external guard model is asked about an answer, and how its reply is read."""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from anydepth.backends.conversed import Conversed
from anydepth.detectors.guard_wording import endpoint_question, guard_wording
from anydepth.errors import CheckError, ConfigError
from anydepth.placeholders import filled
from anydepth.prices import TokenCount
from anydepth.types import Score

FormName = Literal["auto", "question", "turns", "moderations"]
FORMS: tuple[FormName, ...] = ("auto", "question", "turns", "moderations")

_WORD = re.compile(r"\W*(\w+)")
_SHOWN = 80
_FIRST_WORDS: Mapping[str, float] = {"unsafe": 1.0, "safe": 0.0}
_OWN_HOST = "api.openai.com"  # its models that think take no max_tokens


@dataclass(frozen=True, slots=True)
class EndpointVerdict:
    """What an endpoint replied: the score, and what it used if it says so."""

    score: Score
    count: TokenCount | None


class EndpointForm(Protocol):
    """How an endpoint is asked."""

    def ask(self, client: Any, model: str, about: Conversed) -> EndpointVerdict:
        """Ask about a conversation; CheckError if the reply has no verdict."""
        ...


@dataclass(frozen=True, slots=True)
class ChatForm:
    """A chat model that says `safe` or `unsafe` first.

    Attributes:
        question: The message that it is asked with, `{conversation}`, `{answer}` and `{mark}` in it; None gives request
            and answer as turns, for a guard model whose own chat template holds the question.
        request: Further fields of a request; they come before those that are set here but messages and model.
    """

    question: str | None
    request: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.question is not None and not all(each in self.question for each in ("{conversation}", "{answer}")):
            raise ConfigError(
                f"the question for the external guard is {self.question[:60]!r}; put {{conversation}} and {{answer}} "
                "into it, and have it ask for one word, safe or unsafe"
            )

    def ask(self, client: Any, model: str, about: Conversed) -> EndpointVerdict:
        """Ask through chat completions."""
        limit = "max_completion_tokens" if client.base_url.host == _OWN_HOST else "max_tokens"
        fields = {limit: 16, "temperature": 0, **self.request}
        messages = turns_of(about) if self.question is None else [{"role": "user", "content": self._asked(about)}]
        found = client.chat.completions.create(model=model, messages=messages, **fields)
        if not getattr(found, "choices", None):
            raise CheckError("the external guard replied without a choice; is this an endpoint of OpenAI's form?")
        usage = getattr(found, "usage", None)
        count = None if usage is None else TokenCount(usage.prompt_tokens or 0, usage.completion_tokens or 0)
        return EndpointVerdict(_read(found.choices[0].message.content), count)

    def _asked(self, about: Conversed) -> str:
        assert self.question is not None
        told = text_of(about.messages)
        return filled(self.question, mark=secrets.token_hex(8), conversation=told, answer=about.answer)


@dataclass(frozen=True, slots=True)
class ModerationForm:
    """A moderation endpoint: the conversation and the answer are one text; flagged is 1, not flagged 0.

    Attributes:
        request: Further fields of a request.
    """

    request: Mapping[str, Any] = field(default_factory=dict)

    def ask(self, client: Any, model: str, about: Conversed) -> EndpointVerdict:
        """Ask through `/moderations`."""
        answer = [{"role": "assistant", "content": about.answer}] if about.answer.strip() else []
        found = client.moderations.create(model=model, input=text_of([*about.messages, *answer]), **self.request)
        results = getattr(found, "results", None)
        if not results or not all(isinstance(each.flagged, bool) for each in results):
            raise CheckError("the external guard's moderation has no result; is this an endpoint of OpenAI's form?")
        named = {name for each in results for name, value in _categories(each).items() if value is True}
        flagged = any(each.flagged for each in results)
        return EndpointVerdict(
            Score(float(flagged), ", ".join(sorted(named)) or ("flagged" if flagged else None)), None
        )


def form_named(name: str, model: str, *, question: str | None, request: Mapping[str, Any]) -> EndpointForm:
    """The form of this name.

    Args:
        name: `question`, `turns`, `moderations`, or `auto`: `turns` for a guard model that `asked.toml` knows by its
            name, else `question`.
        model: Name of the model.
        question: The operator's own question.
        request: Further fields of every request.

    Raises:
        ConfigError: There is no such form, or a question goes with another one.
    """
    if name not in FORMS:
        raise ConfigError(f"the form of the external guard is {name!r}; choose one of {', '.join(FORMS)}")
    if question is not None and name not in ("auto", "question"):
        raise ConfigError(f"a question goes with the form question, not with {name}; drop one")
    if name == "moderations":
        return ModerationForm(request)
    turns = name == "turns" or (name == "auto" and question is None and guard_wording(model).form == "turns")
    return ChatForm(None if turns else question or endpoint_question(), request)


def text_of(messages: Sequence[Mapping[str, Any]]) -> str:
    """The messages as one text: role and content of each, a tool call as JSON."""
    return "\n\n".join(f"{message['role']}: {_content(message)}" for message in messages)


def turns_of(about: Conversed) -> list[dict[str, str]]:
    """The conversation as turns of user and assistant in alternation, as guard models take it.

    The operator's instructions are left out. Results of tools become the user's; turns of one side in a row are joined.
    """
    turns: list[dict[str, str]] = []
    answer = [{"role": "assistant", "content": about.answer}] if about.answer.strip() else []
    for message in (*about.messages, *answer):
        if message["role"] in ("system", "developer"):
            continue
        side = "assistant" if message["role"] == "assistant" else "user"
        if turns and turns[-1]["role"] == side:
            turns[-1]["content"] += f"\n\n{_content(message)}"
        else:
            turns.append({"role": side, "content": _content(message)})
    return turns


def _content(message: Mapping[str, Any]) -> str:
    calls = message.get("tool_calls")
    told = [message.get("content") or "", json.dumps(calls, ensure_ascii=False, default=str) if calls else ""]
    return "\n".join(filter(None, told))


def _read(reply: Any) -> Score:
    found = _WORD.match(reply) if isinstance(reply, str) else None
    if found is None or (value := _FIRST_WORDS.get(found[1].lower())) is None:
        raise CheckError(
            "the external guard's reply begins with neither safe nor unsafe; take a guard model, or one that follows "
            "instructions, and switch its thoughts off with request"
        )
    return Score(value, " ".join(str(reply).split())[:_SHOWN])


def _categories(result: Any) -> dict[str, Any]:
    found = getattr(result, "categories", None)
    return found if isinstance(found, dict) else found.model_dump(by_alias=True) if found is not None else {}
