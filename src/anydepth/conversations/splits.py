"""Select conversations: by licence, into halves that share no prompt, without near-duplicates or copies, balanced.

Every choice is made by hashes of the content and a seed. It does not depend on the order of the conversations.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from anydepth.conversations.corpora import allows, terms_of
from anydepth.conversations.dataset import Conversation, Label, digest, normalise
from anydepth.errors import ConfigError

_SHINGLE = 5
"""Characters of a shingle: words count, and so does their order, but not a changed ending."""

_SAME_REQUEST = 0.7
_SAME_ANSWER = 0.9
_SHORTEST_ANSWER = 100
"""Characters from which an answer that occurs twice is a leak; a stock refusal is shorter and is none."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """How many conversations of one source were left out, and why."""

    source: str
    reason: str
    count: int


@dataclass(frozen=True, slots=True)
class Selection:
    """The conversations that were kept, in their order, and an account of the others."""

    kept: list[Conversation]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def dropped(self) -> int:
        """How many were left out."""
        return sum(row.count for row in self.left_out)

    def __str__(self) -> str:
        rows = "; ".join(f"{row.source}: {row.count}, {row.reason}" for row in self.left_out)
        return f"kept {len(self.kept)}, left out {self.dropped}{f' ({rows})' if rows else ''}"


@dataclass(frozen=True, slots=True)
class Split:
    """Two parts of a set that have no prompt in common."""

    train: list[Conversation]
    held_out: list[Conversation]


def permissive(conversations: Iterable[Conversation]) -> Selection:
    """Keep what may go into a shipped probe; leave out what its licence forbids, and what has an unknown one."""

    def reason(conversation: Conversation) -> str | None:
        allowed, terms = allows(conversation.licence), terms_of(conversation.source)
        if allowed is False or (terms is not None and not terms.permissive):
            return f"licence {conversation.licence} does not allow it"
        return None if allowed else f"licence {conversation.licence} is not known to allow it"

    return _select(conversations, reason)


def split_by_prompt(conversations: Sequence[Conversation], fraction: float, seed: int = 0) -> Split:
    """Hold out `fraction` of the conversations, all those with one prompt on the same side.

    Each (source, label) is divided in this proportion as nearly as its prompts allow, the whole set as well. Near-
    duplicates may still be on both sides; `drop_near_duplicates` takes them out.

    Raises:
        ConfigError: `fraction` is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"fraction is {fraction}; hold out more than 0 and less than 1, e.g. 0.2")
    prompts: dict[str, Counter[tuple[str, Label | None]]] = defaultdict(Counter)
    for conversation in conversations:
        prompts[conversation.prompt_key][conversation.source, conversation.label] += 1
    order = sorted(prompts, key=lambda key: digest(f"{seed}/{key}"))
    missing = {name: fraction * n for name, n in Counter((row.source, row.label) for row in conversations).items()}

    def cost(key: str) -> float:
        """By how much the strata are farther from their share if this prompt is held out; in whatever order."""
        return math.fsum(abs(missing[name] - n) - abs(missing[name]) for name, n in prompts[key].items())

    held: set[str] = set()
    for key in order:
        if cost(key) < 0:
            held.add(key)
            for name, n in prompts[key].items():
                missing[name] -= n
    # Strata of a prompt or two all round to nothing: bring the whole to its share with those that cost least.
    short = fraction * len(conversations) - sum(prompts[key].total() for key in held)
    for key in sorted((key for key in order if key not in held), key=cost):
        if prompts[key].total() <= 2 * max(short, 0):
            held.add(key)
            short -= prompts[key].total()
    sides: tuple[list[Conversation], list[Conversation]] = ([], [])
    for conversation in conversations:
        sides[conversation.prompt_key in held].append(conversation)
    return Split(*sides)


def balance(conversations: Iterable[Conversation], *, per_source: int | None, seed: int = 0) -> Selection:
    """Keep at most `per_source` conversations of each (source, label), spread over its prompts; None keeps all.

    Raises:
        ConfigError: `per_source` is less than 1.
    """
    if per_source is not None and per_source < 1:
        raise ConfigError(f"per_source is {per_source}; keep at least 1 of each source and label, or None for all")
    everything = list(conversations)
    if per_source is None:
        return Selection(everything)
    groups: dict[Hashable, dict[str, list[Conversation]]] = defaultdict(lambda: defaultdict(list))
    for conversation in everything:
        groups[conversation.source, conversation.label][conversation.prompt_key].append(conversation)
    chosen: set[int] = set()
    for prompts in groups.values():
        turns = [
            (number, digest(f"{seed}/{key}"), conversation)
            for key, rows in prompts.items()
            for number, conversation in enumerate(sorted(rows, key=lambda row: _content(row, seed)))
        ]
        turns.sort(key=lambda turn: turn[:2])
        chosen.update(id(conversation) for _, _, conversation in turns[:per_source])
    return _select(everything, lambda row: None if id(row) in chosen else f"over {per_source} with its label")


