"""Find the Safety Tokens in what a chat template writes around two sentinel messages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from anydepth.errors import TemplateError
from anydepth.overrides import Channel

# Single words that end in a letter: a template cannot trim them, and no vocabulary merges a letter with a line break.
_QUESTION = {"role": "user", "content": "anydepthquestion"}
_ANSWER = {"role": "assistant", "content": "anydepthanswer"}
_NEXT = {"role": "user", "content": "anydepthnext"}


@dataclass(frozen=True, slots=True)
class Layout:
    """How a template opens the assistant's turn.

    Attributes:
        header_ids: End of turn, then the generation prompt.
        answer_ids: What brings the answer channel after that; empty for ordinary templates.
        gap: Text between the generation prompt and an answer: an answer opener, or a space.
        opener: Generation prompt of a template that ignores `add_generation_prompt`; prompts end with it.
        opened: True if the generation prompt ends with the opener of a thinking section.
    """

    header_ids: tuple[int, ...]
    answer_ids: tuple[int, ...] = ()
    gap: str = ""
    opener: str = ""
    opened: bool = False


@dataclass(frozen=True, slots=True)
class Renderer:
    """Messages as a tokenizer's chat template writes them, as text and as ids.

    Attributes:
        tokenizer: The tokenizer.
        template: A chat template to use instead of the tokenizer's own, or None.
        kwargs: Variables for the template.
    """

    tokenizer: Any
    template: str | None
    kwargs: Mapping[str, Any]

    def text(self, messages: Sequence[Any], *, generate: bool = True, tools: list[Any] | None = None) -> str:
        """Render `messages`; raises whatever the template raises."""
        return self.tokenizer.apply_chat_template(
            list(messages),
            tools=tools,
            chat_template=self.template,
            add_generation_prompt=generate,
            tokenize=False,
            **self.kwargs,
        )

    def ids(self, text: str) -> list[int]:
        """Tokenise rendered text; `bos` is what the template wrote, the tokenizer must not add a second one."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def ids_after(self, context: str, text: str) -> tuple[int, ...]:
        """Return the ids of `text` where it follows `context`, whose own ids stay as they are.

        The difference of ids is right also for tokenizers that put a space before what they take for a beginning. Where
        `text` would merge with the end of `context` it is tokenised by itself: at run time the tokens before it are
        fixed already, and nothing can merge with them.
        """
        before, whole = self.ids(context), self.ids(context + text)
        if whole[: len(before)] == before:
            return tuple(whole[len(before) :])
        return tuple(self.ids(text))


def derive(renderer: Renderer, channel: Channel | None) -> Layout:
    """Derive the layout of the assistant's turn: header = what follows a sentinel answer + generation prompt.

    Raises:
        TemplateError: The template fails on, or loses, a plain user message or the answer to it.
    """
    asked, closed = _render(renderer, [_QUESTION], True), _render(renderer, [_QUESTION], False)
    turn = _render(renderer, [_QUESTION, _ANSWER], False)
    lead = _between(turn, _QUESTION, _ANSWER)
    given = _after(asked, _QUESTION)
    added = _added(renderer.ids(asked), renderer.ids(closed))
    opener = gap = ""
    if lead.startswith(given):
        gap = lead.removeprefix(given)
        if not added and gap.strip():
            opener, gap = gap, ""  # the template opens the assistant's turn, but not when asked to
    opened = channel is not None and given.rstrip().endswith(channel.think_open)
    if channel is not None and opened and not gap.strip():
        gap = channel.skip
    header_ids = _header_ids(renderer, asked + opener, added)
    answer_ids = renderer.ids_after(asked + opener, gap) if gap.strip() else ()
    return Layout(header_ids, answer_ids, gap, opener, opened)


def from_strings(renderer: Renderer, header: str, answer: str, derived: Layout | None) -> Layout:
    """Make a layout of a row's strings; what they do not say is taken from `derived`."""
    # An answer always comes before the header, so it is tokenised after a word.
    header_ids = renderer.ids_after(_ANSWER["content"], header)
    base = derived or Layout(header_ids)
    if not answer:
        return replace(base, header_ids=header_ids)
    return replace(base, header_ids=header_ids, answer_ids=renderer.ids_after(header, answer), gap=answer)


def _header_ids(renderer: Renderer, asked: str, added: tuple[int, ...]) -> tuple[int, ...]:
    plain, full = _tail(renderer, False), _tail(renderer, True)
    if len(full) > len(plain) and full[: len(plain)] == plain and plain:
        return full
    if added and len(full) > len(added) and full[-len(added) :] == added:
        return full  # the template ends the last turn differently when it is asked to go on (harmony)
    # No generation prompt after an answer. Either the template has none ([/INST]): it is then what follows the user's
    # message, less an end of turn that the assistant's turn has too; or it writes one after a user's message only.
    end = plain or _end_within(renderer)
    if added:
        return end + added
    cut = asked.rindex(_QUESTION["content"]) + len(_QUESTION["content"])
    prompt = renderer.ids_after(asked[:cut], asked[cut:])
    if end and prompt[: len(end)] == end:
        prompt = prompt[len(end) :]
    if not end + prompt:
        raise TemplateError("the chat template writes nothing between a user's message and the assistant's answer")
    return end + prompt  # `end` alone: the template writes the generation prompt whether asked to or not


def _tail(renderer: Renderer, generate: bool) -> tuple[int, ...]:
    """Ids after a sentinel answer that is the last message."""
    try:
        text = renderer.text([_QUESTION, _ANSWER], generate=generate)
    except Exception:
        if not generate:
            raise
        return ()  # some templates refuse a generation prompt after an assistant's message
    cut = _find(text, _ANSWER) + len(_ANSWER["content"])
    return renderer.ids_after(text[:cut], text[cut:])


def _end_within(renderer: Renderer) -> tuple[int, ...]:
    """Ids of the end of turn of a template that writes it only where another turn follows."""
    text = _render(renderer, [_QUESTION, _ANSWER, _NEXT], True)
    cut = _find(text, _ANSWER) + len(_ANSWER["content"])
    between = renderer.ids_after(text[:cut], text[cut : _find(text, _NEXT)])
    user = renderer.ids(text[: _find(text, _QUESTION)])
    while between and user and between[-1] == user[-1]:  # take off the opener of the user's turn
        between, user = between[:-1], user[:-1]
    return between


def _added(asked: list[int], closed: list[int]) -> tuple[int, ...]:
    """Ids that `add_generation_prompt` adds; compared as ids, as a template may write eos instead when it is off."""
    common = 0
    while common < min(len(asked), len(closed)) and asked[common] == closed[common]:
        common += 1
    return tuple(asked[common:])


def _render(renderer: Renderer, messages: Sequence[Any], generate: bool) -> str:
    try:
        return renderer.text(messages, generate=generate)
    except Exception as error:  # whatever the template's author raises
        raise TemplateError(f"the chat template fails on a plain conversation: {error}") from error


def _find(text: str, message: Mapping[str, str]) -> int:
    position = text.rfind(message["content"])
    if position < 0:
        raise TemplateError(f"the chat template does not write the content of a message of role {message['role']}")
    return position


def _after(text: str, message: Mapping[str, str]) -> str:
    return text[_find(text, message) + len(message["content"]) :]


def _between(text: str, first: Mapping[str, str], second: Mapping[str, str]) -> str:
    return text[_find(text, first) + len(first["content"]) : _find(text, second)]
