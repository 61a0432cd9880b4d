"""Collect the hidden states of many finished answers, all depths of an answer in one packed pass."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from anydepth.backends.protocol import (
    CONTENT,
    Capability,
    CheckPoint,
    FinishedAnswer,
    Read,
    Reader,
    Site,
    require_sessions,
)
from anydepth.backends.trained_tokens import prove_checks, read_finished, states_at
from anydepth.conversations.dataset import Conversation
from anydepth.digests import short_digest
from anydepth.errors import PromptError, UnsupportedModel
from anydepth.probes.states.facts import AnswerFacts, facts_by_answer
from anydepth.probes.states.manifest import check_appended, manifest_for
from anydepth.probes.states.plan import CollectPlan
from anydepth.probes.states.store import CheckRow, Identity, Manifest, StateStore, answer_key
from anydepth.probes.states.stretch import in_tokens
from anydepth.schedule import scheduled_depths
from anydepth.templates.template import Prompt

SHADOW_TURN = "Please write a text."
"""The neutral user turn of the shadow view: nothing in it speaks to the judge."""

GROUP = 32
"""Answers in one shard: what a killed run has to do again."""

_TOKENS_A_BATCH = 2048

T = TypeVar("T")


@dataclass(slots=True)
class Collected:
    """What a run of `collect` did.

    Attributes:
        answers: Answers read in this run.
        checks: Checks read in this run.
        tokens: Tokens run, headers included.
        present: Answers that were in the store already.
        corrected: Those of them of which the store said something else than the data says now (label, source, split).
        contradicted: Answers that the data labels both harmful and benign; their label is not known.
        skipped: (id, reason) of each answer that could not be read.
        by_forks: Why the answers were forked depth by depth instead of read in packed passes, or None.
    """

    answers: int = 0
    checks: int = 0
    tokens: int = 0
    present: int = 0
    corrected: int = 0
    contradicted: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    by_forks: str | None = None

    @property
    def done(self) -> int:
        """Answers that are dealt with, one way or another."""
        return self.answers + self.present + len(self.skipped)

    def add(self, other: "Collected") -> None:
        """Count in what another run, or one group, did."""
        for each in fields(self):
            mine, more = getattr(self, each.name), getattr(other, each.name)
            setattr(self, each.name, mine or more if each.name == "by_forks" else mine + more)


Group = Mapping[str, Conversation]
"""Answers by their key, read in the same batches and kept in one shard."""


@dataclass(frozen=True, slots=True)
class CollectWork:
    """What is to be done.

    Attributes:
        groups: The groups that are missing.
        answers: Answers in all.
        present: Those of them that are there, read as the plan says.
        outdated: Those of these of which the data says something else than the store -> what it says now.
        contradicted: Answers that the data labels both harmful and benign.
    """

    groups: tuple[Group, ...]
    answers: int
    present: frozenset[Identity]
    outdated: Mapping[Identity, AnswerFacts]
    contradicted: int

    def begin(self, store: StateStore) -> Collected:
        """Write down what the data says now of what is there, and begin the report with it."""
        corrected = store.correct(self.outdated) if self.outdated else 0
        return Collected(present=len(self.present), corrected=corrected, contradicted=self.contradicted)


def collect(
    backend: Reader,
    conversations: Sequence[Conversation],
    store: StateStore,
    plan: CollectPlan,
    *,
    progress: Callable[[int, int, int], None] | None = None,
) -> Collected:
    """Read every conversation that the store does not hold yet, read as `plan` says.

    States depend on the text only: what the store says of the label, source, licence or split of an answer that it
    holds is brought up to date without reading it again.

    The conversations are cut into groups in the order given; a group becomes one shard, written whole. A run that was
    killed goes on with the first group that is missing, and reads it in the same batches: the states are the same.

    Args:
        backend: The model.
        conversations: Answers to read. One that occurs twice, text for text, is read once; if its labels contradict
            each other, it is kept without one.
        store: Where to put the states; made by `StateStore.create` with `manifest_for(backend, plan)`.
        plan: Sites, tokens and depths to read.
        progress: Called after each batch with (answers done, answers in all, tokens run).

    Returns:
        What was done; an answer that cannot be read (it does not fit the context) is named in `skipped`.
    """
    work = work_for(conversations, plan, store.present())
    report = work.begin(store)

    def on_batch(group: Collected) -> None:
        if progress is not None:
            progress(report.done + group.done, work.answers, report.tokens + group.tokens)

    on_batch(Collected())
    for group in work.groups:
        report.add(collect_group(backend, group, store, plan, on_batch=on_batch))
    return report


def collect_into(
    folder: str | Path,
    backend: Reader,
    conversations: Sequence[Conversation],
    plan: CollectPlan,
    *,
    adapter: str | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> tuple[StateStore, Collected]:
    """The store at `folder`, made if it is not there, and what `collect` added to it; StoreError if it is another's."""
    store = StateStore.create(folder, manifest_for(backend, plan, adapter=adapter))
    return store, collect(backend, conversations, store, plan, progress=progress)


