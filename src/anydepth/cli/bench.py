"""`anydepth bench`: what a check costs on this machine."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from anydepth.cli import load
from anydepth.cli import options as opt
from anydepth.cli.demo import settings
from anydepth.cli.output import err
from anydepth.errors import ConfigError


def bench(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Hugging Face id or folder. Default: the demo's model.")
    ] = None,
    contexts: Annotated[
        str, typer.Option("--contexts", metavar="N,N", help="Context lengths at which a check is timed.")
    ] = "128,512,2048,8192",
    intervals: Annotated[
        str, typer.Option("--intervals", metavar="N,N", help="Check intervals at which throughput is measured.")
    ] = "10,25,50,100",
    probe: Annotated[
        Path | None, typer.Option("--probe", metavar="PATH", help="A probe file. Default: the one shipped, if any.")
    ] = None,
    dtype: opt.Dtype = "float32",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer repetitions: a first impression.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the figures to a file as well.")
    ] = None,
) -> None:
    """Measure the cost of a check in decode steps, and guarded against unguarded throughput.

    Ratios within one run, so that they can be compared between machines. Leave the machine alone meanwhile.
    """
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise ConfigError(f"--json {json_file}: the folder {json_file.absolute().parent} does not exist")
    if probe is not None and not probe.is_file():
        raise ConfigError(f"--probe {probe}: there is no such file")
    lengths, steps = _numbers("--contexts", contexts), _numbers("--intervals", intervals)
    name = model or settings().model
    load.quiet(name)
    from anydepth import bench as measure

    with err.status("measuring") as status:
        result = measure.run(
            name,
            contexts=lengths,
            intervals=steps,
            probe=None if probe is None else str(probe),
            quick=quick,
            dtype=dtype,
            progress=status.update if err.is_terminal else err.print,
        )
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    Console().print(measure.table(result))


def _numbers(option: str, text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise ConfigError(f"{option} is {text!r}; write whole numbers above 0 with commas, e.g. 128,512")
    return numbers
