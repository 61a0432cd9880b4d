"""Read conversations from the rows of a table.

Errors name the table, the row and the column. They never quote prompts or answers, which may be harmful text.
"""

import hashlib
import itertools
import json
import logging
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from anydepth.errors import ConfigError, RecordError
from anydepth.fields import LABELS, Label, is_missing, label_of, messages_of, plain, prompt_of, split_answer, text_of
from anydepth.types import Message

logger = logging.getLogger(__name__)

TableRow = tuple[str, Mapping[str, Any]]
"""Where a row stands (`line 3`), and its values by column."""

UNKNOWN = "unknown"
"""The licence of a record for which nothing says one."""

_SAFE: Mapping[str, Label | None] = {"true": "benign", "false": "harmful", "1": "benign", "0": "harmful"}
_LABEL_VALUES = (None, *get_args(Label))


@dataclass(frozen=True, slots=True)
class Conversation:
    """A prompt, with the answer to it where there is one.

    Attributes:
        id: Unique within one load.
        messages: The prompt; at least one message, the last one is the user's.
        response: The answer; empty for a prompt without one.
        label: Whether the answer is harmful; of a prompt without an answer, whether the prompt is. None if not known.
        source: Key of the set that it is from, e.g. `aisafetylab`.
        licence: SPDX-like name, or `unknown`.
        tags: The other columns, as text: category, language, generator, goal, reference answer ...
        stretch: The characters `[begin, end)` of the response that the label is about, where the text around them is
            harmless whatever the label; None where it is the whole response.
    """

    id: str
    messages: tuple[Message, ...]
    response: str = ""
    label: Label | None = None
    source: str = ""
    licence: str = UNKNOWN
    tags: Mapping[str, str] = field(default_factory=dict)
    stretch: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not self.messages or self.messages[-1].get("role") != "user":
            raise RecordError(f"conversation {self.id!r} does not end with the user's turn; put the answer in response")
        if not isinstance(self.messages[-1].get("content"), str):
            raise RecordError(f"conversation {self.id!r} ends with a message whose content is not text")
        if self.label not in _LABEL_VALUES:
            raise RecordError(f"conversation {self.id!r} has the label {self.label!r}; use harmful, benign or None")
        if self.stretch is not None and not 0 <= self.stretch[0] < self.stretch[1] <= len(self.response):
            raise RecordError(
                f"conversation {self.id!r} has the stretch {self.stretch} in a response of {len(self.response)} "
                "characters; give begin and end of a part of it"
            )

    @property
    def prompt(self) -> str:
        """Text of the last user message."""
        return self.messages[-1]["content"]

    @property
    def prompt_key(self) -> str:
        """Short hash of the normalised prompt: the same for prompts that differ in case, space or punctuation.

        The tag `prompt_key` stands in for it where the prompt was made of another one, whose side of a split it keeps.
        """
        return self.tags.get("prompt_key") or digest(normalise(self.prompt))

    @property
    def host_key(self) -> str:
        """`prompt_key` of the conversation whose request the model reads, the host of a swapped or spliced answer.

        The tag `host_key` says it; of any other conversation it is its own `prompt_key`.
        """
        return self.tags.get("host_key") or self.prompt_key


