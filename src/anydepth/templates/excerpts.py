"""Take from a few short conversations what a chat template writes before, between and after their messages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anydepth.errors import TemplateError
from anydepth.templates.pieces import shared_start
from anydepth.templates.rendering import Renderer

# Single words that end in a letter: a template cannot trim them, and no vocabulary merges a letter with a line break.
QUESTION = {"role": "user", "content": "anydepthquestion"}
ANSWER = {"role": "assistant", "content": "anydepthanswer"}
NEXT = {"role": "user", "content": "anydepthnext"}
_RULES = {"role": "system", "content": "anydepthrules"}
_WORDS = [message["content"] for message in (QUESTION, ANSWER, NEXT, _RULES)]


@dataclass(frozen=True, slots=True)
class Excerpts:
    """What a template writes around a question, the answer to it and a next question; None where it refuses to.

    Attributes:
        starts: Before the first question: alone, and after a system message if the template takes one.
        given: After a question that is to be answered; the prompt ends with it.
        added: What of `given` is there only because an answer is asked for.
        lead: Between a question and its answer, where the answer is the last message if that can be had.
        earlier_lead: Between a question and its answer, where the conversation goes on.
        between: Between an answer and the next question.
        twice: Between two questions in a row.
        again: After a next question that is to be answered.
        asked_tail: After an answer that is the last message, where another answer is asked for.
        tail: After an answer that is the last message.
        context: Text up to the end of an answer, of whatever conversation could be had.
    """

    starts: tuple[str, ...]
    given: str
    added: str
    lead: str
    earlier_lead: str | None
    between: str | None
    twice: str | None
    again: str | None
    asked_tail: str | None
    tail: str | None
    context: str


def excerpts(renderer: Renderer) -> Excerpts:
    """Return what the template writes around plain messages.

    Raises:
        TemplateError: It fails on them, loses their text, or writes the text of one of them a second time.
    """
    asked = _plain(renderer, [QUESTION])
    closed = renderer.tried([QUESTION], generate=False) or asked
    given = _after(asked, QUESTION)
    # Some templates refuse to go on after an answer, or a conversation that ends in one.
    turn, asked_turn = (renderer.tried([QUESTION, ANSWER], generate=generate) for generate in (False, True))
    going_on = _holding(renderer.tried([QUESTION, ANSWER, NEXT]), ANSWER, NEXT)
    all_three = _holding(going_on, QUESTION)  # some templates write the last messages only
    whole = turn or all_three or _plain(renderer, [QUESTION, ANSWER])
    ruled = renderer.tried([_RULES, QUESTION])
    starts = [asked[: _find(asked, QUESTION)]]
    if ruled is not None and 0 <= ruled.find(_RULES["content"]) < ruled.find(QUESTION["content"]):
        starts.append(_between(ruled, _RULES, QUESTION))
    twice = renderer.tried([QUESTION, NEXT], generate=False)
    if twice is not None and not 0 <= twice.find(QUESTION["content"]) < twice.find(NEXT["content"]):
        twice = None
    found = Excerpts(
        starts=tuple(starts),
        given=given,
        added=given.removeprefix(shared_start(given, _after(closed, QUESTION))),
        lead=_between(whole, QUESTION, ANSWER),
        earlier_lead=None if all_three is None else _between(all_three, QUESTION, ANSWER),
        between=None if going_on is None else _between(going_on, ANSWER, NEXT),
        twice=None if twice is None else _between(twice, QUESTION, NEXT),
        again=None if going_on is None else _after(going_on, NEXT),
        asked_tail=None if asked_turn is None else _after(asked_turn, ANSWER),
        tail=None if turn is None else _after(turn, ANSWER),
        context=whole[: _find(whole, ANSWER) + len(ANSWER["content"])],
    )
    _refuse_repetition(found)
    return found


def thoughts_around(renderer: Renderer, thought: str) -> tuple[str, str] | None:
    """Return what the template writes between a question and the thought `thought`, and from there to the answer.

    The names are those that Transformers and its models know for the field; None if the template writes none of them.
    """
    names = ("reasoning_content", "reasoning", "thinking")
    for fields in (names, *((name,) for name in names)):
        answer = {**ANSWER, **dict.fromkeys(fields, thought)}
        for history in ([QUESTION, answer], [QUESTION, answer, NEXT]):
            text = renderer.tried(history, generate=len(history) == 3)
            if text is not None and text.count(thought) == 1:
                before, after = text.split(thought)
                if QUESTION["content"] in before and ANSWER["content"] in after:
                    return _after(before, QUESTION), after[: after.index(ANSWER["content"])]
    return None


def _plain(renderer: Renderer, messages: Sequence[Any]) -> str:
    try:
        return renderer.text(messages)
    except Exception as error:  # whatever the template's author raises
        raise TemplateError(f"the chat template fails on a plain conversation: {error}") from error


def _holding(text: str | None, *messages: Mapping[str, Any]) -> str | None:
    """Return `text` if the content of all `messages` is in it, else None."""
    return text if text is not None and all(message["content"] in text for message in messages) else None


def _find(text: str, message: Mapping[str, Any]) -> int:
    position = text.rfind(message["content"])
    if position < 0:
        raise TemplateError(f"the chat template does not write the content of a message of role {message['role']}")
    return position


def _after(text: str, message: Mapping[str, Any]) -> str:
    return text[_find(text, message) + len(message["content"]) :]


def _between(text: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    return text[_find(text, first) + len(first["content"]) : _find(text, second)]


def _refuse_repetition(found: Excerpts) -> None:
    written = (found.given, found.lead, found.earlier_lead, found.between, found.again, found.asked_tail, found.tail)
    if any(word in text for word in _WORDS for text in written if text):
        raise TemplateError(
            "the chat template writes the text of a message again behind a later one, so that it cannot be told where "
            "a turn begins"
        )
