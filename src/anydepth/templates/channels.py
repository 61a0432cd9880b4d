"""Find how a chat template sets thoughts apart from the answer, and what brings an answer after a generation prompt."""

from dataclasses import dataclass
from itertools import accumulate

from anydepth.templates.excerpts import Excerpts, thoughts_around
from anydepth.templates.pieces import pieces, shared_end, shared_start
from anydepth.templates.published import Channel
from anydepth.templates.rendering import Renderer
from anydepth.templates.roles import stem_of

_THOUGHT = "anydepththought"


@dataclass(frozen=True, slots=True)
class Openers:
    """What a prompt ends with, and what has to follow it before an answer can begin.

    Attributes:
        stem: The generation prompt up to the assistant's role, which every answer's turn has.
        rest: What follows the stem in an ordinary prompt, e.g. a line break, or the opener of a thinking section.
        gap: What follows an ordinary prompt before an answer: an answer opener, a space, or nothing.
        answer: What stands between the stem and an answer without thoughts.
        emptied: What stands between the stem and an answer with thoughts, the thoughts taken out; None if not known.
        opening: The assistant's opener of a template that writes no generation prompt; else empty.
        channel: How thoughts are written, or None.
    """

    stem: str = ""
    rest: str = ""
    gap: str = ""
    answer: str = ""
    emptied: str | None = None
    opening: str = ""
    channel: Channel | None = None

    def rest_of(self, text: str) -> str | None:
        """Return what follows the stem at the end of a prompt, None if the prompt opens no assistant's turn.

        Switches in the messages may change the ordinary end, and after a tool's result there may be none at all.
        """
        if text.endswith(self.stem + self.rest):
            return self.rest if self.stem else None
        _, found, rest = text.rpartition(self.stem or text)
        return rest if self.stem and found and self.only_opens(rest) else None

    def before_answer(self, rest: str | None) -> str:
        """Return what to write between a prompt that ends with the stem and `rest`, and the answer."""
        if rest is None:
            return self.opening
        if rest == self.rest:
            return self.gap
        return _way(rest, self.answer, self.emptied, self.channel)

    def continued(self, text: str, prefill: str) -> str:
        """Return what to write after the prompt `text` so that the answer begins with `prefill`.

        A prefill that begins with the opener of a channel stays in that channel; any other goes to the answer.
        """
        rest, channel = self.rest_of(text), self.channel
        gap = self.before_answer(rest)
        if channel is None:
            return gap + prefill
        opened = rest is not None and thinks(rest, channel)
        if opened and rest is not None and prefill.startswith(channel.think_open):
            written = rest[rest.rindex(channel.think_open) + len(channel.think_open) :]
            return prefill.removeprefix(channel.think_open).removeprefix(written)  # the prompt has opened it
        if prefill.startswith(channel.think_open) or (opened and channel.think_close in prefill):
            # A row's way into the answer (`gap`) is none into thoughts.
            return (self.opening if rest is None and self.opening != self.gap else "") + prefill
        if channel.answer_open and prefill.startswith(channel.answer_open):
            return gap.removesuffix(channel.answer_open) + prefill
        return gap + prefill

    def only_opens(self, rest: str) -> bool:
        """Say whether nothing of a message is in `rest`: only spaces, and what a prompt or an answer begins with."""
        channel = self.channel
        marks = (channel.think_open, channel.think_close, channel.skip, channel.answer_open) if channel else ()
        known = {
            each for text in (self.rest, self.gap, self.answer, self.emptied or "", *marks) for each in pieces(text)
        }
        return all(each.isspace() or each in known for each in pieces(rest))


def openers(
    renderer: Renderer, found: Excerpts, prompt: str, known: Channel | None, *, question: str, written: bool
) -> Openers:
    """Return what the template's prompts end with, and what brings the answer after it.

    Args:
        renderer: Renders messages.
        found: What the template writes around plain messages.
        prompt: The generation prompt.
        known: How thoughts are written according to `models.toml`; what the template itself shows comes first.
        question: What opens a user's turn.
        written: False if the template does not write the generation prompt.
    """
    leads = [lead for lead in (found.lead, found.earlier_lead) if lead is not None]
    around = thoughts_around(renderer, _THOUGHT)
    stem = stem_of(prompt, leads + ([around[0]] if around else []), known, question)
    rest = prompt.removeprefix(stem)
    answers = [_own(each, question) for each in (_after(lead, stem) for lead in leads) if each is not None]
    answer = answers[0] if answers else rest
    to = None if around is None else _after(around[0], stem)
    emptied = shown = None
    if around is not None and to is not None:
        emptied = to + around[1]
        shown = _shown(stem, rest, to, around[1], answers)
    channel = shown or known
    return Openers(
        stem=stem,
        rest=rest,
        gap=_way(rest, answer, emptied, channel) if written else "",
        answer=answer,
        emptied=emptied if shown else None,
        opening="" if written else found.lead.removeprefix(found.given),
        channel=channel,
    )


