"""Keep the caches of answers, so that a text that begins like one of them is not run again to be checked."""

import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from threading import Lock
from typing import Any, Protocol

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from anydepth.backends.protocol import Site
from anydepth.backends.transformers.answer_states import AnswerStates
from anydepth.backends.transformers.fork import can_rewind, fork
from anydepth.backends.transformers.growing import GrowingLayer

_KINDS = {GrowingLayer, DynamicLayer, DynamicSlidingWindowLayer}
"""Layers that are kept, by their exact class."""


@dataclass(frozen=True, slots=True)
class KeptText:
    """A text that was run, with its cache.

    Attributes:
        ids: The tokens that the cache holds, all of them.
        cache: The cache, of one row without padding.
        states: States of its last tokens, if any were kept.
        sites: Where the passes that filled the cache were read, and may have ended; None if they ran every block.
    """

    ids: tuple[int, ...]
    cache: Cache
    states: AnswerStates | None = None
    sites: frozenset[Site] | None = None

    @classmethod
    def of(
        cls,
        ids: Sequence[int],
        cache: Cache | None,
        states: AnswerStates | None,
        sites: frozenset[Site] | None = None,
    ) -> "KeptText | None":
        """The text `ids`, whose session may go on; None if its cache cannot be rewound or has another length."""
        layers: list[Any] = getattr(cache, "layers", [])
        if cache is None or not {type(layer) for layer in layers} <= _KINDS or not can_rewind(cache):
            return None
        # another length: a pass that failed has left it between two tokens
        if {layer.get_seq_length() for layer in layers if layer.is_initialized} != {len(ids)}:
            return None
        seen = None if states is None or states.end != len(ids) else states.snapshot()
        return cls(tuple(ids), fork(cache), seen, sites)

    def shared(self, ids: Sequence[int], needed: int, sites: tuple[Site, ...]) -> int:
        """How many tokens of `ids` need not be run, if the states at `sites` from the token `needed` on are wanted."""
        if self.sites is not None and not self.sites.issuperset(sites):
            return 0  # the blocks of another site may have seen none of the text
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(self.ids, ids, strict=False)))
        states = self.states
        known = states is not None and states.first <= needed and set(sites) <= set(states.sites)
        return same if known else min(same, needed)

    def seen(self, sites: tuple[Site, ...], begin: int, end: int) -> dict[Site, torch.Tensor]:
        """The states of the tokens from `begin` up to `end`, as far as `shared` told: `[n, hidden_size]` per site."""
        if self.states is None or begin >= end:
            return {}
        return {site: torch.cat(self.states.parts(site, 0, begin, end)) for site in sites}

    def fork(self, count: int) -> Cache:
        """A cache of the first `count` tokens that copies them when it is first written to.

        The session that the text is from may go on meanwhile.
        """
        twin = self._cropped(count)
        for layer in twin.layers:
            if isinstance(layer, GrowingLayer):
                layer.own()
        return twin

    def unwindowed(self, count: int) -> Cache:
        """A cache of the first `count` tokens that never forgets one; no session may go on while it is in use."""
        plain: Any = DynamicCache()
        layers = self._cropped(count).layers
        plain.layers = [layer if isinstance(layer, GrowingLayer) else _grown(layer) for layer in layers]
        return plain

    def _cropped(self, count: int) -> Cache:
        twin = fork(self.cache)
        if count < len(self.ids):
            twin.crop(count - len(self.ids))
        return twin


def _grown(layer: Any) -> DynamicLayer:
    """A layer without a window that shares the keys and values of `layer`."""
    grown = DynamicLayer()
    if layer.is_initialized:
        grown.lazy_initialization(layer.keys, layer.values)
        grown.keys, grown.values = layer.keys, layer.values
    return grown


class HasText(Protocol):
    """A session, while it is open."""

    def kept_text(self) -> KeptText | None:
        """The text that its cache holds; None if there is none that another text could go on from."""
        ...


class KeptTexts:
    """The caches of answers: of those under way, and of those that ended last, in the room that the former leave.

    Once the model runs with other adapters, what is there is of no use any more and is forgotten. No other change of a
    model is noticed: whoever trains it, or edits its states, clears what is kept.

    Args:
        model: The model that the caches are filled by; None if they are filled without its adapters.

    Attributes:
        room: How many answers have a cache at most before those that have ended lose theirs. As long as no more answers
            than that are under way at a time, nothing kept takes memory beyond theirs. 0 keeps none, and finds none.
    """

    def __init__(self, model: Any = None) -> None:
        self.room = 1
        self._model, self._adapters, self._lock = model, _adapters(model), Lock()
        self._live: weakref.WeakSet[HasText] = weakref.WeakSet()
        self._ended: list[KeptText] = []

    def begin(self, session: HasText) -> None:
        """Take note of a session that opens; its cache takes the room of one that has ended."""
        with self._lock:
            self._forget_others()
            self._live.add(session)
            self._trim()

    def end(self, session: HasText) -> None:
        """Keep the text of a session that closes, if it has one and began here."""
        with self._lock:
            self._forget_others()
            if session not in self._live:
                return
            text = session.kept_text() if self.room else None
            self._live.discard(session)
            if text is not None:
                self._ended.append(text)
            self._trim()

    def clear(self) -> None:
        """Free the caches of the answers that have ended."""
        with self._lock:
            self._ended.clear()

    def longest(self, ids: Sequence[int], needed: int, sites: tuple[Site, ...]) -> tuple[KeptText, int] | None:
        """The kept text that saves most of running `ids`, and how many of its tokens; None if none saves any.

        The states at `sites` are wanted from the token `needed` on. No session may go on meanwhile.
        """
        with self._lock:
            self._forget_others()
            live = [session.kept_text() for session in self._live] if self.room else []
            texts = [each for each in (*live, *self._ended) if each is not None]
        found = max(((each, each.shared(ids, needed, sites)) for each in texts), key=lambda pair: pair[1], default=None)
        return found if found is not None and found[1] else None

    def _forget_others(self) -> None:
        """Forget the texts that were run with other adapters than the model has on now."""
        if (now := _adapters(self._model)) != self._adapters:
            self._adapters = now
            self._live.clear()
            self._ended.clear()

    def _trim(self) -> None:
        room = max(0, self.room - len(self._live))
        del self._ended[: max(0, len(self._ended) - room)]


def _adapters(model: Any) -> frozenset[Any]:
    """What tells apart with which adapters the layers of a model run."""
    peft = sys.modules.get("peft.tuners.tuners_utils")
    if model is None or peft is None:  # no layer is adapted before this is imported
        return frozenset()
    layers = (each for each in model.modules() if isinstance(each, peft.BaseTunerLayer))
    return frozenset((*each.active_adapters, each.disable_adapters, *each.merged_adapters) for each in layers)
