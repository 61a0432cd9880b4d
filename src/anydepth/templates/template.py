"""Derive the prompt, the Safety Tokens and the read token from a tokenizer's chat template."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from anydepth.errors import ConfigError, PromptError, TemplateError
from anydepth.templates import complaints
from anydepth.templates.call_formats import ToolFormat
from anydepth.templates.derive import Layout, derive, from_strings
from anydepth.templates.header import CONTENT, Header, Spelling, behind_last
from anydepth.templates.kept import Kept
from anydepth.templates.messages import normal, other_arguments, split_prefill
from anydepth.templates.prompt import Prompt
from anydepth.templates.proposed_call import CallPrompt, CallWriter
from anydepth.templates.published import Channel, PublishedModel, channel_of, published
from anydepth.templates.rendering import Renderer, checked_kwargs
from anydepth.templates.roles import role_end
from anydepth.templates.template_digest import template_digest, template_text
from anydepth.types import Message

_LAST = 256
"""How many of a prompt's last tokens are looked at for its generation prompt where the role has other tokens there."""


class ChatTemplate:
    """Prompts and Safety Tokens, derived from a tokenizer's chat template.

    Attributes:
        tokenizer: The tokenizer it was derived from.
        name: Hub id or path, for messages and for rows of `models.toml`.
        header: The Safety Tokens.
        digest: SHA-256 (hex) of the chat template, of `template_kwargs` if there are any and of the row if one is used.
        source: `derived`, or the pattern of the `models.toml` row that the header was taken from.
        channels: `("answer",)`, or `("thinking", "answer")` for a template that writes thoughts.
        channel: The strings that set thoughts apart, or None.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        name: str | None = None,
        read_token: int | str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Derive everything from `tokenizer`, a Transformers tokenizer.

        Args:
            tokenizer: The tokenizer; nothing else of the model is needed.
            name: Hub id or local path; the tokenizer's own by default.
            read_token: Index in the header, or text of one of its tokens (the last that matches); by default the last
                token of the assistant's role. Text that is only in the answer opener moves that opener into the header.
            template_kwargs: Variables for the template, e.g. `{"enable_thinking": False}`.

        Raises:
            TemplateError: There is no chat template and no row for the model, or nothing can be derived from it.
            ConfigError: `read_token` is not in the header, or `template_kwargs` are not the template's to set.
        """
        self.tokenizer = tokenizer
        self.name = str(name or getattr(tokenizer, "name_or_path", "") or "this tokenizer")
        kwargs = checked_kwargs(template_kwargs or {})
        row, text, own = self._template(tokenizer)
        self._renderer = Renderer(tokenizer, None if own else text, kwargs).fitted()
        if not self._renderer.writes():
            raise TemplateError(f"{self.name}: {complaints.of_template(self._renderer)}")
        self._spelling = Spelling(tokenizer)
        known = channel_of(text)
        self._layout, used = self._lay_out(row, known, must_use=row is not None and (row.use == "always" or not own))
        self.channel: Channel | None = self._layout.openers.channel or known
        self.channels = ("thinking", "answer") if self.channel else ("answer",)
        self.source = used.pattern if used else "derived"
        self.digest = template_digest(text, kwargs, used)
        self._role = self._role_index()
        self.header = self._header(read_token, used)
        self._kept = Kept(self._renderer)
        if used is None and not self._layout.openers.opening:
            self._prove()

    def prompt(
        self, messages: str | Sequence[Message], *, tools: Sequence[Any] | None = None, prefill: str | None = None
    ) -> Prompt:
        """Return the prompt whose continuation answers `messages`.

        The ids are those of `apply_chat_template(add_generation_prompt=True)`. A prefill is tokenised after them, never
        with them: the prompt before it is the same with and without it, and its trailing whitespace stays. If there is
        a thinking channel, a prefill goes to the answer channel unless it begins with the thinking opener.

        Args:
            messages: The conversation, or the text of one user message. A last message of the assistant is a prefill.
            tools: Tool schemas for the template.
            prefill: How the assistant's answer begins.

        Raises:
            PromptError: The messages are empty or malformed, the template refuses or drops them, or a prefill is given
                both ways.
        """
        history, opening = split_prefill(normal(messages), prefill)
        text = self._render(history, tools)
        ids = tuple(self._renderer.ids(text))
        if not opening:
            return Prompt(ids, messages=tuple(history))
        extra = self._renderer.ids_after(text, self._layout.openers.continued(text, opening))
        return Prompt(ids + extra, len(extra), tuple(history))

    def call_prompt(
        self,
        messages: str | Sequence[Message],
        tool_call: Mapping[str, Any],
        *,
        tools: Sequence[Any] | None = None,
        written: ToolFormat | None = None,
    ) -> CallPrompt:
        """Return the prompt whose prefill is the assistant's turn that proposes `tool_call`, end of turn left out.

        The call is written by the template, which gets the arguments as an object, or as text if it takes no other.

        Args:
            messages: The conversation. A last message of the assistant is that turn: its text stands beside the call,
                and calls of its own are left out.
            tool_call: The call, as `read_call` takes it.
            tools: Tool schemas for the template.
            written: How the call is written where the template writes none.

        Raises:
            PromptError: The call or the messages are malformed or refused, or nobody knows how the model writes calls.
        """
        end = self.words(self._layout.header_ids[: self._layout.end]) if self._layout.end else ""
        writer = CallWriter(self._renderer, self._layout.openers, end, self.name)
        return writer.prompt(messages, tool_call, self._render, tools=tools, written=written)

    def text(self, messages: str | Sequence[Message]) -> str:
        """Return the text that `prompt` tokenises for `messages`; see there."""
        history, _ = split_prefill(normal(messages), None)
        return self._render(history, None)

    def answer_ids(self, prompt: Prompt) -> tuple[int, ...]:
        """Return what must follow `prompt`, before its prefill, to be in the answer channel.

        For most prompts these are `header.answer_ids`. Switches in the messages and tool results may change how a
        prompt ends, and with it what is needed.
        """
        before, openers = prompt.ids[: prompt.start], self._layout.openers
        if self._layout.end is None:  # a row's header: how a prompt ends is not known
            return self.header.answer_ids
        ordinary = self._layout.header_ids[self._layout.end :]
        if before[-len(ordinary) :] == ordinary:
            return self._layout.answer_ids
        role = self._role_in(before)
        spelled = self._spelling.text(before[-_LAST:] if role is None else before[role + 1 :])
        rest = openers.rest_of(spelled) if role is None else spelled
        text = openers.before_answer(rest)
        return self._renderer.ids_after(openers.stem + (rest or ""), text) if text.strip() else ()

    def words(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, special tokens included."""
        return self._spelling.text(ids)

    def start_index(self, prompt: Prompt, read_index: int) -> int | None:
        """Return where header token `read_index` stands in the prompt's own generation prompt.

        The header and the prompt before its prefill have the assistant's role in common. What follows it may be
        missing or another (an answer opener, a space, thoughts that a message has switched off).

        Returns:
            A position in `prompt.ids`, or None if the generation prompt lacks that token.
        """
        before, ids = prompt.ids[: prompt.start], self.header.ids
        role = self._role_in(before)
        if role is not None:
            place = role + read_index - self._role
            first, last = sorted((read_index, self._role))
            start = min(place, role)
            return place if start >= 0 and before[start : max(place, role) + 1] == ids[first : last + 1] else None
        for cut in range(len(ids), read_index, -1):
            if before[read_index - cut :] == ids[read_index:cut]:
                return prompt.start - (cut - read_index)
        return self._role_spelled_in(before) if read_index == self._role else None

    def turn_begin(self, ids: Sequence[int]) -> int | None:
        """Return where the answer begins in `ids`: behind the last generation prompt; None if there is none.

        A generation prompt counts if it is there up to the assistant's role, whatever token is read for a check.
        """
        before, header, end = tuple(ids), self._layout.header_ids, self._layout.end
        if self._role_in(before) is not None or self._role_spelled_in(before) is not None:
            return len(before)
        return behind_last(before, header[end or 0 : self._role + 1], self.header.ids[self._role + 1 :])

    def header_start(self, prompt: Prompt) -> int:
        """Return where the header of depth 0 begins: within the prompt, or behind it where the prompt lacks it."""
        first = self.start_index(prompt, 0)
        return prompt.start if first is None else first

    def position(self, prompt: Prompt, token: int, depth: int = 0) -> int | None:
        """Return where the state of one header token, or of `CONTENT`, stands in the text that is read at `depth`.

        That text is the prompt without its prefill and `depth` tokens of the answer, with the header behind them; at
        depth 0 the header is the prompt's own generation prompt.

        Returns:
            A position from 0, or None if the generation prompt lacks that token of the header (depth 0 only).
        """
        if depth:
            return prompt.start + depth + token
        return self.header_start(prompt) - 1 if token == CONTENT else self.start_index(prompt, token)

    def _role_in(self, before: tuple[int, ...]) -> int | None:
        """Return where the last token of the assistant's role is in the generation prompt that `before` ends with."""
        stem = () if self._layout.end is None else self._layout.header_ids[self._layout.end : self._role + 1]
        if not stem:
            return None
        for end in range(len(before), len(stem) - 1, -1):
            if before[end - len(stem) : end] == stem:
                return end - 1 if self._layout.openers.only_opens(self._spelling.text(before[end:])) else None
        return None

    def _role_spelled_in(self, before: tuple[int, ...]) -> int | None:
        """Return the same of an ordinary prompt in which the role has other tokens than behind an answer's end."""
        openers = self._layout.openers
        stem, whole = openers.stem.strip(), (openers.stem + openers.rest).strip()
        for start in range(len(before) - 1, -1, -1):
            text = self._spelling.text(before[start:]).strip()
            if stem and text == whole:
                ends = range(start + 1, len(before) + 1)
                return next(end - 1 for end in ends if stem in self._spelling.text(before[start:end]))
            if len(text) > len(whole):
                return None
        return None

    def _template(self, tokenizer: Any) -> tuple[PublishedModel | None, str, bool]:
        """Find the row of the model and the text of the chat template, and whether that is the tokenizer's own."""
        row = published(self.name)
        if own := template_text(tokenizer):
            return row, own, True
        if row is not None and row.template:
            return row, row.template, False
        known = f"the row {row.pattern!r} of models.toml has no template" if row else "no row of models.toml fits it"
        raise TemplateError(
            f"the tokenizer of {self.name} has no chat template and {known}; use an instruction-tuned model, "
            "set tokenizer.chat_template, or write a row (docs/templates.md)"
        )

    def _lay_out(
        self, row: PublishedModel | None, known: Channel | None, *, must_use: bool
    ) -> tuple[Layout, PublishedModel | None]:
        try:
            layout = derive(self._renderer, known)
        except TemplateError as error:
            if row is None:
                remedy = complaints.blamed(self._renderer, lambda other: _derivable(other, known))
                remedy = remedy or "write a row of models.toml"
                raise TemplateError(f"{self.name}: {error}; {remedy} (docs/templates.md)") from error
            return from_strings(self._renderer, row.header, row.answer, None), row
        if row is not None and must_use:
            return from_strings(self._renderer, row.header, row.answer, layout), row
        return layout, None

    def _prove(self) -> None:
        """Raise TemplateError unless a prompt has the assistant's role where depth 0 is read."""
        ids = self.prompt("text").ids
        if self.start_index(Prompt(ids), self._role) is None:
            header = self._layout.header_ids
            found, wanted = (list(self._spelling.printable(each)) for each in (ids[-len(header) :], header))
            raise TemplateError(
                f"{self.name}: a prompt ends with the tokens {found}, the Safety Tokens are {wanted}: depth 0 is "
                'not found in a prompt; write a row of models.toml with use = "always": its header is put behind the '
                "prompt (docs/templates.md)"
            )

    def _header(self, read_token: int | str | None, row: PublishedModel | None) -> Header:
        ids, spelling = self._layout.header_ids, self._spelling
        header = Header(ids, 0, self._layout.answer_ids, spelling.printable(ids))
        if read_token is None:
            published_index = spelling.find(ids, row.read_token) if row and row.read_token else None
            return header.read_at(self._role if published_index is None else published_index)
        if isinstance(read_token, bool) or not isinstance(read_token, int | str):
            raise ConfigError(f"read token is {read_token!r}; give an index in the header or the text of a token")
        if isinstance(read_token, int):
            return header.read_at(read_token)
        if (index := spelling.find(ids, read_token)) is not None:
            return header.read_at(index)
        longer = self._with_answer_opener()  # the paper reads <|message|> and </think>, which are tokens of it
        if (index := spelling.find(longer, read_token)) is not None:
            return Header(longer, index, (), spelling.printable(longer))
        raise ConfigError(
            f"read token is {read_token!r}, the header of {self.name} is {list(spelling.printable(longer))}; "
            "choose one of these or an index"
        )

    def _with_answer_opener(self) -> tuple[int, ...]:
        """Return the header and the answer opener as one text: what merges over their border is one token.

        The paper injects `<think>`, an empty line and `</think>` whole, with one token for the two line breaks. Where
        decoding does not give back the text of the header, the ids are joined as they are.
        """
        header_ids, answer_ids = self._layout.header_ids, self._layout.answer_ids
        text = self._spelling.text(header_ids)
        if tuple(self._renderer.ids(text)) != header_ids:
            return header_ids + answer_ids
        return tuple(self._renderer.ids(text + self._spelling.text(answer_ids)))

    def _role_index(self) -> int:
        """Return the index in the header of the last token of the assistant's role; see `role_end`."""
        pieces = self._spelling.pieces(self._layout.header_ids)
        ends = list(accumulate(map(len, pieces)))
        begin = sum(map(len, pieces[: self._layout.end or 0]))
        end = begin + role_end("".join(pieces)[begin:], self.channel, self._layout.question)
        return next((index for index, length in enumerate(ends) if length >= end), len(ends) - 1)

    def _render(self, history: list[dict[str, Any]], tools: Sequence[Any] | None) -> str:
        """Return the prompt as the template writes it, PromptError if it refuses or drops a message."""
        history, text = self._accepted(history, tools)
        if (lost := self._kept.dropped(history, tools, text)) is not None:
            raise PromptError(
                f"the chat template of {self.name} drops messages of role {history[lost]['role']!r} in the "
                f"place of message {lost}; put its text into another message, or use another role"
            )
        return text

    def _accepted(self, history: list[dict[str, Any]], tools: Sequence[Any] | None) -> tuple[list[dict[str, Any]], str]:
        """Return the messages as the template takes them, and what it writes; they differ in tool calls only."""
        try:
            return history, self._renderer.text(history, tools=tools)
        except Exception as error:  # whatever the template's author raises: TemplateError, TypeError, KeyError ...
            for other in other_arguments(history):  # the first error is of the messages as they were given
                if (text := self._renderer.tried(other, tools=tools)) is not None:
                    return other, text
            reason = complaints.of_messages(self._renderer, history, tools, error)
            raise PromptError(f"the chat template of {self.name} {reason}") from error


def _derivable(renderer: Renderer, known: Channel | None) -> bool:
    try:
        derive(renderer.fitted(), known)
    except TemplateError:
        return False
    return True
