"""Choose requests and answers by language, and mix two languages in one text."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from anydepth.conversations.dataset import Conversation
from anydepth.errors import ConfigError
from anydepth.evals.answers.sets import spread
from anydepth.evals.context import Context

ENGLISH = "en"
"""The language that others are compared with: the shipped probes were trained on it alone."""

REQUESTS, ANSWERS = "requests", "answers"
"""What is judged: a request alone, at depth 0; or an answer, at all depths."""

MIXED_REQUESTS, MIXED_ANSWERS = "mixed requests", "mixed answers"
"""The same of texts in two languages, each of which is a whole sentence at a time in one language."""

TWO_REQUESTS = "two requests, the second in English"
ENGLISH_ANSWER, ENGLISH_REQUEST = "answer in English", "request in English"
BOTH = "answer in both, sentence by sentence"
"""How the languages of a text are mixed; it stands for its language in the figures."""

_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？।؟])\s*|\n+")
_FEWEST = 2


@dataclass(frozen=True, slots=True)
class Sample:
    """One text to judge.

    Attributes:
        kind: One of `REQUESTS`, `ANSWERS`, `MIXED_REQUESTS`, `MIXED_ANSWERS`.
        language: Its language, or how two are mixed.
        row: The conversation; it has an answer unless requests are judged.
        other: The language beside English, of a mixed text.
    """

    kind: str
    language: str
    row: Conversation
    other: str = ""

    @property
    def id(self) -> str:
        """Unique in a run."""
        return "|".join(filter(None, (self.kind, self.language, self.other, self.row.id)))

    @property
    def harmful(self) -> bool:
        """Whether the request, or the answer, is harmful."""
        return self.row.label == "harmful"


@dataclass(frozen=True, slots=True)
class Counts:
    """How many texts of each language and label are judged: requests, answers, and texts of each mixture."""

    requests: int
    answers: int
    mixed: int


def language_of(row: Conversation) -> str:
    """The tag `language` of a row; ConfigError names a row without one."""
    if not (found := row.tags.get("language", "")):
        raise ConfigError(
            f"conversation {row.id!r} does not say its language; give each row of the table a field `language`, e.g. en"
        )
    return found


def read(context: Context, table: str) -> list[Conversation]:
    """The labelled rows of a table on whose requests nothing was chosen, in the same order in every language.

    Translations of one request have one `prompt_key`; they come at the same place of the order.

    Raises:
        ConfigError: The table is not there, a row does not say its language, or no row has a label.
    """
    rows = [row for row in context.table(table, unseen=True) if row.label is not None]
    if not rows:
        raise ConfigError(f"suite languages: the table {table} has no labelled rows; give each a label")
    for row in rows:
        language_of(row)
    return sorted(rows, key=lambda row: (context.digest(row.prompt_key), context.digest(row.id)))


def choose(rows: Sequence[Conversation], counts: Counts) -> list[Sample]:
    """The texts to judge, those in one language before those in two."""
    requests = [row for row in rows if not row.response]
    answers = [row for row in rows if row.response]
    chosen = [*_single(REQUESTS, requests, counts.requests), *_single(ANSWERS, answers, counts.answers)]
    pooled = _pooled(_paired(requests), two_requests, counts.mixed, MIXED_REQUESTS, (TWO_REQUESTS,))
    return [*chosen, *pooled, *_pooled(_paired(answers), _mixtures, counts.mixed, MIXED_ANSWERS, tuple(_WAYS))]


def set_of(source: str) -> str:
    """What is compared with one another: sources that differ only behind a dash (`polyrefuse-harmful`) are one set."""
    return source.partition("-")[0]


def _paired(rows: Sequence[Conversation]) -> list[Conversation]:
    """The rows of sets that have texts of both labels."""
    labels: dict[str, set[str | None]] = defaultdict(set)
    for row in rows:
        labels[set_of(row.source)].add(row.label)
    return [row for row in rows if len(labels[set_of(row.source)]) > 1]


def by_language(rows: Iterable[Conversation]) -> dict[str, list[Conversation]]:
    """The rows of each language, English first, the others by name."""
    found: dict[str, list[Conversation]] = defaultdict(list)
    for row in rows:
        found[language_of(row)].append(row)
    return {key: found[key] for key in sorted(found, key=lambda name: (name != ENGLISH, name))}


def _single(kind: str, rows: Sequence[Conversation], count: int) -> Iterator[Sample]:
    """`count` texts of each language, source and label; of harmless answers, refusals and others alike."""
    for language, own in by_language(rows).items():
        for source in sorted({row.source for row in own}):
            for label in ("harmful", "benign"):
                found = [row for row in own if row.source == source and row.label == label]
                for row in spread(found, count, lambda row: row.tags.get("refusal", "")):
                    yield Sample(kind, language, row)


def _pooled(
    rows: Sequence[Conversation],
    make: Callable[[Sequence[Conversation], Sequence[Conversation]], Iterable[tuple[str, Conversation]]],
    count: int,
    kind: str,
    ways: Sequence[str],
) -> Iterator[Sample]:
    """`count` mixed texts of each way, language and label."""
    languages = by_language(rows)
    english = languages.pop(ENGLISH, [])
    for language, own in languages.items():
        made = list(make(own, english))
        for way in ways:
            for label in ("harmful", "benign"):
                found = [row for name, row in made if name == way and row.label == label]
                for row in spread(found, count, lambda row: row.tags.get("refusal", "")):
                    yield Sample(kind, way, row, language)


def two_requests(own: Sequence[Conversation], english: Sequence[Conversation]) -> Iterator[tuple[str, Conversation]]:
    """A request and, on the next line, another one of its label in English; the label is that of both."""
    for label in ("harmful", "benign"):
        first = [row for row in own if row.label == label]
        second = [row for row in english if row.label == label]
        for place, row in enumerate(first):
            other = next((each for each in second[place:] if each.prompt_key != row.prompt_key), None)
            if other is not None:
                yield TWO_REQUESTS, _with(row, other, f"{row.prompt}\n{other.prompt}", "")


def _mixtures(own: Sequence[Conversation], english: Sequence[Conversation]) -> Iterator[tuple[str, Conversation]]:
    """Each answer and the English one by the same model, of the same label, to the same request, in all ways."""
    partners = {_partner(row): row for row in reversed(english)}
    for row in own:
        if (other := partners.get(_partner(row))) is None:
            continue
        for way, mix in _WAYS.items():
            if (mixed := mix(row, other)) is not None:
                yield way, mixed


def _partner(row: Conversation) -> tuple[str, ...]:
    return (row.prompt_key, str(row.label), *(row.tags.get(tag, "") for tag in ("generator", "written", "refusal")))


def mixed_answer(row: Conversation, other: Conversation) -> Conversation | None:
    """The sentences of two answers in turn, the first of `row`; None if one of the two has a single sentence."""
    one, two = sentences(row.response), sentences(other.response)
    if min(len(one), len(two)) < _FEWEST:
        return None
    turns = [(one, two)[place % 2][place] for place in range(min(len(one), len(two)))]
    return _with(row, other, row.prompt, " ".join(turns))


_WAYS: Mapping[str, Callable[[Conversation, Conversation], Conversation | None]] = {
    ENGLISH_ANSWER: lambda row, other: _with(row, other, row.prompt, other.response),
    ENGLISH_REQUEST: lambda row, other: _with(row, other, other.prompt, row.response),
    BOTH: mixed_answer,
}


def sentences(text: str) -> list[str]:
    """The sentences of a text, a line each where none ends; those without a letter are left out."""
    return [part for part in _SENTENCE.split(text) if any(char.isalpha() for char in part)]


def _with(row: Conversation, other: Conversation, prompt: str, response: str) -> Conversation:
    tags = {**row.tags, "prompt_key": row.prompt_key}
    messages = ({"role": "user", "content": prompt},)
    return replace(row, id=f"{row.id}+{other.id}", messages=messages, response=response, tags=tags)
