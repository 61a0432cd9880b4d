"""`anydepth config`: check a `guard.toml`, and print its schema."""

from pathlib import Path
from typing import Annotated

import typer

from anydepth.cli.output import err, write_json
from anydepth.extras import require

config = typer.Typer(no_args_is_help=True, help="Check a guard.toml, and print its schema.")


@config.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The guard.toml.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print all settings, defaults included, as JSON.")] = False,
) -> None:
    """Check a guard.toml; the exit code is 2 if something in it is wrong, with every key named."""
    require("pydantic", extra="server")
    from anydepth.apis.provider import require_free
    from anydepth.gate import require_halting
    from anydepth.settings import load_settings

    settings = load_settings(file)
    require_free(settings.upstream.request)
    if settings.tools.gate and (policy := settings.guard.build_policy()) is not None:
        require_halting(policy)
    if as_json:
        write_json(settings.model_dump(mode="json"), indent=2)
    err.print(f"{file} is good", markup=False, soft_wrap=True)


@config.command()
def schema() -> None:
    """Print the JSON Schema of guard.toml, for editors."""
    require("pydantic", extra="server")
    from anydepth.settings import settings_schema

    write_json(settings_schema(), indent=2)
