"""Say which conversations one part of a recipe is, and how they are read."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, Literal

from anydepth.conversations.dataset import Conversation
from anydepth.conversations.splice import WORDS
from anydepth.errors import ConfigError
from anydepth.schedule import Every, Listed, Schedule

TRAIN = "train"
"""The split that is trained on; all others are held out."""

GRACE = 20
"""Tokens of a harmful stretch that are not trained on, from its beginning on."""

_ONLY_WITH = {
    "turns": ("swap", 1),
    "words": ("splice", WORDS),
    "between": ("splice", False),
    "grace": ("splice", GRACE),
}
"""Keys that belong to one value of `augment`: that value, and what the key is elsewhere."""


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _texts(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(each, str) and each for each in value)


_Rule = tuple[Callable[[Any], bool], str]
_COUNT: _Rule = (lambda value: value is None or _whole(value, 1), "a whole number of at least 1")
_LABEL: _Rule = (lambda value: value in (None, "harmful", "benign"), "harmful or benign")
_SWITCH: _Rule = (lambda value: isinstance(value, bool), "true or false")
_TEXTS: _Rule = (_texts, "a text or a list of texts")
_RULES: Mapping[str, _Rule] = {
    **dict.fromkeys(("limit", "longest", "longest_prompt"), _COUNT),
    **dict.fromkeys(("label", "labelled"), _LABEL),
    **dict.fromkeys(("drop_refusals", "written", "between"), _SWITCH),
    **dict.fromkeys(("data", "sources", "under"), _TEXTS),
    "like": (lambda value: value is None or isinstance(value, str), "the name of another part"),
    "request": (lambda value: value is None or (isinstance(value, str) and bool(value)), "the name of a column"),
    "split": (lambda value: isinstance(value, str) and bool(value), "train or the name of a held-out set"),
    "hold_out": (
        lambda value: isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1,
        "a share from 0 to below 1",
    ),
    "depths": (
        lambda value: value is None or (isinstance(value, tuple) and all(_whole(each, 0) for each in value)),
        "a list of whole numbers",
    ),
    **dict.fromkeys(("seed", "first_depth", "grace"), (lambda value: _whole(value, 0), "a whole number of at least 0")),
    "turns": (lambda value: _whole(value, 1), "a whole number of at least 1"),
    "weight": (
        lambda value: isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf,
        "a number above 0",
    ),
    "words": (
        lambda value: (
            isinstance(value, tuple) and len(value) == 2 and _whole(value[0], 1) and _whole(value[1], value[0])
        ),
        "the least and the largest number of words, e.g. [15, 75]",
    ),
    "augment": (lambda value: value in (None, "wrap", "swap", "splice"), "wrap, swap or splice"),
}


@dataclass(frozen=True, slots=True)
class RecipePart:
    """Some conversations and how to read them: a `[[part]]` of a recipe.

    Attributes:
        name: What to call it; other parts refer to it by this.
        data: Files, names or hub ids, as `anydepth.conversations.corpora.load` takes them; `anydepth:benign_prompts`
            is the set of prompts that comes with this package.
        like: Instead of `data`: the conversations of another part.
        hold_out: Share of the prompts that becomes the held-out set `NAME held out`.
        split: `train`, or the name of a held-out set. Held-out sets of one name make one column of the report.
        sources: Patterns of source keys to keep; all by default.
        label: Keep this label only.
        limit: Conversations a source at most, spread over the prompts.
        longest: Tokens of an answer to read at most.
        longest_prompt: Leave out prompts of more words.
        request: Column (a tag of the conversation) that holds the request to put the answers under, in place of the
            conversation: with `goal`, answers that a jailbreak drew stand under the plain request.
        depths: At which depths to read; by default where a guard checks (every 25 tokens, more often at first).
        drop_refusals: Leave out answers that begin with a refusal: their label is mostly wrong.
        labelled: The label of conversations that have none.
        written: The target model writes the answers: its own to benign prompts; harmful ones it continues from the
            first tokens of the stored answer, or from the words that the answer is to begin with (tag `target`).
        first_depth: Checks at smaller depths, in tokens, are not trained on: at depth 0 a swapped answer's request says
            nothing of the answer.
        weight: Relative weight of the part's checks in training, beside the others of their label.
        augment: `wrap` puts the prompts into frames of jailbreak prompts, `swap` puts the answers under other prompts,
            `splice` behind the first words of harmless answers to other prompts.
        under: For `swap` and `splice`: names of the parts whose prompts, or harmless answers, to use.
        turns: For `swap`: number of user turns. From 2 on, earlier harmless exchanges of `under` stand before the
            prompt, each a prompt and the first words of its answer.
        words: For `splice`: how many words of the harmless answer come first, at least and at most.
        between: For `splice`: put the rest of the harmless answer behind.
        grace: For `splice`: so many tokens from the beginning of a harmful stretch on are not trained on: there is
            little of it to judge.
        seed: Which conversations `limit` keeps.
    """

    name: str
    data: tuple[str, ...] = ()
    like: str | None = None
    hold_out: float = 0.0
    split: str = TRAIN
    sources: tuple[str, ...] = ()
    label: Literal["harmful", "benign"] | None = None
    limit: int | None = None
    longest: int | None = None
    longest_prompt: int | None = None
    request: str | None = None
    depths: tuple[int, ...] | None = None
    drop_refusals: bool = False
    labelled: Literal["harmful", "benign"] | None = None
    written: bool = False
    first_depth: int = 0
    weight: float = 1.0
    augment: Literal["wrap", "swap", "splice"] | None = None
    under: tuple[str, ...] = ()
    turns: int = 1
    words: tuple[int, int] = WORDS
    between: bool = False
    grace: int = GRACE
    seed: int = 0

    def __post_init__(self) -> None:
        for key, (holds, rule) in _RULES.items():
            if not holds(value := getattr(self, key)):
                shown = list(value) if isinstance(value, tuple) else value
                raise ConfigError(f"part {self.name!r}: {key} is {shown!r}; it must be {rule}")
        if bool(self.data) == (self.like is not None):
            raise ConfigError(f"part {self.name!r}: give either `data` or `like`, the name of another part")
        if (self.augment in ("swap", "splice")) != bool(self.under):
            raise ConfigError(
                f"part {self.name!r}: `under` names the parts whose prompts `swap` and `splice` use; give both"
            )
        for key, (only, default) in _ONLY_WITH.items():
            if self.augment != only and getattr(self, key) != default:
                raise ConfigError(f'part {self.name!r}: {key} is given; it goes with augment = "{only}" only')
        if self.augment == "splice" and self.written:
            raise ConfigError(f"part {self.name!r}: the model cannot write spliced answers; leave `written` out")

    def admits(self, row: Conversation) -> bool:
        """Whether the part takes conversations of this one's source and label."""
        source = not self.sources or any(fnmatch(row.source, pattern) for pattern in self.sources)
        return source and self.label in (None, row.label)

    @property
    def schedule(self) -> Schedule:
        """At which depths the answers are read."""
        return Every() if self.depths is None else Listed(self.depths)
