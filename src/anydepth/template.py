"""Derive the prompt, the Safety Tokens and the read token from a tokenizer's chat template."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from typing import Any

from anydepth.derive import Layout, Renderer, derive, from_strings
from anydepth.errors import ConfigError, PromptError, TemplateError
from anydepth.messages import normal, split_prefill
from anydepth.overrides import Channel, PublishedModel, channel_of, published, role_words
from anydepth.types import Message

__all__ = ["ChatTemplate", "Header", "Prompt", "PublishedModel", "published"]

_PROBE = "anydepthrolecontent"
_OWN_ARGUMENTS = {
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "conversation",
    "return_dict",
    "return_tensors",
    "sanitize_control_tokens",
    "tokenize",
    "tools",
}


@dataclass(frozen=True, slots=True)
class Header:
    r"""The Safety Tokens of a chat template: the tokens that separate the user from the assistant (arXiv 2510.18081).

    Attributes:
        ids: The Safety Tokens whole: end of turn, then the full generation prompt.
        read_index: Index in `ids` of the read token, whose hidden state is read.
        answer_ids: What must follow `ids` to be in the answer channel; empty for ordinary templates.
        tokens: Printable form of each of `ids`, line breaks written as `\n`.
    """

    ids: tuple[int, ...]
    read_index: int
    answer_ids: tuple[int, ...]
    tokens: tuple[str, ...]

    def __post_init__(self) -> None:
        if not 0 <= self.read_index < len(self.ids):
            raise ConfigError(
                f"read index is {self.read_index}, the header has {len(self.ids)} tokens {list(self.tokens)}; "
                f"choose 0 to {len(self.ids) - 1}"
            )

    @property
    def probe_ids(self) -> tuple[int, ...]:
        """The header up to the read token, which is all that a probe has to run."""
        return self.ids[: self.read_index + 1]

    def read_at(self, index: int) -> "Header":
        """Return the same header with another read token; ConfigError if `index` is out of range."""
        return replace(self, read_index=index)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt, ready for the model.

    Attributes:
        ids: The whole prompt, the client's assistant prefill included.
        prefill: How many of the last ids are the prefill, an opener of the answer channel before it included.
    """

    ids: tuple[int, ...]
    prefill: int = 0

    @property
    def start(self) -> int:
        """Position of depth 0: the length of the prompt without its prefill."""
        return len(self.ids) - self.prefill


