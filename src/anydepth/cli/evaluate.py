"""`anydepth eval`: measure what the guard does, one suite a claim of the paper."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from anydepth.cli import load
from anydepth.cli import options as opt
from anydepth.cli.evidence import text_table
from anydepth.cli.output import Bars, err
from anydepth.cli.report import report
from anydepth.cli.shared_options import DataDir, FastLoading, grouped
from anydepth.config import GuardConfig
from anydepth.detectors import LinearProbe
from anydepth.errors import ConfigError
from anydepth.evals.eval_options import EvalOptions
from anydepth.evals.evaluation import Evaluation, evaluate
from anydepth.evals.figure import Figure, Summary
from anydepth.evals.suite import QUICK, SUITES, load_suite
from anydepth.evals.suite_options import check_settings
from anydepth.extras import require
from anydepth.files import check_folder
from anydepth.schedule import Every

_SHOWN = 12
_LAST_SEED = 2**32 - 1
"""The last seed that numpy and scikit-learn take."""


@grouped
def evaluation(
    model: opt.Model,
    output: Annotated[Path, opt.output(metavar="RUN", help="Folder of the run: records, summary, manifest.")],
    suite: Annotated[
        list[str] | None,
        typer.Option(
            "--suite", metavar="NAME", help=f"What to measure; may be given again. One of {', '.join(SUITES)}."
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help=f"Small samples; without --suite: {', '.join(QUICK)}.")
    ] = False,
    data_dir: DataDir = None,
    probe: opt.Probe = None,
    interval: opt.Interval = None,
    arm: Annotated[
        list[str] | None, typer.Option("--arm", metavar="NAME", help="Compare only these defences; may be given again.")
    ] = None,
    judge: Annotated[
        str,
        typer.Option(
            "--judge",
            metavar="SPEC",
            help="`refusal`, `text`, `classifier:PATH` or `openai:MODEL@URL`; written beside every figure it decides.",
        ),
    ] = "text",
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", help="At most so many answers a set.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="SUITE.NAME=VALUE", help="An option of a single suite.")
    ] = None,
    guard_model: Annotated[
        str | None, typer.Option("--guard-model", metavar="MODEL", help="A model to ask as an external guard.")
    ] = None,
    attacker: Annotated[
        str | None, typer.Option("--attacker", metavar="MODEL", help="A model that writes attacks. Default: MODEL.")
    ] = None,
    draw: Annotated[bool, typer.Option("--report/--no-report", help="Draw RUN/report/index.html at the end.")] = True,
    seed: Annotated[int, typer.Option("--seed", min=0, max=_LAST_SEED, help="Of every choice that is drawn.")] = 0,
    *,
    loading: FastLoading,
) -> None:
    """Measure the guard on a model: separability, deep prefills, attacks, false alarms, cost.

    Writes RUN/records, RUN/summary.json, RUN/manifest.json and the page RUN/report/index.html, which
    `anydepth report RUN` draws again. What models wrote stays in RUN/texts. The same command goes on where it was
    stopped.
    """
    if not suite and not quick:
        raise ConfigError(f"say what to measure: --suite NAME (one of {', '.join(SUITES)}), or --quick")
    names = tuple(dict.fromkeys(suite or QUICK))
    for name in names:
        load_suite(name)
    check_folder(output, "-o")
    if draw:  # before the work, not after it
        require("jinja2", extra="report")
        require("matplotlib", extra="report")
    options = EvalOptions(
        data_dir=data_dir,
        seed=seed,
        quick=quick,
        limit=limit,
        arms=tuple(arm or ()),
        settings=dict(map(_setting, setting or ())),
        guard_model=guard_model,
        attacker=attacker,
    )
    check_settings(options.settings)
    given = None if probe is None else LinearProbe.load(probe)
    config = GuardConfig() if interval is None else GuardConfig(schedule=Every(interval))
    backend = load.open_backend(loading.of(model))
    with Bars() as bars:
        found = evaluate(Evaluation(backend, output, options, judge, given, config, _command()), names, bars)
    for summary in found.values():
        _show(summary)
    err.print(Text(f"records and summary in {output}"), soft_wrap=True)
    if draw:
        report([output])


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    suite, dot, _ = name.partition(".")
    if not equals or not dot or suite not in SUITES:
        raise ConfigError(f"--set {text!r}: write SUITE.NAME=VALUE, with a suite of {', '.join(SUITES)}")
    return name, value


def _command() -> str:
    """The command line, without the folders of this machine."""
    return shlex.join(["anydepth", *map(_without_folder, sys.argv[1:])])


def _without_folder(part: str) -> str:
    before, equals, value = part.rpartition("=")
    is_path = value.startswith(("/", "~", ".")) or Path(value).exists()
    return before + equals + (Path(value).name if is_path else value)


def _show(summary: Summary) -> None:
    out = Console(highlight=False)
    rows = [
        (each.name, ", ".join(f"{key} {value}" for key, value in each.group.items()), *_values(each), str(each.answers))
        for each in summary.figures[:_SHOWN]
    ]
    columns = ["figure", "of", "value", "95 % interval", "answers"]
    out.print(text_table(columns, rows, title=summary.title, title_justify="left"))
    if (more := len(summary.figures) - _SHOWN) > 0:
        out.print(Text(f"and {more} more figures in summary.json"))


def _values(figure: Figure) -> tuple[str, str]:
    """The value and its interval."""
    value = "–" if figure.value is None else f"{figure.value:.3g} {figure.unit}"
    return value, "" if figure.interval is None else f"{figure.interval[0]:.3g} to {figure.interval[1]:.3g}"
