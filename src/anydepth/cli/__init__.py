"""The command line: every command, and what becomes of its errors.

Nothing here imports torch or a model library before a command runs.
"""

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from anydepth import __version__
from anydepth.cli import (
    bench,
    calibrate,
    collect,
    demo,
    evaluate,
    fit,
    generate,
    inspect,
    probe,
    proxy,
    report,
    scan,
    serve,
)
from anydepth.cli.config import config
from anydepth.cli.output import escape_unwritable, flush_output, print_error
from anydepth.errors import AnydepthError, CheckError, ConfigError


class Commands(TyperGroup):
    """Turn an AnydepthError of any command, and what the system refuses, into one red line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; with `--debug` an error keeps its traceback."""
        try:
            return super().invoke(ctx)
        except AnydepthError as error:
            if ctx.params.get("debug"):
                raise
            print_error(error)
            # 1: the work itself went wrong; 2: what the user gave cannot be used
            raise typer.Exit(1 if isinstance(error, CheckError) else 2) from None
        except BrokenPipeError:  # `anydepth generate ... | head`: nobody reads on, and that is no error
            sys.stderr.close()
            raise typer.Exit(0) from None
        except (OSError, MemoryError) as error:  # a full disk, a file that went away: the machine's fault, not a bug
            if ctx.params.get("debug"):
                raise
            _tell_refused(error)
            raise typer.Exit(2) from None


app = typer.Typer(
    name="anydepth",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done · 1 the work went wrong (some records failed, the demo did not show what it says) · "
    "2 wrong usage or unusable input · 3 the answer was halted (`generate --fail-on-halt`).",
)


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    typer.echo(f"anydepth {__version__}")
    raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Guard a language model's answer while it is written.

    anydepth asks the model's own Safety Tokens, at chosen depths of the answer, whether the answer has turned harmful,
    and lets no token out before that. MODEL is a Hugging Face id or a folder.

    Start with `anydepth demo`.
    """


for command in (
    demo.demo,
    generate.generate,
    scan.scan,
    serve.serve,
    proxy.proxy,
    collect.collect,
    fit.fit,
    calibrate.calibrate,
    inspect.inspect,
    bench.bench,
):
    app.command()(command)
app.command("eval")(evaluate.evaluation)
app.command()(report.report)
app.add_typer(probe.app, name="probe")
app.add_typer(config, name="config")


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; leaves through SystemExit with the command's exit code."""
    escape_unwritable()
    given = sys.argv[1:] if args is None else list(args)
    try:
        app(args=given)
    except OSError as error:  # of help and version, which are printed before a command runs
        if "--debug" in given:
            raise
        _tell_refused(error)
        raise SystemExit(2) from None


def _tell_refused(error: OSError | MemoryError) -> None:
    """Say in one line what the system refused; the traceback is for `--debug`."""
    flush_output()
    if isinstance(error, MemoryError):
        said = f"there is not enough memory{f' ({error})' if str(error) else ''}"
    else:
        said = f"{error.filename or 'what was to be read or written'}: {error.strerror or error}"
    print_error(ConfigError(f"{said}; `anydepth --debug` shows where this was"))