def thinks(text: str, channel: Channel) -> bool:
    """Say whether `text` opens a section of thoughts and does not close it."""
    return text.rfind(channel.think_open) > text.rfind(channel.think_close)


def _way(rest: str, answer: str, emptied: str | None, channel: Channel | None) -> str:
    """Return what has to follow the stem and `rest` so that the model answers: the template's own form, if it has one.

    The template may write `rest` before an answer without thoughts, before one whose thoughts are empty, or (a prompt
    that opens a section of thoughts, or has an empty one in it) before neither.
    """
    opened = channel is not None and thinks(rest, channel)
    for form in (answer, emptied):
        if form is not None and form.startswith(rest) and not (opened and not form[len(rest) :].strip()):
            return form.removeprefix(rest)
    other = answer.removeprefix(shared_start(answer, rest)).strip(" ")  # the spaces are the template's indentation
    other = other if other.strip() else ""
    if channel is None:
        return other
    if opened:
        opener = channel.think_open
        begun = rest[rest.rindex(opener) :]
        for form in (answer, emptied):
            _, _, after = (form or "").partition(opener)
            if (opener + after).startswith(begun) and (way := (opener + after)[len(begun) :]).strip():
                return way
        return (
            other if channel.think_close in other and opener not in other else channel.skip.removesuffix(other) + other
        )
    if channel.answer_open and channel.answer_open in rest:
        return ""  # the prompt has brought the answer already
    return other.rpartition(channel.think_close)[2] if channel.think_close in rest else other


def _shown(stem: str, rest: str, to: str, back: str, answers: list[str]) -> Channel | None:
    """Return the markers that stand around a thought.

    Args:
        stem: The generation prompt up to the assistant's role.
        rest: What follows the stem in an ordinary prompt.
        to: What follows the stem before a thought.
        back: What stands between a thought and the answer.
        answers: What follows the stem before answers without a thought.
    """
    base = rest
    think_open = to.removeprefix(rest).strip() if to.startswith(rest) else ""
    if not think_open:  # the prompt has the opener of the thoughts in it: what an answer without thoughts lacks
        base = max((shared_start(to, each) for each in answers), key=len, default="")
        think_open = to.removeprefix(base).strip()
    if _only_words(think_open):
        think_open = _marker(base, think_open, to + back)
    if not think_open and rest.startswith(to) and not any(each.startswith(rest) for each in answers):
        think_open = rest.removeprefix(to).strip()  # the prompt alone has it
    answer = answers[0] if answers else ""
    answer_open = answer.removeprefix(shared_start(answer, base)).strip()
    think_close, found, _ = back.rstrip().rpartition(answer_open) if answer_open else ("", "", "")
    if stem in think_close:  # a new turn of the assistant
        think_close = think_close[: think_close.index(stem)]
    if not found or not think_close.strip() or think_open in answer_open or not back.rstrip().endswith(answer_open):
        think_close, answer_open = back, ""
    if not think_open or not think_close.strip():
        return None
    return Channel(think_open, think_close.strip(), back, answer_open)


def _marker(before: str, word: str, text: str) -> str:
    """Return `word` with as many of the pieces before it as make a marker that stands once in `text`, else `word`.

    A word alone is no marker: thoughts and answers have words in them.
    """
    parts = reversed(pieces(before if word else before.rstrip()))
    longer = accumulate(parts, lambda whole, each: each + whole, initial=word)
    fit = (each for each in longer if not _only_words(each) and not each[0].isspace() and text.count(each) == 1)
    return next(fit, word)


def _only_words(text: str) -> bool:
    return all(each.isalnum() or each.isspace() for each in text)


def _own(answer: str, question: str) -> str:
    """Return what stands before an answer without the words, an instruction, that stand before questions too."""
    words = shared_end(answer, question)
    return answer.removesuffix(words) if " " in words.strip() else answer


def _after(text: str, stem: str) -> str | None:
    _, found, after = text.partition(stem)
    return after if found else None