def _content(conversation: Conversation, seed: int) -> tuple[str, str]:
    text = json.dumps([conversation.id, conversation.response])
    return digest(f"{seed}/{text}"), conversation.id


def drop_near_duplicates(
    train: Sequence[Conversation], held_out: Sequence[Conversation], threshold: float = _SAME_REQUEST
) -> Selection:
    """Leave out of `train` what is nearly in `held_out`.

    Two requests are near-duplicates if the Jaccard similarity of their shingles (5 characters of the normalised text)
    is `threshold` or more; a request is a prompt, or the goal that a jailbreak was made for (tag `goal`). Answers of
    100 characters or more are near-duplicates from 0.9 on. The comparison is exact, not sampled.

    Raises:
        ConfigError: `threshold` is not above 0 and at most 1.
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"threshold is {threshold}; give more than 0 and at most 1, e.g. 0.7")
    requests = near(_requests(train), _requests(held_out), threshold)
    answers = near(_answers(train), _answers(held_out), max(threshold, _SAME_ANSWER))

    def reason(conversation: Conversation) -> str | None:
        if not requests.isdisjoint(_requests([conversation])):
            return "prompt nearly in the held-out set"
        return "answer nearly in the held-out set" if not answers.isdisjoint(_answers([conversation])) else None

    return _select(train, reason)


@dataclass(frozen=True, slots=True)
class Text:
    """A conversation for comparing: its label, its normalised turns and its normalised answer."""

    label: str
    turns: str
    answer: str

    @classmethod
    def of(cls, messages: Iterable[Mapping[str, Any]], response: str, label: str | None = None) -> "Text":
        """The text of a conversation."""
        contents = (turn.get("content") or "" for turn in messages)
        plain = (each if isinstance(each, str) else json.dumps(each, sort_keys=True, default=str) for each in contents)
        return cls(label or "", "\n".join(map(normalise, plain)), normalise(response))

    @property
    def key(self) -> str:
        """Digest of turns and answer, 16 hex digits: that of every copy which differs in case or punctuation only."""
        return digest(f"{self.turns}\0{self.answer}")


def distinct(conversations: Iterable[Conversation]) -> Selection:
    """Keep the first of several copies: as evidence an answer counts once, however often it occurs."""
    rows = list(conversations)
    found = copies([Text.of(row.messages, row.response, row.label) for row in rows])
    marked = {id(rows[place]) for place in found}
    return _select(rows, lambda row: "copies of others" if id(row) in marked else None)


def contradicted(conversations: Iterable[Conversation]) -> set[str]:
    """Keys (`Text.key`) of the answers that occur with both labels: which of the two is right, nobody can say."""
    labels: dict[str, set[str]] = defaultdict(set)
    for row in conversations:
        if row.label and row.response:
            labels[Text.of(row.messages, row.response).key].add(row.label)
    return {key for key, found in labels.items() if len(found) > 1}


def copies(texts: Sequence[Text]) -> set[int]:
    """Places of the texts that are copies of an earlier one.

    Copies have the same label. All their turns and their answers are the same once normalised; or their answers, of 100
    characters or more, are near-duplicates, and their turns are as well (see `drop_near_duplicates`).
    """
    first: dict[Text, int] = {}
    found = {place for place, text in enumerate(texts) if first.setdefault(text, place) != place}
    rest = [n for n, text in enumerate(texts) if n not in found and len(text.answer) >= _SHORTEST_ANSWER]
    return found | {rest[n] for n in _near_copies([texts[place] for place in rest])}


def _near_copies(texts: Sequence[Text]) -> Iterator[int]:
    """Indices of the texts that are near-copies of an earlier one that is none."""
    ranked = _ranked([text.answer for text in texts])
    index: dict[int, list[int]] = defaultdict(list)
    for number, (text, shingles) in enumerate(zip(texts, ranked, strict=True)):
        prefix = _prefix(shingles, _SAME_ANSWER)
        likely = Counter(each for shingle in prefix for each in index.get(shingle, ()))
        if any(_is_copy(text, texts[each], shingles, ranked[each]) for each, _ in likely.most_common()):
            yield number
            continue
        for shingle in prefix:
            index[shingle].append(number)


def _is_copy(text: Text, other: Text, shingles: np.ndarray, others: np.ndarray) -> bool:
    """Whether label, answer and turns are those of the other, as nearly as copies are."""
    if text.label != other.label or min(len(shingles), len(others)) < _SAME_ANSWER * max(len(shingles), len(others)):
        return False
    if _similarity(shingles, others) < _SAME_ANSWER:
        return False
    return text.turns == other.turns or _similarity(_shingles(text.turns), _shingles(other.turns)) >= _SAME_REQUEST


def _similarity(one: np.ndarray, other: np.ndarray) -> float:
    """Jaccard similarity of two sets, each an array without repetitions."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)


