"""A plugin of Simon Willison's `llm`: `llm -m anydepth/NAME`, and `llm anydepth add`, `remove` and `scan`."""

# ruff: noqa: E402 - a missing package gives the error of anydepth.extras, before its own imports

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

from anydepth.atomic import write_whole
from anydepth.audit.answer import check_record
from anydepth.detectors import LinearProbe
from anydepth.detectors.named import detector_named, detector_over
from anydepth.errors import AnydepthError, ConfigError, PromptError
from anydepth.extras import require
from anydepth.guard import Guard, shipped_probe
from anydepth.guard_report import GuardReport
from anydepth.integrations.answering import Answering, Pieces, apieces
from anydepth.server.answer.blocked import refused_text
from anydepth.server.answer.compose import Delta, End
from anydepth.server.answer.usage import token_counts
from anydepth.types import Message

require("llm", extra="llm")

import click
import llm
from llm.parts import ReasoningPart, StreamEvent, TextPart
from pydantic import Field

FLAGGED = 3
"""Exit code of `llm anydepth scan` for an answer that is flagged; errors have 1 and 2."""


class LlmOptions(llm.Options):
    """Options of an answer, each given as `-o NAME VALUE`."""

    max_tokens: int = Field(512, ge=1, description="tokens to generate at most")
    temperature: float | None = Field(None, ge=0, description="0 is greedy")
    top_p: float | None = Field(None, gt=0, le=1, description="nucleus")
    top_k: int | None = Field(None, ge=1, description="most probable tokens that count")
    seed: int | None = Field(None, description="repeats a sample")
    prefill: str | None = Field(None, description="start of the answer, which the model continues")
    blocked: Literal["error", "text"] = Field(
        "error", description="a blocked answer ends as an error, or as the refusal"
    )


class _Guarded:
    """What the model has in common with its twin for asyncio."""

    can_stream = True
    Options = LlmOptions

    def __init__(self, name: str, entry: dict[str, Any]) -> None:
        self.model_id, self.entry = f"anydepth/{name}", entry

    def pieces(self, prompt: llm.Prompt) -> Pieces:
        """What the guard lets through."""
        options: Any = prompt.options
        given = {name: getattr(options, name) for name in ("temperature", "top_p", "top_k")}
        sampling: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if sampling:
            sampling = {"do_sample": True, **sampling} if options.temperature != 0 else {"do_sample": False}
        messages = [_message(each) for each in prompt.messages]
        if options.prefill:
            messages.append({"role": "assistant", "content": options.prefill})
        asking = answering(json.dumps(self.entry, sort_keys=True))
        return asking.pieces(messages, max_new_tokens=options.max_tokens, seed=options.seed, **sampling)

    def said(self, piece: Delta | End, prompt: llm.Prompt, response: Any) -> Iterator[StreamEvent]:
        """A piece in llm's terms; ModelError for the end of a blocked answer."""
        if isinstance(piece, Delta):
            if piece.reasoning and not prompt.hide_reasoning:
                yield StreamEvent(type="reasoning", chunk=piece.reasoning)
            if piece.content:
                yield StreamEvent(type="text", chunk=piece.content)
            return
        read, written = token_counts(piece.answer)
        response.set_usage(input=read, output=written)
        guard = answering(json.dumps(self.entry, sort_keys=True)).guard
        report = GuardReport.of(piece.answer, guard.config).record()
        response.response_json = {"finish_reason": piece.finish_reason, "anydepth": report}
        if not piece.answer.halted:
            return
        if prompt.options.blocked == "error":  # pyright: ignore[reportAttributeAccessIssue]
            if piece.wrote:
                yield StreamEvent(type="text", chunk="\n")
            raise llm.ModelError(f"anydepth halted the answer at depth {report['depth']}: {piece.refusal}")
        yield StreamEvent(type="text", chunk=refused_text(piece.refusal, wrote=piece.wrote))


class LlmModel(_Guarded, llm.Model):
    """A guarded model; a blocked answer ends as `llm.ModelError`, unless `-o blocked text` is given."""

    def execute(self, prompt: llm.Prompt, stream: bool, response: Any, conversation: Any) -> Iterator[StreamEvent]:
        """Answer; the events leave window by window whether `stream` is set or not."""
        with closing(self.pieces(prompt)) as pieces:
            for piece in pieces:
                yield from self.said(piece, prompt, response)


class AsyncLlmModel(_Guarded, llm.AsyncModel):
    """The same for asyncio; the model runs in a thread."""

    async def execute(
        self, prompt: llm.Prompt, stream: bool, response: Any, conversation: Any
    ) -> AsyncIterator[StreamEvent]:
        """Answer; see `LlmModel.execute`."""
        asked = await asyncio.to_thread(self.pieces, prompt)  # the first time, it loads the model
        async with aclosing(apieces(asked)) as pieces:
            async for piece in pieces:
                for event in self.said(piece, prompt, response):
                    yield event


