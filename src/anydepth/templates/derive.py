"""Find the Safety Tokens in what a chat template writes around the messages of a conversation."""

from dataclasses import dataclass, field, replace
from itertools import accumulate

from anydepth.errors import TemplateError
from anydepth.templates.channels import Openers, openers
from anydepth.templates.excerpts import ANSWER, Excerpts, excerpts
from anydepth.templates.pieces import pieces, says_something, shared_end, shared_start
from anydepth.templates.published import Channel
from anydepth.templates.rendering import Renderer

_UNPROVEN = "so that the Safety Tokens cannot be told"


@dataclass(frozen=True, slots=True)
class Layout:
    """How a template opens the assistant's turn.

    Attributes:
        header_ids: End of turn, then the generation prompt.
        answer_ids: What brings the answer channel after that; empty for ordinary templates.
        end: How many of `header_ids` are the end of turn; None where that is not known.
        openers: What a prompt may end with, and what then opens the answer.
        question: What opens a user's turn; empty where that is not known.
    """

    header_ids: tuple[int, ...]
    answer_ids: tuple[int, ...] = ()
    end: int | None = None
    openers: Openers = field(default_factory=Openers)
    question: str = ""


def derive(renderer: Renderer, channel: Channel | None) -> Layout:
    """Derive the layout of the assistant's turn, header = end of turn + generation prompt.

    The end of turn is the beginning of what stands between an answer and the next question; the generation prompt is
    the end of what follows the last question. Both are compared as text, and tokenised where they stand.

    Args:
        renderer: Renders messages.
        channel: How thoughts are written, where the template does not show it by itself.

    Raises:
        TemplateError: The template fails on a plain conversation, or shows no header of this form.
    """
    found = excerpts(renderer)
    end = _end(found, renderer.tokenizer)
    prompt = _prompt(found, end)
    written = bool(prompt.strip())
    if not written and found.lead.startswith(found.given):  # it opens the assistant's turn, but not when asked to
        prompt = found.lead.removeprefix(found.given)
        prompt = prompt.removeprefix(end) if not found.given.endswith(end) else prompt
    if not prompt.strip():
        raise TemplateError("the chat template writes nothing between a user's message and the assistant's answer")
    question = (found.between or "").removeprefix(end)
    ways = openers(renderer, found, prompt, channel, question=question, written=written)
    _prove(found, prompt, ways.stem, question)
    header_ids = renderer.ids_after(found.context, end + prompt)
    answer_ids = renderer.ids_after(found.context + end + prompt, ways.gap) if ways.gap.strip() else ()
    end_ids = renderer.ids_after(found.context, end)
    known = len(end_ids) if header_ids[: len(end_ids)] == end_ids else None
    return Layout(header_ids, answer_ids if written else (), known, ways, question)


def from_strings(renderer: Renderer, header: str, answer: str, derived: Layout | None) -> Layout:
    """Make a layout of a row's strings; what they do not say is taken from `derived`."""
    # An answer always comes before the header, so it is tokenised after a word.
    header_ids = renderer.ids_after(ANSWER["content"], header)
    base = replace(derived, header_ids=header_ids, end=None) if derived else Layout(header_ids)
    if not answer:
        return base
    ways = replace(base.openers, gap=answer) if derived else Openers(gap=answer, opening=answer)
    return replace(base, answer_ids=renderer.ids_after(header, answer), openers=ways)


def _end(found: Excerpts, tokenizer: object) -> str:
    """Return how an answer ends where the conversation goes on."""
    added = found.added
    tails = [tail for tail in (found.tail, found.asked_tail) if tail is not None]
    if added and found.asked_tail and found.asked_tail.endswith(added):
        tails.append(found.asked_tail.removesuffix(added))
    if found.between is None:  # one question and one answer are all that the template takes
        if len(tails) == 3:
            return tails[-1]
        raise TemplateError(f"the chat template refuses a second question, {_UNPROVEN}")
    ends = [tail for tail in tails if tail and found.between.startswith(tail)]
    opener, exact = _question_opener(found, str(getattr(tokenizer, "bos_token", None) or ""))
    if opener is not None:
        ends.append(found.between.removesuffix(opener))
    for each in _ends_of_questions(found, exact=exact):  # it may come behind an end that is the last answer's too
        ends += [
            end
            for end in (each, *(tail + each for tail in ends if tail.strip()))
            if end and found.between.startswith(end)
        ]
    if (opener := _opener_in_a_row(found)) and found.between.endswith(opener):
        ends.append(found.between.removesuffix(opener))
    if (at := _turn_opener(found)) > 0:
        ends.append(found.between[:at])
    if not ends:
        raise TemplateError(
            f"the chat template does not show where an answer ends and the next question begins, {_UNPROVEN}"
        )
    return max(ends, key=len)


def _question_opener(found: Excerpts, bos: str) -> tuple[str | None, bool]:
    """Return what opens a user's turn (None if it cannot be found), and whether nothing else stands before the first.

    What stands before the first question may end in more than the opener of its turn: a built-in system prompt ends as
    any turn does. So the shortest of several is taken.
    """
    assert found.between is not None
    if not found.starts[0].removeprefix(bos):
        silent = any(tail and found.between.startswith(tail) for tail in (found.tail, found.asked_tail))
        return (bos if found.between.endswith(bos) else None if silent else ""), True
    ends = [shared_end(found.between, start) for start in found.starts]
    opener = min((end for end in ends if says_something(end)), key=len, default=None)
    return opener, opener is not None and len(opener) >= len(found.starts[0].removeprefix(bos))