def _names(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value or ()


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column is what. Name those that differ from the normalised form; None means that there is none.

    Attributes:
        prompt: Column of the prompt; of several, the first that is not empty.
        context: Column of text that belongs to the prompt and follows it after a blank line, such as Alpaca's `input`.
        messages: Column of a list of messages, instead of `prompt`; a last one by the assistant is the answer.
        response: Column of the answer; of several, each gives a conversation of its own.
        label: Column of the label; as many as there are answer columns.
        labels: Label values, as text in lower case, and what they mean; None means not labelled.
        default_label: Label of a row that says none.
        id: Column of the id; without one, the id is a hash of the content.
        source: Column of the source key.
        licence: Column of the licence.
        tags: Columns to keep as tags, lists and objects as JSON. Without it, all others that hold a plain value.
    """

    prompt: str | tuple[str, ...] | None = "prompt"
    context: str | None = None
    messages: str | None = None
    response: str | tuple[str, ...] | None = None
    label: str | tuple[str, ...] | None = None
    labels: Mapping[str, Label | None] = field(default_factory=lambda: LABELS)
    default_label: Label | None = None
    id: str | None = None
    source: str | None = None
    licence: str | None = None
    tags: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not self.messages and not self.prompt:
            raise ConfigError("columns name neither a prompt nor messages; name one of them")
        answers, labels = len(_names(self.response)), len(_names(self.label))
        if labels > 1 and labels != answers:
            raise ConfigError(f"columns name {answers} answers and {labels} labels; name one label an answer")
        if wrong := [value for value in (*self.labels.values(), self.default_label) if value not in _LABEL_VALUES]:
            raise ConfigError(f"labels mean {wrong[0]!r}; a label means harmful, benign or None")

    @property
    def named(self) -> frozenset[str]:
        """Every column that has a part in a conversation, tags left out."""
        single = (self.context, self.messages, self.id, self.source, self.licence)
        return frozenset(
            (*(_names(self.prompt) if not self.messages else ()), *_names(self.response), *_names(self.label))
        ) | {name for name in single if name}

    def fit(self, row: Mapping[str, Any]) -> bool:
        """Say whether a row has all columns that are named, and something in each; the context may be empty."""
        return all(name in row and (name == self.context or not is_missing(row[name])) for name in self.named)


LAYOUTS: Mapping[str, Columns] = {
    "two answers (PKU-SafeRLHF)": Columns(
        response=("response_0", "response_1"), label=("is_response_0_safe", "is_response_1_safe"), labels=_SAFE
    ),
    "is_safe (BeaverTails)": Columns(response="response", label="is_safe", labels=_SAFE),
    "goal and target (AdvBench)": Columns(prompt="goal", tags=("target",)),
    "forbidden_prompt (StrongREJECT)": Columns(prompt="forbidden_prompt"),
    "Behavior (HarmBench)": Columns(prompt="Behavior", context="ContextString", id="BehaviorID"),
    "instruction (Alpaca)": Columns(prompt="instruction", context="input", response="output"),
    "conversation (WildChat)": Columns(messages="conversation"),
    "conversations (ShareGPT)": Columns(messages="conversations"),
}
"""Layouts that are known beside the normalised form, by name; the first that fits holds."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a table's rows do not say themselves.

    Attributes:
        name: The file or data set, for error messages.
        source: Source key of rows without one.
        licence_of: Licence of a source key, or None.
        tags: Tags that every row gets.
        annotated: Several people have labelled some of its texts. Where they disagree a text is left without a label;
            elsewhere one text with two labels is an error.
    """

    name: str
    source: str
    licence_of: Callable[[str], str | None] = lambda _: None
    tags: Mapping[str, str] = field(default_factory=dict)
    annotated: bool = False


def conversations(rows: Iterable[TableRow], *, columns: Columns | None, origin: Origin) -> list[Conversation]:
    """Turn rows into conversations; RecordError names the table, the row and the column that is unusable."""
    found: dict[str, Conversation] = {}
    places: dict[str, str] = {}
    for where, row in rows:
        try:
            of_row = columns or guess(row)
            for conversation in _of_row(row, of_row, origin):
                key = conversation.id
                if key in found and of_row.id:
                    raise RecordError(f"id {key!r} was used on {places[key]} already")
                if key in found:  # the same content once more
                    key = next(name for n in itertools.count(2) if (name := f"{key}-{n}") not in found)
                    conversation = replace(conversation, id=key)
                found[key], places[key] = conversation, where
        except RecordError as error:
            raise RecordError(f"{origin.name}, {where}: {error}") from error
    if origin.annotated:
        return _undisputed(list(found.values()), origin.name)
    for one, other in _contradictions(found.values()):
        raise RecordError(
            f"{origin.name}, {places[other.id]}: the same text as {places[one.id]}, which says {one.label} where this "
            f"says {other.label}; keep one of them"
        )
    return list(found.values())


def check_labels(found: Sequence[Conversation], name: str) -> list[Conversation]:
    """Return conversations of several tables; RecordError, which names them, if one text has two labels."""
    for one, other in _contradictions(found):
        raise RecordError(
            f"{name}: {one.id!r} of {one.source} and {other.id!r} of {other.source} are the same text, labelled "
            f"{one.label} and {other.label}; keep one of them"
        )
    return list(found)


def _undisputed(found: list[Conversation], name: str) -> list[Conversation]:
    """The conversations, without a label where annotators disagreed on one text."""
    disputed = {_text_key(other) for _, other in _contradictions(found)}
    if not disputed:
        return found
    logger.warning("%s: %d texts are labelled harmful and benign; they are left without a label", name, len(disputed))
    return [replace(row, label=None) if _text_key(row) in disputed else row for row in found]


def _contradictions(found: Iterable[Conversation]) -> Iterator[tuple[Conversation, Conversation]]:
    """Each labelled conversation whose text was there before with the other label, after the one that had it first."""
    first: dict[str, Conversation] = {}
    for row in found:
        if row.label is not None:
            before = first.setdefault(_text_key(row), row)
            if before.label != row.label:
                yield before, row


def _text_key(row: Conversation) -> str:
    return digest(json.dumps([[dict(message) for message in row.messages], row.response], sort_keys=True))


def guess(row: Mapping[str, Any]) -> Columns:
    """Return the columns of a row in the normalised form or a known layout; RecordError lists what it has instead."""
    present = {name for name, value in row.items() if not is_missing(value)}
    asked = {"prompt", "messages"} & present
    for layout in LAYOUTS.values():
        if layout.fit(row) and (not asked or asked & layout.named):
            return layout
    if len(asked) != 1:
        raise RecordError(
            f"has the columns {', '.join(sorted(map(str, row))) or '(none)'}; needs either prompt or messages, "
            f"or one of the layouts {'; '.join(LAYOUTS)}; otherwise say which column is what with Columns"
        )

    named = ("prompt", "messages", "response", "label", "id", "source", "licence")
    own: dict[str, Any] = {name: name if name in present else None for name in named}
    if own["licence"] is None and "license" in present:
        own["licence"] = "license"
    return Columns(**own)


def _of_row(row: Mapping[str, Any], columns: Columns, origin: Origin) -> Iterator[Conversation]:
    if missing := sorted(columns.named - row.keys()):
        raise RecordError(f"has no column {missing[0]!r}; it has {', '.join(sorted(map(str, row)))}")
    messages, response = _prompt(row, columns)
    answers, labels = _names(columns.response), _names(columns.label)
    if response and any(text_of(row, name) for name in answers):
        raise RecordError(f"column {columns.messages!r} ends with an answer and there is a response; keep one")
    source = (text_of(row, columns.source) if columns.source else "") or origin.source
    licence = (text_of(row, columns.licence) if columns.licence else "") or origin.licence_of(source) or UNKNOWN
    tags = {**_tags(row, columns), **origin.tags}
    given = text_of(row, columns.id) if columns.id else ""
    if columns.id and not given:
        raise RecordError(f"column {columns.id!r} is empty; every row needs an id of its own")
    for number, name in enumerate(answers or (None,)):
        answer = text_of(row, name) if name and not response else response
        key = f"{given}-{number}" if given and len(answers) > 1 else given
        label = columns.default_label
        if labels:
            label = label_of(row, labels[min(number, len(labels) - 1)], columns.labels, label)
        yield Conversation(
            id=key or f"{source}-{digest(json.dumps([messages, answer], sort_keys=True))}",
            messages=messages,
            response=answer,
            label=label,
            source=source,
            licence=licence,
            tags=tags,
        )


def _prompt(row: Mapping[str, Any], columns: Columns) -> tuple[tuple[Message, ...], str]:
    """Return the messages up to the user's last turn, and the answer where the assistant's turn ends them."""
    if not columns.messages:
        parts = [prompt_of(row, *_names(columns.prompt))]
        if columns.context and (context := text_of(row, columns.context)):
            parts.append(context)
        return ({"role": "user", "content": "\n\n".join(parts)},), ""
    messages, response = split_answer(messages_of(row[columns.messages], f"column {columns.messages!r}"))
    if not messages or messages[-1]["role"] != "user":
        raise RecordError(f"column {columns.messages!r} has no user turn that the answer could belong to")
    return tuple(messages), response


def _tags(row: Mapping[str, Any], columns: Columns) -> dict[str, str]:
    if columns.tags is None:
        tags = {str(name): plain(value) for name, value in row.items() if name not in columns.named}
    else:
        tags = {name: plain(row.get(name)) or json.dumps(row.get(name), default=str) for name in columns.tags}
    return {name: text for name, text in tags.items() if text and text != "null"}


def normalise(text: str) -> str:
    """Return `text` for comparing: NFKC, case folded, every run of space and punctuation one space."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.translate(_SPACES).split()) or " ".join(folded.split())


class _Spaces(dict[int, int]):
    """Space for a separator, a control or a punctuation character, learned as they come."""

    def __missing__(self, code: int) -> int:
        self[code] = ord(" ") if unicodedata.category(chr(code))[0] in "PZC" else code
        return self[code]


_SPACES = _Spaces()


def digest(text: str) -> str:
    """Return a short hash of `text`, the same on every machine."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
