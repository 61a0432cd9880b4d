"""`anydepth bench`: what a check costs on this machine."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from anydepth.atomic import check_writable
from anydepth.cli import load
from anydepth.cli import options as opt
from anydepth.cli.demo import settings
from anydepth.cli.output import err, printable
from anydepth.cli.shared_options import numbers
from anydepth.errors import ConfigError
from anydepth.files import check_destination, write_whole, writing

if TYPE_CHECKING:
    from anydepth.bench import BenchRow


def bench(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Hugging Face id or folder. Default: the demo's model.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="A config.json: measure it with random weights, no download."),
    ] = None,
    contexts: Annotated[
        str, typer.Option("--contexts", metavar="N,N", help="Context lengths at which a check is timed.")
    ] = "128,512,2048,8192",
    intervals: Annotated[
        str, typer.Option("--intervals", metavar="N,N", help="Check intervals at which throughput is measured.")
    ] = "1,5,25",
    probe: Annotated[
        Path | None, typer.Option("--probe", metavar="PATH", help="A probe file. Default: the one shipped, if any.")
    ] = None,
    dtype: opt.Dtype = "float32",
    quick: Annotated[
        bool, typer.Option("--quick", help="At most about 3 minutes instead of 10: a first impression.")
    ] = False,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write the figures to a file as well, after each measurement."),
    ] = None,
) -> None:
    """Measure the cost of a check in decode steps, and guarded against unguarded throughput.

    Ratios within one run, so that they can be compared between machines. Leave the machine alone meanwhile. What does
    not fit into the time is measured less often or left out, and said at the end.
    """
    if json_file is not None:
        check_destination(json_file, "--json")
        with writing(json_file):
            check_writable(json_file)
    if probe is not None and not probe.is_file():
        raise ConfigError(f"--probe {probe}: there is no such file")
    lengths, steps = numbers("--contexts", contexts, least=1), numbers("--intervals", intervals, least=1)
    if config is not None and model is not None:
        raise ConfigError(f"MODEL is {model} and --config is {config}; give one of them")
    name = None if config is not None else model or settings().model
    load.quiet(str(config or name))
    from anydepth import bench as measure

    console = Console(highlight=False)

    def came(rows: "Sequence[BenchRow]", result: Mapping[str, Any]) -> None:
        for row in rows:
            console.print(f"{row.what:<32} {row.at:<22} {row.figure}", markup=False, soft_wrap=True)
        if json_file is not None and (json_file.is_file() or not json_file.exists() or result["finished"]):
            write_whole(json_file, json.dumps(result, indent=2) + "\n")

    result = measure.run(
        name,
        config=config,
        contexts=lengths,
        intervals=steps,
        probe=None if probe is None else str(probe),
        quick=quick,
        dtype=dtype,
        progress=lambda line: err.print(printable(line), style="dim", markup=False, soft_wrap=True),
        came=came,
    )
    for cut in result["cut"]:
        err.print(f"cut: {cut}", style="yellow", markup=False, soft_wrap=True)