@llm.hookimpl
def register_models(register: Any) -> None:
    """Register what `llm anydepth add` has noted."""
    try:
        known = entries()
    except ConfigError as error:  # the other models of llm go on
        click.echo(f"Warning: {error}", err=True)
        return
    for name, entry in known.items():
        register(LlmModel(name, entry), AsyncLlmModel(name, entry))


@llm.hookimpl
def register_commands(cli: Any) -> None:
    """Register the commands."""
    cli.add_command(_group())


def load_guard(entry: dict[str, Any]) -> Guard:
    """Load the model of an entry with its guard."""
    from anydepth.backends.transformers import load

    probe, name = entry.get("probe"), entry.get("detector", "probe")
    detector = detector_over(LinearProbe.load(probe), name) if probe else detector_named(name)
    backend = load(entry["model"], **{key: entry[key] for key in ("dtype", "device") if key in entry})
    return Guard.from_backend(backend, detector or detector_over(shipped_probe(backend), name))


@cache
def answering(entry: str) -> Answering:
    """Who answers for an entry, given as JSON: loaded once a process."""
    return Answering(load_guard(json.loads(entry)))


def entries() -> dict[str, dict[str, Any]]:
    """Name of each model that was added -> how it is loaded; ConfigError if the file cannot be read."""
    path = _file()
    try:
        known = json.loads(path.read_text("utf-8")) if path.exists() else {}
        if not all(isinstance(entry, dict) and isinstance(entry["model"], str) for entry in known.values()):
            raise ValueError("an entry has no model")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); delete it and add the models again") from error
    return known


def _file() -> Path:
    return llm.user_dir() / "anydepth.json"


def _message(message: Any) -> Message:
    """A message as chat templates read it; thoughts of earlier answers are left out, as templates do."""
    parts = [part for part in message.parts if not isinstance(part, ReasoningPart)]
    if other := next((part for part in parts if not isinstance(part, TextPart)), None):
        raise PromptError(f"a message has a {type(other).__name__}; only text can be guarded here")
    return {"role": message.role, "content": "\n".join(part.text for part in parts)}


def _group() -> click.Group:
    @click.group(name="anydepth")
    def group() -> None:
        """Models whose answers are guarded while they are written."""

    @group.command()
    @click.argument("model")
    @click.option("--name", help="Its name after anydepth/; the model's own by default.")
    @click.option("--probe", type=click.Path(exists=True, dir_okay=False, resolve_path=True), help="A fitted probe.")
    @click.option("--detector", help="probe (default), cascade, rethink, rethink-score or MODULE:ATTRIBUTE.")
    @click.option("--dtype", help="As of `anydepth generate`.")
    @click.option("--device", help="As of `anydepth generate`.")
    def add(model: str, name: str | None, **given: str | None) -> None:
        """Note a MODEL, a hub id or a folder, for `llm -m anydepth/NAME`."""
        folder = Path(model)
        entry = {"model": str(folder.resolve()) if folder.is_dir() else model}
        entry |= {key: value for key, value in given.items() if value}
        name = name or (folder.resolve().name if folder.is_dir() else model)
        with _told():
            _write({**entries(), name: entry})
        click.echo(f"llm -m anydepth/{name}")

    @group.command()
    @click.argument("name")
    def remove(name: str) -> None:
        """Forget a model."""
        with _told():
            known = entries()
            _entry(known, name)
            _write({each: entry for each, entry in known.items() if each != _plain(name)})

    @group.command()
    @click.argument("name")
    @click.argument("answer", required=False)
    @click.option("-p", "--prompt", required=True, help="The user's message that was answered.")
    @click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
    def scan(name: str, answer: str | None, prompt: str, as_json: bool) -> None:
        """Check a finished ANSWER (default: standard input) at every depth; the exit code is 3 if it is flagged."""
        with _told():
            entry = _entry(entries(), name)
            asking = answering(json.dumps(entry, sort_keys=True))
            result = asking.guard.scan(prompt, sys.stdin.read() if answer is None else answer)
        verdict = result.verdict
        if as_json:
            checks = [check_record(check) for check in result.checks]
            click.echo(json.dumps({"flagged": verdict.halt, "depth": verdict.depth, "checks": checks}))
        else:
            for check in result.checks:
                click.echo(f"{check.depth:>6}  {check.error or f'{check.score:.3f}'}")
            click.echo(f"{'flagged' if verdict.halt else 'clear'} at depth {verdict.depth}")
        if verdict.halt:
            raise SystemExit(FLAGGED)

    return group


@contextmanager
def _told() -> Iterator[None]:
    """Errors of anydepth are told as the command line's own."""
    try:
        yield
    except AnydepthError as error:
        raise click.ClickException(str(error)) from error


def _write(known: dict[str, dict[str, Any]]) -> None:
    write_whole(_file(), (json.dumps(known, indent=2) + "\n").encode())


def _plain(name: str) -> str:
    return name.removeprefix("anydepth/")


def _entry(known: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    if _plain(name) not in known:
        raise ConfigError(f"there is no model anydepth/{_plain(name)}; add it with `llm anydepth add MODEL`")
    return known[_plain(name)]
