"""Let the target model write its own answers, so that a probe does not learn who wrote the text.

A benign prompt gets the model's own answer. A harmful answer is continued by the model from its first tokens, which
stay part of it. The file that is written is read by `load` like any other table.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from anydepth.backends.batch import batches, write_batch
from anydepth.backends.protocol import Backend
from anydepth.conversations.corpora import load
from anydepth.conversations.dataset import Columns, Conversation, digest
from anydepth.detectors.refusals import RefusalMatcher
from anydepth.digests import digest_number
from anydepth.errors import ConfigError, PromptError
from anydepth.journal import Journal
from anydepth.probes.states.store import answer_key
from anydepth.templates.template import Prompt

_SENTENCE = re.compile(r"(?<=[.!?。！？])\s+|\n+")
_FIXED = ("id", "messages", "response", "label", "source", "licence")
_TAKEN = {*_FIXED, "prompt", "license"}
_OWN_TAGS = ("prefix_tokens", "finish_reason", "generator", "on_policy", "empty", "refusal")

COLUMNS = Columns(messages="messages", response="response", label="label", id="id", source="source", licence="licence")
"""The columns of the file."""


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """Options of the answers that the model writes.

    Attributes:
        max_new_tokens: Longest answer, or continuation, in tokens.
        prefix_tokens: With how many tokens of a harmful answer its continuation begins: one of these for each answer,
            chosen by a digest of its id, and never more than half of the answer.
        sampling: Options of the engine, e.g. `{"do_sample": False}`; the model's own settings by default.
        seed: Every batch has its own random stream, made of this and of what is in the batch.
    """

    max_new_tokens: int = 256
    prefix_tokens: tuple[int, ...] = (10, 25, 50)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        if not self.prefix_tokens or min(self.prefix_tokens) < 1:
            raise ConfigError(f"prefix_tokens is {self.prefix_tokens}; give at least one number of at least 1")


_DEFAULT = AnswerOptions()


@dataclass(slots=True)
class Written:
    """What is in the file, and what is not.

    Attributes:
        path: The file.
        answers: Own answers to benign prompts.
        continuations: Continued harmful answers.
        refused: How many of the own answers refuse; they are tagged `refusal`.
        empty: How many of the own answers are empty; they are tagged `empty`.
        present: How many conversations were in the file already.
        tokens: Tokens that were generated in this run.
        asked: Id in the file -> the conversation that it answers, as its data is now.
        left_out: (id, reason) of each conversation that is not in the file.
    """

    path: Path
    answers: int = 0
    continuations: int = 0
    refused: int = 0
    empty: int = 0
    present: int = 0
    tokens: int = 0
    asked: dict[str, Conversation] = field(default_factory=dict)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def conversations(self) -> list[Conversation]:
        """What the model wrote for these conversations, with what their data says now of source, licence and tags.

        The file may hold answers of an earlier call as well, to other prompts or of other labels: those are left out.
        """
        found = []
        for row in load_answers(self.path):
            if (now := self.asked.get(row.id)) is not None:
                own = {name: row.tags[name] for name in _OWN_TAGS if name in row.tags}
                found.append(replace(row, source=now.source, licence=now.licence, tags={**_kept(now), **own}))
        return found


@dataclass(frozen=True, slots=True)
class _Job:
    """One answer to write; with `prefix` tokens of the stored one in the prompt."""

    conversation: Conversation
    prompt: Prompt
    prefix: int
    suspect: str | None = None

    @property
    def name(self) -> str:
        """What to call it."""
        return f"{self.conversation.id}+own"

    @property
    def key(self) -> str:
        """Its id in the file; another one if the prompt, the label or the answer to continue has changed."""
        each = self.conversation
        asked = [list(each.messages), each.response if self.prefix else "", each.label, self.suspect]
        return f"{self.name}-{digest(json.dumps(asked, sort_keys=True))[:8]}"


def write_answers(
    backend: Backend,
    conversations: Sequence[Conversation],
    path: str | Path,
    *,
    options: AnswerOptions = _DEFAULT,
    progress: Callable[[int, int, int], None] | None = None,
) -> Written:
    """Write the model's own answers to `path`, one JSON line each; what is there already is not written again.

    An answer is there if it was written for the same prompt, label and answer to continue; otherwise it is written
    anew.

    Own answers that refuse or are empty are written and tagged. Left out, and named in the result and in a file beside
    `path`, are conversations whose label the model's text would not keep: continuations in which it refuses, and
    answers that do not refuse where the prompt may be harmful (the stored answer refuses it, or it is also among the
    harmful ones). After a kill the same call goes on, and the file is the same in the end.

    Args:
        backend: The target model.
        conversations: Benign ones are answered, one answer per prompt; harmful ones are continued.
        path: A `.jsonl` file.
        options: Lengths, sampling and seed.
        progress: Called after each batch with (answers done, answers in all, tokens generated).

    Raises:
        ConfigError: The file was begun with another model or other options.
    """
    report = Written(Path(path))
    if report.path.suffix != ".jsonl":
        raise ConfigError(f"{path} must be called .jsonl, so that it can be loaded again")
    jobs = list(_jobs(backend, conversations, options, report))
    settings = {
        "fingerprint": backend.identity.fingerprint,
        "template_digest": backend.template.digest,
        **asdict(options),
    }
    with Journal(report.path, settings) as journal:
        wanted = {job.key for job in jobs}
        report.present = len(journal.rows.keys() & wanted)
        done = report.present + len(journal.left_out.keys() & wanted)
        if progress is not None:
            progress(done, len(jobs), 0)
        for batch in batches(jobs, lambda job: job.prompt, options.max_new_tokens, lambda job: job.name):
            missing = [job for job in batch if job.key not in journal]
            if not missing:
                continue
            for job, (text, tags, count) in zip(batch, _write(backend, batch, options), strict=True):
                report.tokens += count
                if job.key in journal:  # written before the run was killed in the middle of this batch
                    continue
                written, reason = _judged(job, text, {**tags, "generator": backend.identity.name})
                if reason:
                    journal.leave_out(job.key, reason)
                else:
                    journal.write(job.key, {**{name: getattr(written, name) for name in _FIXED}, **written.tags})
            done += len(missing)
            if progress is not None:
                progress(done, len(jobs), report.tokens)
        for job in jobs:
            report.asked[job.key] = job.conversation
            _count(report, job, journal)
    return report


def load_answers(path: str | Path) -> list[Conversation]:
    """Load what `write_answers` wrote, whatever columns its tags are named like."""
    return load(Path(path), columns=COLUMNS)


def _jobs(
    backend: Backend, conversations: Sequence[Conversation], options: AnswerOptions, report: Written
) -> Iterator[_Job]:
    harmful = {each.prompt_key for each in conversations if each.label == "harmful"}
    matcher, answered, ids = RefusalMatcher.default(), set[str](), set[str]()
    limit = getattr(backend, "context_length", None)
    for each in conversations:
        suspect = None
        try:
            if each.id in ids:
                raise PromptError("another conversation has its id")
            if each.label is None:
                raise PromptError("it has no label")
            if each.label == "harmful" and not each.response:
                raise PromptError("it is a harmful prompt without an answer that could be continued")
            if each.label == "benign":
                if (key := answer_key(each.messages, "")) in answered:
                    raise PromptError("its prompt has been answered")
                answered.add(key)
                if each.prompt_key in harmful:
                    suspect = "its prompt is among the harmful ones"
                elif matcher.is_refusal(each.response):
                    suspect = "its stored answer refuses"
            prompt, prefix = _prompt(backend, each, options)
            room = len(prompt.ids) + 1 + len(backend.header.ids) + len(backend.header.answer_ids)
            if limit and room > limit:
                raise PromptError(f"its prompt does not fit the context of {limit} tokens")
        except PromptError as error:
            report.left_out.append((f"{each.id}+own", str(error)))
            continue
        ids.add(each.id)
        yield _Job(each, prompt, prefix, suspect)


def _prompt(backend: Backend, conversation: Conversation, options: AnswerOptions) -> tuple[Prompt, int]:
    """The prompt of a job, and how many tokens of the stored answer it ends with."""
    if conversation.label == "benign":
        return backend.template.prompt(list(conversation.messages)), 0
    whole = backend.template.prompt(list(conversation.messages), prefill=conversation.response)
    choice = digest_number(conversation.id) % len(options.prefix_tokens)
    prefix = min(options.prefix_tokens[choice], max(1, whole.prefill // 2))
    if conversation.tags.get("target") == conversation.response:
        prefix = whole.prefill  # there is no stored answer, only the words that one is to begin with (AdvBench)
    while prefix > 1 and backend.decode_text(whole.ids[whole.start :][:prefix]).endswith("\ufffd"):
        prefix -= 1  # in the middle of a character
    return Prompt(whole.ids[: whole.start + prefix], prefill=prefix), prefix


def _write(
    backend: Backend, batch: Sequence[_Job], options: AnswerOptions
) -> Iterator[tuple[str, dict[str, str], int]]:
    """Text, tags and number of new tokens of each job."""
    seed = digest_number("\0".join([str(options.seed), *(job.name for job in batch)]), 4)
    prompts = [job.prompt for job in batch]
    written = write_batch(backend, prompts, max_new_tokens=options.max_new_tokens, seed=seed, sampling=options.sampling)
    for job, each in zip(batch, written, strict=True):
        tags = {"prefix_tokens": str(job.prefix), "finish_reason": each.finish_reason}
        yield _text(backend, job, each.token_ids), tags, len(each.token_ids)


def _text(backend: Backend, job: _Job, ids: tuple[int, ...]) -> str:
    """What the model wrote, after the beginning of the stored answer if it was given one."""
    if not job.prefix:
        return backend.decode_text(ids).lstrip(" ")  # a template's own space before the answer comes back with it
    given = job.prompt.ids[job.prompt.start :]
    head, whole = backend.decode_text(given), backend.decode_text(given + ids)
    response = job.conversation.response
    # what the template puts before an answer (a space, a channel opener) is not part of the response
    kept = next((n for n in range(min(len(head), len(response)), 0, -1) if head.endswith(response[:n])), 0)
    return response[:kept] + whole[len(head) :] if kept and whole.startswith(head) else whole.lstrip(" ")


def _judged(job: _Job, text: str, tags: Mapping[str, str]) -> tuple[Conversation, str | None]:
    """The conversation with the model's text, and why it must be left out, or None."""
    matcher, reason = RefusalMatcher.default(), None
    found = {**tags, "on_policy": "continuation" if job.prefix else "answer"}
    if job.prefix:
        if any(matcher.is_refusal(sentence) for sentence in (text, *_SENTENCE.split(text))):
            reason = "the model refuses in its continuation"
    elif not text.strip():
        found["empty"] = "true"
    elif matcher.is_refusal(text):
        found["refusal"] = "true"
    elif job.suspect:
        reason = f"the model's answer does not refuse and {job.suspect}"
    return replace(job.conversation, id=job.key, response=text, tags={**_kept(job.conversation), **found}), reason


def _kept(conversation: Conversation) -> dict[str, str]:
    """The tags of a conversation that its answer keeps."""
    return {name: tag for name, tag in conversation.tags.items() if name not in _TAKEN}


def _count(report: Written, job: _Job, journal: Journal) -> None:
    if job.key in journal.left_out:
        report.left_out.append((job.name, journal.left_out[job.key]))
        return
    row = journal.rows[job.key]
    if row.get("on_policy") == "continuation":
        report.continuations += 1
        return
    report.answers += 1
    report.refused += row.get("refusal") == "true"
    report.empty += row.get("empty") == "true"