def work_for(
    conversations: Sequence[Conversation], plan: CollectPlan, there: Mapping[Identity, AnswerFacts]
) -> CollectWork:
    """Cut the conversations into groups, and leave out what is `there` (`StateStore.present`).

    The groups depend on the conversations only, not on what is done: parts and later runs cut them alike.
    """
    keyed: dict[str, Conversation] = {}
    said: list[tuple[str, AnswerFacts]] = []
    for each in conversations:
        key = answer_key(each.messages, each.response)
        keyed.setdefault(key, each)
        said.append((key, AnswerFacts.of(each, plan.split)))
    facts = facts_by_answer(said)
    both = {key for key, each in said if each.label and not facts[key].label}
    keyed = {key: replace(each, label=facts[key].label or None) for key, each in keyed.items()}
    keys, (index, count) = list(keyed), plan.part
    mine = [keys[begin : begin + GROUP] for begin in range(0, len(keys), GROUP)][index::count]
    now = {(key, plan.view, plan.reading): facts[key] for group in mine for key in group}
    present = now.keys() & there.keys()
    outdated = {identity: now[identity] for identity in now if identity in present and there[identity] != now[identity]}
    missing = [{key: keyed[key] for key in group if (key, plan.view, plan.reading) not in present} for group in mine]
    total = sum(map(len, mine))
    return CollectWork(tuple(group for group in missing if group), total, frozenset(present), outdated, len(both))


def collect_group(
    backend: Reader,
    group: Group,
    store: StateStore,
    plan: CollectPlan,
    *,
    on_batch: Callable[[Collected], None] | None = None,
) -> Collected:
    """Read the answers of one group and write their shard: the unit of work of every engine.

    Raises:
        UnsupportedModel: The model gives other states on a fork than the text has (`Reader.prove`).
        StoreError: The store is of other trained Safety Tokens.
    """
    manifest = store.manifest
    check_appended(manifest, plan)
    reads = [Read(site, token) for site in manifest.sites for token in manifest.tokens]
    prove_checks(backend, frozenset({Capability.HIDDEN_STATES}), reads, plan.embeddings)  # once; then it is known
    report = Collected()
    rows: list[CheckRow] = []
    states: dict[Site, list[np.ndarray]] = {site: [] for site in plan.sites}
    ready = prepared(backend, group, store.manifest, plan, report)
    for batch in [list(ready)] if backend.batches_itself else batches_of(ready):
        for (row, finished), found in zip(batch, _read(backend, batch, store.manifest, plan, report), strict=True):
            report.tokens += finished.prompt.start + finished.deepest
            report.tokens += len(finished.depths) * (max((*store.manifest.tokens, CONTENT)) + 1)
            if not all(np.isfinite(values).all() for values in found.values()):
                report.skipped.append(
                    (row.id, f"its states are not finite in {store.manifest.dtype}; use another dtype")
                )
                continue
            rows += [replace(row, depth=depth, length=len(finished.answer_ids)) for depth in finished.depths]
            for site, values in found.items():
                states[site].append(values)
            report.answers += 1
            report.checks += len(finished.depths)
        if on_batch is not None:
            on_batch(report)
    if rows:
        name = short_digest("".join([plan.view, plan.reading, *group]))
        store.write(f"{plan.view}-{name}", rows, {site: np.concatenate(parts) for site, parts in states.items()})
    return report


