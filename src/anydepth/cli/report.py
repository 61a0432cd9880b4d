"""`anydepth report`: show people what evaluations found."""

from pathlib import Path
from typing import Annotated

import typer

from anydepth.cli import options as opt
from anydepth.cli.output import err, plural
from anydepth.cli.output import write as say
from anydepth.errors import ConfigError
from anydepth.files import check_folder
from anydepth.locks import hold


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN…", help="Folders that `anydepth eval MODEL -o RUN` wrote.")
    ],
    output: Annotated[
        Path | None, opt.output(metavar="OUT", help="Folder for the report. Default, for one run: RUN/report.")
    ] = None,
    title: Annotated[
        str | None, typer.Option("--title", metavar="TEXT", help="Headline. Default: the names of the models.")
    ] = None,
) -> None:
    """Make one page for people from the figures of evaluations.

    Several runs are set side by side. OUT/index.html needs no other file and no network; OUT/figures has each figure as
    SVG and PNG, OUT/tables each table as CSV. Prints where the page is.
    """
    if output is None and len(runs) > 1:
        raise ConfigError(f"{plural(len(runs), 'run')} and no folder for their report; give one with -o")
    folder = output or runs[0] / "report"
    if output is not None:
        check_folder(output, "-o")
    from anydepth.report import open_runs, render, write

    opened = open_runs(runs)
    with err.status("drawing"):
        files = render(opened, title=title)
    with hold(folder):
        page = write(files, folder)
    say(f"{page}\n")
