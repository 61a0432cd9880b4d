"""Make training conversations in which the prompt gives nothing away, so that the answer must be judged.

An adversarial prompt misleads a probe that was trained where prompts and answers agree. `wrap` puts requests of both
classes into the frames of jailbreak prompts; `swap` puts harmful answers under harmless prompts. Every choice is made
by a digest, not by a position: the same conversation always becomes the same one.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from anydepth.conversations.dataset import Conversation
from anydepth.digests import digest_number
from anydepth.errors import ConfigError
from anydepth.files import packaged_toml

_WORDS = (
    "interface manual describing sure tutorial whichever table opposite write following revert bullet plain sentence "
    "oppositely formatting instead please reply similarly now letter title begin step two list polite summary index"
)
_SYMBOLS = r"\+ !! ]( ** }} {( ;) == -- :: </ <- \" ?( @{ $\ ++ ~~ ([ == !-- ## \( // [( )=> *) +Sure Step ### {\""


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


def swap(answers: Sequence[Conversation], prompts: Sequence[Conversation]) -> list[Conversation]:
    """Each of `answers` under the prompt of one of `prompts`; label and source are the answer's.

    Raises:
        ConfigError: There is no prompt to swap in.
    """
    if not prompts:
        raise ConfigError("there are no prompts to put the answers under; select some harmless conversations")
    chosen = ((each, prompts[digest_number(f"swap/{each.id}") % len(prompts)]) for each in answers)
    return [_with_messages(each, prompt.messages, "swap") for each, prompt in chosen]


def _framed(conversation: Conversation, frame: Frame) -> tuple[Mapping[str, Any], ...]:
    *before, last = conversation.messages
    return (*before, {**last, "content": frame.around(conversation.prompt, conversation.id)})


def _with_messages(conversation: Conversation, messages: tuple[Mapping[str, Any], ...], how: str) -> Conversation:
    # the key stays that of the original request, so that a split by prompt keeps its variants together
    tags = {**conversation.tags, "augmented": how, "prompt_key": conversation.prompt_key}
    return replace(conversation, id=f"{conversation.id}+{how}", messages=messages, tags=tags)