Prepared = tuple[CheckRow, FinishedAnswer]
"""An answer that is ready to be read, and what is known of its checks; their depths are the answer's."""


def prepared(
    backend: Reader, group: Group, manifest: Manifest, plan: CollectPlan, report: Collected
) -> Iterator[Prepared]:
    """The answers of a group, ready to be read; those that cannot be are named in `report.skipped`."""
    limit = getattr(backend, "context_length", None)
    appended = len(manifest.header_ids) + len(backend.header.answer_ids)
    for key, each in group.items():
        messages: Sequence[Any] = each.messages
        if plan.view == "shadow":
            messages = [{"role": "user", "content": SHADOW_TURN}]
        try:
            prompt = backend.template.prompt(list(messages), prefill=each.response)
        except PromptError as error:
            report.skipped.append((each.id, str(error)))
            continue
        whole = prompt.ids[prompt.start :]
        answer = whole[: plan.longest]
        if limit is not None and prompt.start + len(answer) + appended > limit:
            report.skipped.append((each.id, f"prompt and answer do not fit the context of {limit} tokens"))
            continue
        facts = asdict(AnswerFacts.of(each, plan.split))
        begins, ends = in_tokens(backend.template, messages, each.response, each.stretch, whole)
        row = CheckRow(answer=key, view=plan.view, depth=0, length=0, reading=plan.reading, **facts)
        row = replace(row, harm_begins=begins, harm_ends=ends)
        depths = tuple(scheduled_depths(plan.schedule, len(answer)))
        yield row, FinishedAnswer(Prompt(prompt.ids[: prompt.start]), answer, depths)


def batches_of(ready: Iterable[tuple[T, FinishedAnswer]]) -> Iterator[list[tuple[T, FinishedAnswer]]]:
    """Answers of about the same length together, as many as `_TOKENS_A_BATCH` allows."""
    batch: list[tuple[T, FinishedAnswer]] = []
    for item in sorted(ready, key=lambda item: item[1].prompt.start + item[1].deepest):
        longest = item[1].prompt.start + item[1].deepest
        if batch and (len(batch) + 1) * longest > _TOKENS_A_BATCH:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _read(
    backend: Reader, batch: Sequence[Prepared], manifest: Manifest, plan: CollectPlan, report: Collected
) -> Sequence[Mapping[Site, np.ndarray]]:
    answers = [finished for _, finished in batch]
    suffix = None if manifest.suffix == "header" or plan.embeddings is not None else manifest.header_ids
    options = {"tokens": manifest.tokens, "suffix": suffix, "embeddings": plan.embeddings}
    if report.by_forks is None:
        try:
            return read_finished(backend, answers, manifest.sites, **options)
        except UnsupportedModel as reason:
            if suffix is not None:
                raise
            report.by_forks = str(reason)
    return [_by_forks(backend, answer, manifest, plan.embeddings) for answer in answers]


def _by_forks(
    backend: Reader, answer: FinishedAnswer, manifest: Manifest, embeddings: np.ndarray | None
) -> dict[Site, np.ndarray]:
    """The states of `read_batch`, from a replay that is forked at every depth."""
    shape = (len(manifest.sites), len(manifest.tokens), backend.identity.hidden_size)
    reads = [Read(site, token) for site in manifest.sites for token in manifest.tokens]
    states = np.empty((len(answer.depths), *shape), np.float32)
    # a replay wants an answer; of an empty one only depth 0 is read, which is before the token that stands in for it
    session = require_sessions(backend).replay(answer.prompt, answer.answer_ids or backend.header.ids[:1])
    try:
        at = 0
        for place, depth in enumerate(answer.depths):
            if depth > at:
                session.decode(depth - at)
                at = depth
            states[place] = states_at(session, [CheckPoint(0, depth)], reads, embeddings)[0].reshape(shape)
    finally:
        session.close()
    return {site: states[:, index] for index, site in enumerate(manifest.sites)}