class ChatTemplate:
    """What anydepth knows of a tokenizer's chat template.

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
        kwargs = _checked_kwargs(template_kwargs or {})
        row, text, own = self._template(tokenizer, kwargs)
        self._renderer = Renderer(tokenizer, None if own else text, kwargs)
        self.channel: Channel | None = channel_of(text)
        self._layout, used = self._lay_out(row, must_use=row is not None and (row.use == "always" or not own))
        self.channels = ("thinking", "answer") if self.channel else ("answer",)
        self.source = used.pattern if used else "derived"
        self.digest = _digest(text, kwargs, used)
        self.header = self._header(read_token, used)
        self._kept_roles = {"user": True}  # the derivation has seen it

    def prompt(
        self, messages: str | Sequence[Message], *, tools: Sequence[Any] | None = None, prefill: str | None = None
    ) -> Prompt:
        """Return the prompt that asks the model to answer `messages`.

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
        for role in {message["role"] for message in history} - {"assistant", "tool", "function"}:
            if not self._keeps(role):
                raise PromptError(f"the chat template of {self.name} drops messages of role {role!r}; use another role")
        text = self._render(history, tools) + self._layout.opener
        ids = tuple(self._renderer.ids(text))
        if not opening:
            return Prompt(ids)
        extra = self._renderer.ids_after(text, self._channelled(opening))
        return Prompt(ids + extra, prefill=len(extra))

    def text(self, messages: str | Sequence[Message]) -> str:
        """Return the text that `prompt` tokenises for `messages`; see there."""
        history, _ = split_prefill(normal(messages), None)
        return self._render(history, None) + self._layout.opener

    def start_index(self, prompt: Prompt, read_index: int) -> int | None:
        """Return where header token `read_index` stands in the prompt's own generation prompt.

        The header and the prompt before its prefill end alike. Header tokens after the read token may be missing there
        (an answer opener, a space): the longest header that the prompt ends with is aligned.

        Returns:
            A position in `prompt.ids`, or None if the generation prompt lacks that token.
        """
        before = prompt.ids[: prompt.start]
        for cut in range(len(self.header.ids), read_index, -1):
            ids = self.header.ids[:cut]
            if _common_suffix(ids, before) >= cut - read_index:
                return prompt.start - (cut - read_index)
        return None

    def _template(self, tokenizer: Any, kwargs: Mapping[str, Any]) -> tuple[PublishedModel | None, str, bool]:
        """Find the row of the model and the text of the chat template, and whether that is the tokenizer's own."""
        row = published(self.name)
        if own := _template_text(tokenizer):
            return row, own, True
        if row is not None and row.template:
            return row, row.template, False
        known = f"the row {row.pattern!r} of models.toml has no template" if row else "no row of models.toml fits it"
        raise TemplateError(
            f"the tokenizer of {self.name} has no chat template and {known}; use an instruction-tuned model, "
            "set tokenizer.chat_template, or write a row (docs/templates.md)"
        )

    def _lay_out(self, row: PublishedModel | None, *, must_use: bool) -> tuple[Layout, PublishedModel | None]:
        try:
            layout = derive(self._renderer, self.channel)
        except TemplateError as error:
            if row is None:
                raise TemplateError(f"{self.name}: {error}; write a row of models.toml (docs/templates.md)") from error
            return from_strings(self._renderer, row.header, row.answer, None), row
        if row is not None and must_use:
            return from_strings(self._renderer, row.header, row.answer, layout), row
        return layout, None

    def _header(self, read_token: int | str | None, row: PublishedModel | None) -> Header:
        ids = self._layout.header_ids
        header = Header(ids, 0, self._layout.answer_ids, self._printable(ids))
        if read_token is None:
            published_index = self._find(ids, row.read_token) if row and row.read_token else None
            return header.read_at(self._role_index(ids) if published_index is None else published_index)
        if isinstance(read_token, bool) or not isinstance(read_token, int | str):
            raise ConfigError(f"read token is {read_token!r}; give an index in the header or the text of a token")
        if isinstance(read_token, int):
            return header.read_at(read_token)
        if (index := self._find(ids, read_token)) is not None:
            return header.read_at(index)
        longer = self._with_answer_opener()  # the paper reads <|message|> and </think>, which are tokens of it
        if (index := self._find(longer, read_token)) is not None:
            return Header(longer, index, (), self._printable(longer))
        raise ConfigError(
            f"read token is {read_token!r}, the header of {self.name} is {list(self._printable(longer))}; "
            "choose one of these or an index"
        )

    def _with_answer_opener(self) -> tuple[int, ...]:
        """Return the header and the answer opener as one text: what merges over their border is one token.

        The paper injects `<think>`, an empty line and `</think>` whole, with one token for the two line breaks. Where
        decoding does not give back the text of the header, the ids are joined as they are.
        """
        header_ids, answer_ids = self._layout.header_ids, self._layout.answer_ids
        text = self._text(header_ids)
        if tuple(self._renderer.ids(text)) != header_ids:
            return header_ids + answer_ids
        return tuple(self._renderer.ids(text + self._text(answer_ids)))

    def _find(self, ids: Sequence[int], token: str) -> int | None:
        """Return the last index in `ids` whose token is spelled `token`: decoded, printable or as in the vocabulary.

        A word of several tokens is found too; its last token is meant.
        """
        spellings = zip(self._each(ids), self._printable(ids), self._vocabulary(ids), strict=True)
        found = [index for index, forms in enumerate(spellings) if token in forms]
        pieces = self._pieces(ids)
        starts = list(accumulate(map(len, pieces), initial=0))
        found += [
            end - 1
            for end in range(1, len(starts))
            if token and any("".join(pieces[start:end]).strip(" ") == token for start in range(end))
        ]
        return max(found, default=None)

    def _role_index(self, ids: Sequence[int]) -> int:
        """Return the index of the last token of the assistant's role, else of the last word before a channel opener."""
        pieces = self._pieces(ids)
        text = "".join(pieces)
        words = re.compile(rf"(?<![^\W_])(?:{'|'.join(map(re.escape, role_words()))})(?![^\W_])", re.IGNORECASE)
        ends = [match.end() for match in words.finditer(text)]
        if not ends:
            openers = (self.channel.think_open, self.channel.answer_open) if self.channel else ()
            cuts = [text.find(opener) for opener in openers if opener and opener in text]
            ends = [len(text[: min(cuts, default=len(text))].rstrip())]
        lengths = accumulate(map(len, pieces))
        return next(index for index, length in enumerate(lengths) if length >= ends[-1])

    def _pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each id as it stands in a sentence; decoded one at a time they lose their spaces."""
        return [name.replace("▁", " ").replace("Ġ", " ").replace("Ċ", "\n") for name in self._vocabulary(ids)]

    def _channelled(self, prefill: str) -> str:
        """Return what the prefill writes after the generation prompt: the answer channel is opened unless it thinks."""
        channel, layout = self.channel, self._layout
        if channel is None:
            return layout.gap + prefill
        if layout.opened and prefill.startswith(channel.think_open):
            return prefill.removeprefix(channel.think_open).removeprefix("\n")  # the generation prompt has opened it
        thinks = prefill.startswith(channel.think_open) or (layout.opened and channel.think_close in prefill)
        answers = channel.answer_open and prefill.startswith(channel.answer_open)
        return prefill if thinks or answers else layout.gap + prefill

    def _keeps(self, role: str) -> bool:
        """Say whether the template writes messages of `role`; some drop a role that they do not know without a word."""
        if role not in self._kept_roles:
            trial = [{"role": role, "content": _PROBE}, {"role": "user", "content": "user"}]
            try:
                self._kept_roles[role] = _PROBE in self._renderer.text(trial)
            except Exception:  # the template refuses this order or role; if it refuses the real messages, it says why
                self._kept_roles[role] = True
        return self._kept_roles[role]

    def _render(self, history: list[dict[str, Any]], tools: Sequence[Any] | None) -> str:
        try:
            return self._renderer.text(history, tools=list(tools) if tools else None)
        except Exception as error:  # whatever the template's author raises: TemplateError, TypeError, KeyError ...
            roles = [message["role"] for message in history]
            raise PromptError(
                f"the chat template of {self.name} refuses messages of roles {roles}: {error}; "
                "change the messages (roles and their order)"
            ) from error

    def _text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _each(self, ids: Sequence[int]) -> list[str]:
        return [self._text([each]) for each in ids]

    def _vocabulary(self, ids: Sequence[int]) -> list[str]:
        names = self.tokenizer.convert_ids_to_tokens(list(ids))
        return [name if isinstance(name, str) else text for text, name in zip(self._each(ids), names, strict=True)]

    def _printable(self, ids: Sequence[int]) -> tuple[str, ...]:
        """Decode each id by itself; where that gives nothing or half a character, take its name in the vocabulary."""
        spellings = zip(self._each(ids), self._vocabulary(ids), strict=True)
        named = [text if text and "\ufffd" not in text else name for text, name in spellings]
        return tuple(text.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t") for text in named)


def _template_text(tokenizer: Any) -> str:
    """Return the tokenizer's chat template as text; named templates (`default`, `tool_use`) as one JSON text."""
    template = getattr(tokenizer, "chat_template", None)
    return json.dumps(template, sort_keys=True, ensure_ascii=False) if isinstance(template, dict) else template or ""


def _digest(text: str, kwargs: Mapping[str, Any], row: PublishedModel | None) -> str:
    parts = [text]
    if kwargs:
        parts.append(json.dumps(kwargs, sort_keys=True, default=str))
    if row is not None:
        facts = asdict(row)
        parts.append(json.dumps({key: facts[key] for key in ("header", "answer", "read_token")}, sort_keys=True))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _checked_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    if taken := sorted(_OWN_ARGUMENTS & set(kwargs)):
        raise ConfigError(f"template_kwargs has {taken[0]!r}, which anydepth sets itself; leave it out")
    return dict(kwargs)


def _common_suffix(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many last items two sequences share."""
    length = 0
    while length < min(len(one), len(other)) and one[-1 - length] == other[-1 - length]:
        length += 1
    return length