def _opener_in_a_row(found: Excerpts) -> str:
    """Return what opens a user's turn behind another question, less how that ends; empty if it cannot be found."""
    if found.twice is None:
        return ""
    closing = found.given.removesuffix(found.added) if found.added else shared_start(found.given, found.twice)
    opener = found.twice.removeprefix(closing) if found.added or not closing else ""
    return opener if says_something(opener) and found.twice.startswith(closing) else ""


def _turn_opener(found: Excerpts) -> int:
    """Return where in what stands between an answer and a question the opener of a turn begins, as the prompt does.

    Many templates open each turn with the same marker, and name the role after it. Below 1 if this one does not.
    """
    assert found.between is not None
    first = next((each for each in pieces(found.added or found.given) if each.strip()), "")
    return found.between.find(first) if says_something(first) else -1


def _ends_of_questions(found: Excerpts, *, exact: bool) -> list[str]:
    """Return how a question ends: most templates end every turn alike, and may leave it out for the last."""
    ends = []
    closing = found.given.removesuffix(found.added) if found.added else ""
    known = bool(closing) and (found.earlier_lead or "").startswith(closing)  # then the answer's turn begins behind it
    if found.earlier_lead and not known and not found.earlier_lead.startswith(found.given):
        written, wanted = pieces(found.earlier_lead), pieces(found.given)
        for start in range(1, len(written)):
            rest = written[start : start + len(wanted)]
            if wanted[: len(rest)] == rest and says_something("".join(rest)):
                ends.append("".join(written[:start]))
                break
    if not exact and found.added:
        ends.append(closing)
    return ends


def _prompt(found: Excerpts, end: str) -> str:
    """Return the generation prompt: what the template writes after an answer, else after a question, the end left out.

    A template that takes no notice of `add_generation_prompt` may have none of its own: then the end of the user's turn
    (`[/INST]`) is what opens the assistant's.
    """
    added = found.added
    if found.asked_tail and found.asked_tail.startswith(end):
        rest = found.asked_tail.removeprefix(end)
        joint = added.removesuffix(rest)  # what ends the question ends the answer too
        directly = added.endswith(rest) and end.endswith(joint)
        if rest.strip() and found.given.endswith(rest) and (directly or _opens(found, rest)):
            return _as_later(found, rest)
    if added:
        ended = found.given.removesuffix(added).endswith(end)
        return _as_later(found, added if ended else added.removeprefix(end))
    questions_end = found.given if found.twice is None else shared_start(found.given, found.twice)
    return _as_later(found, found.given.removeprefix(_joint(end, questions_end)))


def _joint(end: str, given: str) -> str:
    """Return the longest end of `end` with which `given` begins: how both turns end; spaces alone only if all of it."""
    if given.startswith(end):
        return end
    ends = accumulate(reversed(pieces(end)), lambda whole, each: each + whole)
    return max((each for each in ends if given.startswith(each) and each.strip(" ")), key=len, default="")


def _as_later(found: Excerpts, prompt: str) -> str:
    """Return what of the prompt after a first question stands after a later one too: some end a system prompt there."""
    if found.again is None or found.again.endswith(prompt):
        return prompt
    return shared_end(prompt, found.again)


def _opens(found: Excerpts, rest: str) -> bool:
    """Say whether `rest`, with which the prompt ends, begins as the turn of an answer in the conversation does."""
    before = len(found.given) - len(rest)
    leads = [lead for lead in (found.lead, found.earlier_lead) if lead is not None]
    return any(len(shared_start(found.given, lead)) > before for lead in leads)


def _prove(found: Excerpts, prompt: str, stem: str, question: str) -> None:
    """Raise TemplateError unless the prompt is what opens an answer in the conversation too.

    The end of turn is the beginning of what stands between an answer and the next question by the way it is found, and
    the prompt the end of what follows a question.
    """
    if found.again is not None and not found.again.endswith(prompt) and found.given.endswith(prompt):
        raise TemplateError(
            f"the chat template opens the answer to a first question with {_short(found.given)}, to a second one with "
            f"{_short(found.again)}, {_UNPROVEN}"
        )
    role = next((each for each in reversed(pieces(stem)) if each.strip()), "")
    leads = [lead for lead in (found.lead, found.earlier_lead) if lead is not None]
    before = found.given.removesuffix(prompt)
    # A template may open an answer's turn only to ask for it.
    bare = prompt == found.added and not any(lead.removeprefix(before).strip() for lead in leads)
    if stem.strip() == question.strip():
        raise TemplateError(f"the chat template opens an answer as a question, with {_short(question)}, {_UNPROVEN}")
    if not bare and not any(role in pieces(lead) for lead in leads):
        raise TemplateError(
            f"the chat template asks for an answer with {_short(found.given)}, but answers stand behind "
            f"{_short(found.lead)}, {_UNPROVEN}"
        )


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else "… " + text[-80:])
