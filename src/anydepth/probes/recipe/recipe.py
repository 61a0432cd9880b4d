"""Say which conversations a probe is trained on, which it is chosen on, and which it is calibrated on."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from anydepth.conversations.augment import swap, wrap
from anydepth.conversations.corpora import SHIPPED, load
from anydepth.conversations.dataset import Conversation
from anydepth.conversations.splice import splice
from anydepth.conversations.splits import (
    Text,
    balance,
    contradicted,
    distinct,
    drop_near_duplicates,
    permissive,
    split_by_prompt,
)
from anydepth.detectors.refusals import RefusalMatcher
from anydepth.errors import ConfigError
from anydepth.files import packaged_toml, read_toml
from anydepth.probes.recipe.pairs import half
from anydepth.probes.recipe.recipe_part import TRAIN, RecipePart
from anydepth.probes.states.store import answer_key

_COPIES = "copies of others"
_DEPTHS = (0, 1, 4, 16, 25, 50, 75, 100, 150, 200, 250, 300, 400, 500)


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides a probe apart from the model.

    Attributes:
        parts: The conversations.
        write: Sampling options of the answers that the target model writes, e.g. `{do_sample = true}`.
        fit: Options of `FitOptions`, and what to try: lists are swept.
        choose: Which held-out sets the sweep is judged by: pairs of a harmful and a benign one.
        calibrate: Held-out benign sets that the threshold is set on, the target and the policies to compare.
        measure: Held-out sets of the report, pairs of a harmful and a benign one.
        source: Where the recipe was read from.
    """

    parts: tuple[RecipePart, ...]
    write: Mapping[str, Any] = field(default_factory=dict)
    fit: Mapping[str, Any] = field(default_factory=dict)
    choose: Mapping[str, Any] = field(default_factory=dict)
    calibrate: Mapping[str, Any] = field(default_factory=dict)
    measure: Mapping[str, Any] = field(default_factory=dict)
    source: str = "default"


@dataclass(frozen=True, slots=True)
class Gathered:
    """The conversations of one part, and how many were left out of it and why."""

    part: RecipePart
    conversations: Sequence[Conversation]
    left_out: str


def read_recipe(path: str | Path | None = None) -> Recipe:
    """Read a recipe; None is the one that this package's probes are made with.

    Raises:
        ConfigError: The file is missing, no TOML, or has a key or value that a recipe cannot have.
    """
    if path is None:
        return recipe_from(packaged_toml("recipe.toml"), "default")
    if not Path(path).exists():
        raise ConfigError(f"there is no recipe at {path}")
    try:
        record = read_toml(Path(path))
    except ConfigError as error:
        raise ConfigError(f"recipe {path} cannot be read: {error}") from error
    return recipe_from(record, str(path))


def recipe_from(record: Mapping[str, Any], source: str) -> Recipe:
    """Build a recipe from its TOML tables; ConfigError names the key that is wrong."""
    known = {entry.name for entry in fields(Recipe)} - {"parts", "source"}
    unknown = sorted(set(record) - known - {"part"})
    if unknown:
        raise ConfigError(f"recipe {source} has {unknown[0]!r}; a recipe has [[part]], [{'], ['.join(sorted(known))}]")
    if wrong := sorted(name for name in known if not isinstance(record.get(name, {}), Mapping)):
        raise ConfigError(f"recipe {source}: {wrong[0]} is {record[wrong[0]]!r}; write it as a table, [{wrong[0]}]")
    entries = record.get("part", ())
    if not isinstance(entries, list | tuple) or not all(isinstance(entry, Mapping) for entry in entries):
        raise ConfigError(f"recipe {source}: part is no list of tables; begin each part with [[part]]")
    parts = tuple(_part(entry, source) for entry in entries)
    if not any(part.split == TRAIN for part in parts):
        raise ConfigError(f"recipe {source} has no [[part]] to train on; give one without `split`")
    names = [part.name for part in parts]
    taken = [*names, *(held_out_of(part.name) for part in parts if part.hold_out)]
    for part in parts:
        if taken.count(part.name) > 1:
            raise ConfigError(f"recipe {source} has two parts called {part.name!r}; give each its own name")
        for other in (*part.under, *((part.like,) if part.like else ())):
            if other not in names:
                raise ConfigError(f"recipe {source}, part {part.name!r}: there is no part {other!r} to take from")
        if part.like and names.index(part.like) > names.index(part.name):
            raise ConfigError(f"recipe {source}, part {part.name!r} is like {part.like!r}, which must come before it")
        for other in part.under:
            if part.split == TRAIN and parts[names.index(other)].split != TRAIN:
                raise ConfigError(
                    f"recipe {source}, part {part.name!r}: under names {other!r}, which is held out; name training "
                    "parts, or its prompts are trained on"
                )
            if part.split != TRAIN and parts[names.index(other)].split == TRAIN:
                raise ConfigError(
                    f"recipe {source}, part {part.name!r}: under names {other!r}, which is trained on; name held-out "
                    "parts, or the probe is judged on requests that it was trained on"
                )
    return Recipe(parts, **{name: record[name] for name in known if name in record}, source=source)


