"""Say what each stage of a cascade did at a check, and sum it up over checks."""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class Spent:
    """What a detector used at a check besides the passes that read states.

    Attributes:
        look_ahead_tokens: Tokens that the model wrote after the Safety Tokens, as far as the backend counts them.
        requests: Requests to an endpoint.
        requests_without_usage: How many of them the endpoint told no usage of; tokens and cost are lower bounds then.
        prompt_tokens: Tokens that the endpoint read, by its word.
        completion_tokens: Tokens that it wrote, by its word.
        cost: What they cost; None without prices.
    """

    look_ahead_tokens: int = 0
    requests: int = 0
    requests_without_usage: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None


NOTHING = Spent()


@dataclass(frozen=True, slots=True)
class StageUse:
    """One detector of a cascade at one check. The last one that was asked decided the check, or failed.

    Attributes:
        name: What the stage is called, see `stage_name`: no two stages of a cascade share it.
        seconds: How long it took; checks that are made together share their time.
        spent: What it used.
    """

    name: str
    seconds: float
    spent: Spent = NOTHING


def stage_name(name: str, before: Sequence[StageUse]) -> str:
    """What a stage is called: its detector's name, with its place in the cascade where an earlier stage has the name.

    Stages are asked in order, none left out, so that each is called the same at every check.

    Args:
        name: The detector's name.
        before: The stages before it.

    Returns:
        E.g. `rethink`, or `rethink_2` for the second stage behind a first one called `rethink`.
    """
    taken = {stage.name for stage in before}
    while name in taken:
        name = f"{name}_{len(before) + 1}"
    return name


def stages_of(reply: object) -> tuple[StageUse, ...]:
    """The stages that a score, or an exception that stands for one, has; empty if it is not of a cascade."""
    return getattr(reply, "stages", ())


def with_stages(error: Exception, stages: Sequence[StageUse]) -> Exception:
    """`error` with the stages that were asked until it was raised; without, if it takes no attributes."""
    with contextlib.suppress(AttributeError):
        error.stages = tuple(stages)  # pyright: ignore[reportAttributeAccessIssue]
    return error


def stage_sums(checks: Iterable[tuple[Sequence[StageUse], bool]]) -> dict[str, dict[str, Any]] | None:
    """Sums by the stages' names, JSON-ready; None if no check has stages.

    Each stage has `checks` (those that it was asked at), `decided` (those that no later stage was asked at, and that
    did not fail), `seconds`, and the sums of the fields of `Spent`. `cost` is null unless a check has one.

    Args:
        checks: For each check its stages, and whether it failed.
    """
    found: dict[str, dict[str, Any]] = {}
    for stages, failed in checks:
        for place, stage in enumerate(stages, 1):
            sums = found.setdefault(stage.name, {"checks": 0, "decided": 0, "seconds": 0.0, **asdict(NOTHING)})
            sums["checks"] += 1
            sums["decided"] += int(place == len(stages) and not failed)
            sums["seconds"] += stage.seconds
            for each in fields(Spent):
                if (value := getattr(stage.spent, each.name)) is not None:
                    sums[each.name] = (sums[each.name] or 0) + value
    return found or None