def _requests(conversations: Iterable[Conversation]) -> set[str]:
    texts = {text for row in conversations for text in (row.prompt, row.tags.get("goal", "")) if text}
    return {normalise(text) for text in texts}


def _answers(conversations: Iterable[Conversation]) -> set[str]:
    texts = {normalise(text) for text in {row.response for row in conversations}}
    return {text for text in texts if len(text) >= _SHORTEST_ANSWER}


def near(texts: set[str], others: set[str], threshold: float) -> set[str]:
    """Return those of `texts` whose Jaccard similarity to one of `others` is `threshold` or more.

    Two sets of shingles as similar as that share one of their rarest: of n shingles put in order from the rarest on, it
    is enough to look up the first n - threshold * n + 1 (prefix filtering; Bayardo et al., WWW 2007).
    """
    same = texts & others
    left, right = sorted(texts - same), sorted(others)
    ranked = _ranked([*left, *right])
    ours, theirs = ranked[: len(left)], ranked[len(left) :]
    index: dict[int, list[int]] = defaultdict(list)
    for number, shingles in enumerate(theirs):
        for shingle in _prefix(shingles, threshold):
            index[shingle].append(number)
    marked = np.zeros(1 + max((int(shingles[-1]) for shingles in ranked if len(shingles)), default=0), dtype=bool)
    found = set(same)
    for text, shingles in zip(left, ours, strict=True):
        candidates = Counter(number for shingle in _prefix(shingles, threshold) for number in index.get(shingle, ()))
        marked[shingles] = True
        size = len(shingles)
        for number, _ in candidates.most_common():  # the likeliest first
            other = theirs[number]
            if not threshold * size <= len(other) <= size / threshold:
                continue
            shared = int(np.count_nonzero(marked[other]))
            if shared >= threshold * (size + len(other) - shared):
                found.add(text)
                break
        marked[shingles] = False
    return found


def _prefix(shingles: np.ndarray, threshold: float) -> list[int]:
    return shingles[: len(shingles) - int(np.ceil(threshold * len(shingles) - 1e-9)) + 1].tolist()


def _ranked(texts: Sequence[str]) -> list[np.ndarray]:
    """Return the shingles of each text as numbers in rising order, the rarest shingles having the lowest numbers."""
    hashed = [_shingles(text) for text in texts]
    if not hashed:
        return []
    _, inverse, counts = np.unique(np.concatenate(hashed), return_inverse=True, return_counts=True)
    rank = np.empty(len(counts), dtype=np.int64)
    rank[np.argsort(counts, kind="stable")] = np.arange(len(counts))
    return [np.sort(part) for part in np.split(rank[inverse], np.cumsum([len(part) for part in hashed])[:-1])]


def _shingles(text: str) -> np.ndarray:
    """Return a 64-bit hash of every run of 5 characters, each once."""
    codes = np.frombuffer(f" {text} ".encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    width = min(_SHINGLE, len(codes))
    mixed = np.zeros(len(codes) - width + 1, dtype=np.uint64)
    for position in range(width):
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + codes[position : position + len(mixed)]
        mixed ^= mixed >> np.uint64(29)
    return np.unique(mixed)


def _select(conversations: Iterable[Conversation], reason: Callable[[Conversation], str | None]) -> Selection:
    kept: list[Conversation] = []
    left_out: Counter[tuple[str, str]] = Counter()
    for conversation in conversations:
        if why := reason(conversation):
            left_out[conversation.source, why] += 1
        else:
            kept.append(conversation)
    return Selection(kept, tuple(LeftOut(source, why, count) for (source, why), count in sorted(left_out.items())))