def gather(recipe: Recipe, *, data: Path | None = None, permissive_only: bool = False) -> list[Gathered]:
    """Load the conversations of every part.

    Answers that the data labels both harmful and benign are left out, and so are copies of answers in the held-out
    sets. Near-duplicates of held-out prompts and answers are taken out of the training parts. With `permissive_only`,
    training parts keep what may go into a shipped probe.

    Raises:
        ConfigError: A file is missing, or a part is empty.
    """
    loaded: dict[str, list[Conversation]] = {}
    sets: dict[str, list[Conversation]] = {}  # of the parts, and what is held out of them
    notes: dict[str, list[str]] = {name: [] for part in recipe.parts for name in (part.name, held_out_of(part.name))}
    for part in recipe.parts:
        rows = list(sets[part.like]) if part.like else []
        for ref in part.data:
            if ref not in loaded:
                loaded[ref] = load(ref, data=data)
            rows += loaded[ref]
        rows = _candidates(part, rows, permissive_only, notes[part.name])
        if part.hold_out:
            split = split_by_prompt(rows, part.hold_out, part.seed)
            rows, sets[held_out_of(part.name)] = split.train, split.held_out
        sets[part.name] = rows
    _drop_repeated(recipe, sets, notes)
    if empty := [part.name for part in recipe.parts if not sets[part.name]]:
        why = "; ".join(notes[empty[0]]) or "all of it is held out"
        raise ConfigError(f"part {empty[0]!r} is empty; left out of it: {why}. Give other conversations")
    found = [_gathered(part, sets, notes[part.name]) for part in recipe.parts]
    for part in recipe.parts:
        if part.hold_out:
            apart = held_out_of(part.name)
            whole = replace(part, name=apart, split=apart, depths=None, longest=None)
            found += [Gathered(whole, sets[apart], "; ".join(notes[apart]))]
    return found


def _drop_repeated(recipe: Recipe, sets: dict[str, list[Conversation]], notes: Mapping[str, list[str]]) -> None:
    """Take out what occurs more than once where that is wrong.

    These are answers that occur with both labels, in whatever sets; copies within each held-out set, since an answer
    counts once as evidence; and near-duplicates of what is held out in every training part.
    """

    def keep(names: Iterable[str], rows: Iterable[Conversation], why: str) -> None:
        """Leave only `rows` in the sets `names`, and note how many that takes out of each."""
        kept = set(map(id, rows))
        for name in names:
            before, sets[name] = sets[name], [row for row in sets[name] if id(row) in kept]
            _note(notes[name], len(before) - len(sets[name]), why)

    def rows_of(names: Iterable[str]) -> list[Conversation]:
        return [row for name in names for row in sets[name]]

    if both := contradicted(rows_of(sets)):
        rows = (row for row in rows_of(sets) if Text.of(row.messages, row.response).key not in both)
        keep(sets, rows, "labelled both harmful and benign")
    split_of = {part.name: part.split for part in recipe.parts}
    splits: dict[str, list[str]] = {}  # of what is held out of a part its name is that of the split as well
    for name in sets:
        splits.setdefault(split_of.get(name, name), []).append(name)
    training = splits.pop(TRAIN, [])
    for names in splits.values():
        keep(names, distinct(rows_of(names)).kept, _COPIES)
    if apart := [row for names in splits.values() for row in rows_of(names)]:
        every = {id(row): row for row in rows_of(training)}  # parts that are alike share their conversations
        keep(training, drop_near_duplicates(list(every.values()), apart).kept, "nearly in the held-out sets")


def _note(notes: list[str], count: int, why: str) -> None:
    if count:
        notes.append(f"{count} that are {why}")


def held_out_of(name: str) -> str:
    """Name of the held-out set of a part with `hold_out`."""
    return f"{name} held out"


def recipe_for(refs: Sequence[str]) -> Recipe:
    """The recipe for labelled conversations of the user's own: a quarter of the prompts is held out.

    The jailbreak frames, and harmless prompts that sound harmful, which the model answers itself, are added: a probe
    without them takes an adversarial prompt, or a dangerous word, for a harmful answer.
    """
    own, depths = "own", _DEPTHS
    pair = {"name": "own held-out answers", "harmful": held_out_of(own), "benign": held_out_of(own)}
    return Recipe(
        parts=(
            RecipePart(own, data=tuple(refs), hold_out=0.25, depths=depths, longest=300),
            RecipePart("own wrapped", like=own, augment="wrap", limit=120, depths=depths, longest=150),
            RecipePart(
                "harmless prompts",
                data=(SHIPPED + "benign_prompts",),
                labelled="benign",
                written=True,
                limit=110,
                depths=depths,
                longest=110,
            ),
        ),
        fit={"tokens": ["read", "last", ["read", "content"]], "strength": [0.001, 0.01], "first_depth": [0, 4]},
        choose={"pairs": [pair], "policies": [{"name": "threshold"}, {"name": "ewma", "alpha": 0.3}]},
        calibrate={"benign": [held_out_of(own)], "target": 0.005},
        source="the conversations given by --data",
    )


