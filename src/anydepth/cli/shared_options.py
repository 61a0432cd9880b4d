"""Groups of options that several commands share: each is a dataclass, which a command takes as one argument."""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from anydepth.cli import options as opt
from anydepth.errors import ConfigError

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", metavar="DIR", help="Folder with local copies of the named tables.")
]


@dataclass(frozen=True, slots=True)
class Loading:
    """How the model that a command names is loaded: the options of the panel "The model"."""

    adapter: opt.Adapter = None
    dtype: opt.Dtype = "auto"
    device: opt.Device = None
    revision: opt.Revision = None
    template_kwarg: opt.TemplateKwargs = None
    ride: opt.Ride = "never"

    def of(
        self, model: str, engine: opt.EngineName = "transformers", engine_args: tuple[str, ...] = ()
    ) -> opt.ModelOptions:
        """The `ModelOptions` of `model`; ConfigError if they do not go together."""
        return opt.ModelOptions(
            model, self.adapter, self.dtype, self.device, self.revision, engine, engine_args,
            opt.template_variables(self.template_kwarg), self.ride,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class FastLoading(Loading):
    """`Loading` with the number format that this CPU is fastest in, for what takes hours."""

    dtype: opt.Dtype = "fast"


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """`command` for Typer: each parameter that is a dataclass of options becomes one option per field."""
    hints = get_type_hints(command, include_extras=True)
    groups = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    parameters: list[inspect.Parameter] = []
    for each in inspect.signature(command).parameters.values():
        if each.name not in groups:
            parameters.append(each.replace(annotation=hints[each.name], kind=each.KEYWORD_ONLY))
            continue
        kinds = get_type_hints(groups[each.name], include_extras=True)
        for field in fields(groups[each.name]):
            default = each.empty if field.default is MISSING else field.default
            parameters.append(
                inspect.Parameter(field.name, each.KEYWORD_ONLY, default=default, annotation=kinds[field.name])
            )

    def run(**given: Any) -> None:
        made = {
            name: kind(**{field.name: given.pop(field.name) for field in fields(kind)})  # pyright: ignore
            for name, kind in groups.items()
        }
        command(**given, **made)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    setattr(run, "__signature__", inspect.Signature(parameters))  # noqa: B010
    return run


def numbers(option: str, text: str, *, least: int = 0) -> list[int]:
    """The whole numbers of `option`, written with commas; ConfigError if one is none, or below `least`."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} is {text!r}; write whole numbers with commas, e.g. 14,18") from None
    if min(found) < least:
        raise ConfigError(f"{option} is {text!r}; {min(found)} is below {least}")
    return found
