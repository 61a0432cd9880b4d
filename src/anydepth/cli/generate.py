"""`anydepth generate`: one guarded answer."""

import math
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anydepth.cli import load
from anydepth.cli import options as opt
from anydepth.cli.output import HALTED, answer_record, err, summary, write, write_json
from anydepth.cli.shared_options import Loading, grouped
from anydepth.errors import ConfigError, RecordError
from anydepth.fields import messages_of
from anydepth.files import check_text, parse_json, read_stdin, read_text
from anydepth.types import Answer, Finished, Halted, Released

if TYPE_CHECKING:
    from anydepth.guard import Guard

_sampled = partial(typer.Option, rich_help_panel="The answer")
_LAST_SEED = 2**63 - 1
"""The last seed that torch takes on every device."""


@grouped
def generate(
    model: opt.Model,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The request; `-` reads it from standard input.")
    ] = None,
    messages_file: Annotated[
        Path | None,
        typer.Option(
            "--messages-file", metavar="JSON", help='A conversation instead of PROMPT: [{"role": …, "content": …}, …].'
        ),
    ] = None,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="A system prompt.")] = None,
    prefill: Annotated[
        str | None, typer.Option("--prefill", metavar="TEXT", help="Start of the answer, which the model continues.")
    ] = None,
    prefill_file: Annotated[
        Path | None,
        typer.Option(
            "--prefill-file", metavar="PATH", help="The same, from a text file; one newline at its end is dropped."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the whole account as one JSON object instead of the text.")
    ] = False,
    fail_on_halt: Annotated[
        bool, typer.Option("--fail-on-halt", help="Exit with code 3 if the answer was halted.")
    ] = False,
    max_new_tokens: Annotated[int, _sampled("--max-new-tokens", min=1, help="Longest answer, in tokens.")] = 512,
    temperature: Annotated[
        float | None, _sampled("--temperature", min=0, help="0 is greedy. Default: the model's own settings.")
    ] = None,
    top_p: Annotated[float | None, _sampled("--top-p", min=0, max=1, help="Nucleus sampling.")] = None,
    seed: Annotated[int | None, _sampled("--seed", min=0, max=_LAST_SEED, help="Repeat a sample.")] = None,
    *,
    guarding: opt.Guarding,
    release: opt.Release = "hold",
    on_error: opt.OnErrorOption = "closed",
    refusal: opt.Refusal = None,
    check_prefill: opt.CheckPrefill = None,
    loading: Loading,
) -> None:
    """Answer a request under guard and print the answer as it is released.

    The answer goes to standard output, a line about checks and verdict to standard error. A halted answer ends in the
    refusal.
    """
    messages = _messages(prompt, messages_file, system)
    opening = _prefill(prefill, prefill_file)
    sampling = _sampling(temperature, top_p)
    options = guarding.options(release=release, on_error=on_error, refusal=refusal, check_prefill=check_prefill)
    guard = load.open_guard(loading.of(model), options, options.external_options())
    arguments = {"prefill": opening, "max_new_tokens": max_new_tokens, "seed": seed, **sampling}
    answer = guard.generate(messages, **arguments) if as_json else _streaming(guard, messages, arguments)
    if as_json:
        write_json(answer_record(answer))
    else:
        err.print(summary(answer), style="bold red" if answer.halted else "dim", markup=False, soft_wrap=True)
    if answer.halted and fail_on_halt:
        raise typer.Exit(HALTED)


def _streaming(guard: "Guard", messages: Any, arguments: dict[str, Any]) -> Answer:
    """Print released text at once; a refusal stands apart from what was released before it."""
    answer, last = None, ""
    for event in guard.stream(messages, **arguments):
        if isinstance(event, Released) and event.text:
            write(event.text)
            last = event.text
        elif isinstance(event, Halted):
            write(("\n\n" if last else "") + event.refusal)
            last = event.refusal
        elif isinstance(event, Finished):
            answer = event.answer
    if not last.endswith("\n"):
        write("\n")
    assert answer is not None, "a stream ends with Finished"
    return answer


def _messages(prompt: str | None, messages_file: Path | None, system: str | None) -> list[dict[str, Any]]:
    if messages_file is not None:
        if prompt is not None:
            raise ConfigError("PROMPT and --messages-file are both given; give one of them")
        messages = _conversation(messages_file)
    else:
        messages = [{"role": "user", "content": _prompt(prompt)}]
    if system is not None:
        if any(message["role"] == "system" for message in messages):
            raise ConfigError(f"{messages_file} has a system message already; drop --system")
        messages.insert(0, {"role": "system", "content": check_text(system, "--system")})
    return messages


def _prompt(given: str | None) -> str:
    if given is None and sys.stdin is not None and sys.stdin.isatty():
        raise ConfigError("there is no PROMPT; give it as an argument, or `-` to read standard input")
    text = read_stdin().removesuffix("\n") if given is None or given == "-" else check_text(given, "PROMPT")
    if not text.strip():
        raise ConfigError("the prompt is empty; give a request to answer")
    return text


def _conversation(path: Path) -> list[dict[str, Any]]:
    name = f"--messages-file {path}"
    try:
        return messages_of(parse_json(read_text(path, name), name), "the conversation")
    except RecordError as error:
        raise ConfigError(f"{name}: {error}") from error


def _prefill(text: str | None, path: Path | None) -> str | None:
    if path is None:
        return None if text is None else check_text(text, "--prefill")
    if text is not None:
        raise ConfigError("--prefill and --prefill-file are both given; give one of them")
    return read_text(path, f"--prefill-file {path}").removesuffix("\n")


def _sampling(temperature: float | None, top_p: float | None) -> dict[str, Any]:
    """Return the engine's options; without any of ours the model's own generation settings hold."""
    for name, value in (("--temperature", temperature), ("--top-p", top_p)):
        if value is not None and not math.isfinite(value):  # NaN is neither below nor above a bound
            raise ConfigError(f"{name} is {value}; give a number")
    if temperature == 0:
        if top_p is not None:
            raise ConfigError(f"--top-p {top_p} has no effect with --temperature 0 (greedy); drop one of them")
        return {"do_sample": False}
    given = {"temperature": temperature, "top_p": top_p}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return {"do_sample": True, **options} if options else {}