def _part(entry: Mapping[str, Any], source: str) -> RecipePart:
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in entry.items()}
    for name in ("data", "sources", "under"):
        if isinstance(values.get(name), str):
            values[name] = (values[name],)
    known = [each.name for each in fields(RecipePart)]
    if unknown := sorted(set(values) - set(known)):
        raise ConfigError(
            f"recipe {source}, part {values.get('name')!r} has {unknown[0]!r}; a part has {', '.join(known)}"
        )
    if not isinstance(values.get("name"), str) or not values["name"]:
        raise ConfigError(f"recipe {source}: a part has the name {values.get('name')!r}; give every part a name")
    try:
        return RecipePart(**values)
    except ConfigError as error:
        raise ConfigError(f"recipe {source}, {error}") from error


def _candidates(
    part: RecipePart, rows: list[Conversation], permissive_only: bool, notes: list[str]
) -> list[Conversation]:
    rows = [_begun(row, part) for row in rows]
    if not part.written:
        rows = [row for row in rows if row.response]
    rows = [row for row in rows if part.admits(row)]
    unlabelled = sum(row.label is None for row in rows)
    rows = [row for row in rows if row.label is not None]
    _note(notes, unlabelled, "without a label")
    if part.request:
        rows = [_asked(row, part) for row in rows]
    if part.longest_prompt is not None:
        rows = [row for row in rows if len(row.prompt.split()) <= part.longest_prompt]
    if part.drop_refusals:
        matcher = RefusalMatcher.default()
        before = len(rows)
        rows = [row for row in rows if not matcher.is_refusal(row.response)]
        if len(rows) < before:
            notes.append(f"{before - len(rows)} answers that begin with a refusal")
    if permissive_only and part.split == TRAIN:
        selection = permissive(rows)
        rows = selection.kept
        if selection.dropped:
            notes.append(str(selection))
    if not rows:
        of = ", ".join(part.data) or part.like
        why = f"; left out: {'; '.join(notes)}" if notes else ""
        raise ConfigError(f"part {part.name!r} is empty: nothing of {of} passes its conditions{why}")
    return rows


def _asked(row: Conversation, part: RecipePart) -> Conversation:
    """The conversation with the request that its tag `part.request` holds, and nothing else before the answer."""
    text = row.tags.get(part.request or "")
    if not text:
        raise ConfigError(
            f"part {part.name!r}: conversation {row.id!r} of {row.source} has no column {part.request!r} to take the "
            "request from; leave `request` out, or name a column that every conversation of the part has"
        )
    return replace(row, messages=({"role": "user", "content": text},))


def _begun(row: Conversation, part: RecipePart) -> Conversation:
    """The conversation with the part's label and, where it is to be continued, with what it begins with."""
    label = row.label or part.labelled
    if not (part.written and label == "harmful" and not row.response):
        return row if label == row.label else replace(row, label=label)
    return replace(row, label=label, response=row.tags.get("target", ""))


def _gathered(part: RecipePart, sets: Mapping[str, list[Conversation]], notes: list[str]) -> Gathered:
    rows = sets[part.name]
    rows = balance(rows, per_source=part.limit, seed=part.seed).kept
    if part.augment == "wrap":
        rows = wrap(rows)
    if part.augment in ("swap", "splice"):
        rows = _moved(part, rows, [row for name in part.under for row in sets[name]])
    return Gathered(part, rows, "; ".join(notes))


def _moved(part: RecipePart, rows: list[Conversation], under: list[Conversation]) -> list[Conversation]:
    """The answers under other requests; those that are held out under requests of their own half of the prompts only.

    No request is then read in both halves.
    """
    if part.split == TRAIN:
        return _put_under(part, rows, under)
    found: dict[int, Conversation] = {}
    for which in (0, 1):
        places = np.flatnonzero(half([row.prompt_key for row in rows], which)).tolist()
        hosts = [under[place] for place in np.flatnonzero(half([row.prompt_key for row in under], which))]
        try:
            moved = _put_under(part, [rows[place] for place in places], hosts) if places else []
        except ConfigError as error:
            raise ConfigError(
                f"part {part.name!r} is held out, and its answers are put under requests of their own half of the "
                f"held-out prompts only: {error}; give {', '.join(part.under)} more prompts"
            ) from error
        found.update(zip(places, moved, strict=True))
    return [found[place] for place in range(len(rows))]


def _put_under(part: RecipePart, rows: list[Conversation], under: list[Conversation]) -> list[Conversation]:
    if part.augment == "swap":
        return swap(rows, under, turns=part.turns)
    return splice(rows, under, words=part.words, between=part.between)


def training_sources(gathered: Sequence[Gathered]) -> tuple[dict[str, str], ...]:
    """Source and licence of everything trained on, with the number of answers, for the card."""
    answers: dict[tuple[str, str], set[str]] = {}
    for each in gathered:
        if each.part.split == TRAIN:
            for row in each.conversations:
                answers.setdefault((row.source, row.licence), set()).add(answer_key(row.messages, row.response))
    return tuple(
        {"name": name, "licence": licence, "answers": str(len(found))}
        for (name, licence), found in sorted(answers.items())
    )
