"""Make training conversations in which the prompt gives nothing away, so that the answer must be judged.

An adversarial prompt misleads a probe that was trained where prompts and answers agree. `wrap` puts requests of both
classes into the frames of jailbreak prompts; `swap` puts answers under prompts that are not theirs: harmful ones under
harmless prompts, harmless ones under harmful prompts. Every choice is made by a digest, not by a position: the same
conversation always becomes the same one.
"""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from typing import Any

from anydepth.conversations.dataset import Conversation, digest, normalise
from anydepth.conversations.splits import Text
from anydepth.digests import digest_number
from anydepth.errors import ConfigError
from anydepth.files import packaged_toml

_WORDS = (
    "interface manual describing sure tutorial whichever table opposite write following revert bullet plain sentence "
    "oppositely formatting instead please reply similarly now letter title begin step two list polite summary index"
)
_SYMBOLS = r"\+ !! ]( ** }} {( ;) == -- :: </ <- \" ?( @{ $\ ++ ~~ ([ == !-- ## \( // [( )=> *) +Sure Step ### {\""
_EARLIER = 40
"""Words of an earlier answer that stand before a prompt."""

_WORD = re.compile(r"\S+")


@dataclass(frozen=True, slots=True)
class Frame:
    """A text around a request; with `noise` a random suffix of `words` or `symbols` is part of it."""

    name: str
    text: str
    noise: str | None = None

    def around(self, request: str, seed: str) -> str:
        """The framed request."""
        noise = ""
        if self.noise is not None:
            choose = random.Random(f"{seed}/{self.name}")
            words = _WORDS.split()
            pool = words if self.noise == "words" else words[:12] + _SYMBOLS.split()
            noise = " ".join(choose.choices(pool, k=choose.randint(10, 22)))
        return self.text.format(request=request, noise=noise)


@cache
def frames() -> tuple[Frame, ...]:
    """The frames of `data/wrappers.toml`."""
    return tuple(Frame(**entry) for entry in packaged_toml("wrappers.toml")["frame"])


def wrap(conversations: Sequence[Conversation]) -> list[Conversation]:
    """Each conversation with its last user message in a frame; label, answer and earlier messages stay."""
    choices = frames()
    return [
        _with_messages(each, _framed(each, choices[digest_number(f"frame/{each.id}") % len(choices)]), "wrap")
        for each in conversations
    ]


def swap(answers: Sequence[Conversation], prompts: Sequence[Conversation], *, turns: int = 1) -> list[Conversation]:
    """Each of `answers` under the prompt of one of `prompts`, never its own; label and source are the answer's.

    Args:
        answers: Conversations whose answers are used, of either label.
        prompts: Conversations whose prompts are used and, for `turns` of 2 or more, their harmless answers.
        turns: Number of user turns: before the prompt stand `turns - 1` exchanges, each the prompt of a harmless answer
            and the first 40 words of that answer.

    Raises:
        ConfigError: There is no prompt to swap in for an answer, or too few harmless answers for the earlier turns.
    """
    if not prompts:
        raise ConfigError("there are no prompts to put the answers under; select some harmless conversations")
    exchanges = [row for row in prompts if row.label == "benign" and row.response] if turns > 1 else []
    return [_swapped(each, prompts, exchanges, turns) for each in answers]


def _swapped(
    answer: Conversation, prompts: Sequence[Conversation], exchanges: Sequence[Conversation], turns: int
) -> Conversation:
    prompt, *earlier = others_for(answer, prompts, exchanges, turns=turns)
    messages = []
    for each in earlier:
        messages += [each.messages[-1], {"role": "assistant", "content": first_words(each.response, _EARLIER)}]
    lead = next((n for n, each in enumerate(prompt.messages) if each.get("role") != "system"), 0)
    moved = _with_messages(answer, (*prompt.messages[:lead], *messages, *prompt.messages[lead:]), "swap")
    return replace(moved, tags={**moved.tags, **host_tags(prompt)})


def others_for(
    answer: Conversation,
    prompts: Sequence[Conversation],
    exchanges: Sequence[Conversation] = (),
    *,
    turns: int = 1,
    name: str = "swap",
) -> list[Conversation]:
    """The conversations that `answer` is put under: one of `prompts`, then `turns - 1` of `exchanges` to stand before.

    No two of them have the same request, and none has that of the answer. The digests of `name` and the answer's id
    pick them.

    Raises:
        ConfigError: There is no such prompt, or there are too few such exchanges.
    """
    taken = same_prompt(answer)
    prompt = next(_others(prompts, f"{name}/{answer.id}", taken), None)
    if prompt is None:
        raise ConfigError(
            f"answer {answer.id!r}: every prompt that it could be put under is its own; select other prompts as well"
        )
    found = [prompt]
    for turn in range(1, turns):
        taken |= same_prompt(found[-1])
        earlier = next(_others(exchanges, f"{name}/{answer.id}/{turn}", taken), None)
        if earlier is None:
            raise ConfigError(
                f"answer {answer.id!r}: {turns} turns need {turns - 1} harmless answers to other prompts, there are "
                f"{turn - 1}; select more harmless conversations with their answers, or fewer turns"
            )
        found.append(earlier)
    return found


def host_tags(host: Conversation) -> dict[str, str]:
    """What a moved answer keeps of the conversation that it is put under.

    `host_key` is that conversation's `prompt_key`, `host_source` its source, `host_text` the key of request and answer
    (`Text.key`).
    """
    text = Text.of(host.messages, host.response).key
    return {"host_key": host.prompt_key, "host_source": host.source, "host_text": text}


def same_prompt(conversation: Conversation) -> set[str]:
    """Keys of the prompt as it stands and of the one that it was made of: what shares one has the same request."""
    return {conversation.prompt_key, digest(normalise(conversation.prompt))}


def _others(rows: Sequence[Conversation], name: str, own: set[str]) -> Iterator[Conversation]:
    """Those of `rows` that share no key with `own` (`same_prompt`), from the one on that the digest of `name` picks."""
    begin = digest_number(name) % len(rows) if rows else 0
    return (row for row in (*rows[begin:], *rows[:begin]) if own.isdisjoint(same_prompt(row)))


def first_words(text: str, count: int) -> str:
    """The first `count` words of `text`, with the space between them as it stands."""
    ends = [found.end() for found in islice(_WORD.finditer(text), count)]
    return text[: ends[-1]] if ends else ""


def _framed(conversation: Conversation, frame: Frame) -> tuple[Mapping[str, Any], ...]:
    *before, last = conversation.messages
    return (*before, {**last, "content": frame.around(conversation.prompt, conversation.id)})


def _with_messages(conversation: Conversation, messages: tuple[Mapping[str, Any], ...], how: str) -> Conversation:
    # the key stays that of the original request, so that a split by prompt keeps its variants together
    tags = {**conversation.tags, "augmented": how, "prompt_key": conversation.prompt_key}
    return replace(conversation, id=f"{conversation.id}+{how}", messages=messages, tags=tags)
