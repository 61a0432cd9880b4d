"""Put the options of a command that serves over the settings of its guard.toml."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from anydepth.cli import options as opt
from anydepth.policy import Threshold, policy_from, policy_record

if TYPE_CHECKING:
    from anydepth.settings import Settings

http = partial(typer.Option, rich_help_panel="The server")
"""Makes an option of the panel "The server"."""

Given = dict[str, dict[str, Any]]
"""Table -> key -> value of an option, None where it was not given."""


def merged(config: Path | None, given: Given) -> "Settings":
    """The settings of the file, if there is one, with the options over them.

    Raises:
        ConfigError: The file cannot be read, a value cannot be, or two values contradict each other.
    """
    from anydepth.settings import Settings, load_settings, parse_settings

    settings = Settings() if config is None else load_settings(config)
    table = settings.model_dump(exclude_unset=True)
    if variables := given.get("model", {}).get("template_kwargs"):
        given["model"]["template_kwargs"] = {**settings.model.template_kwargs, **variables}
    for name, values in given.items():
        chosen = {key: value for key, value in values.items() if value is not None}
        if chosen:
            table.setdefault(name, {}).update(chosen)
    if given.get("guard", {}).get("interval") is not None:
        table["guard"].pop("adaptive", None)
    return parse_settings(table, origin="the options")


def with_policy(settings: "Settings", policy: opt.PolicyName | None, threshold: float | None) -> "Settings":
    """The settings with the policy of the command line in them; a threshold alone changes that of the file."""
    record = settings.guard.policy
    if policy is not None:
        record = policy_record(opt.GuardOptions(policy=policy, threshold=threshold).build_policy() or Threshold())
    elif threshold is not None and record is not None:
        record = policy_record(policy_from({**record, "threshold": threshold}))
    return settings.model_copy(update={"guard": settings.guard.model_copy(update={"policy": record})})
