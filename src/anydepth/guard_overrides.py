"""Apply a client's options of the guard, within what the operator allows."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, Strict

from anydepth.config import GuardConfig, guard_config
from anydepth.errors import BadRequest
from anydepth.policy import policy_from, with_threshold
from anydepth.schedule import Every
from anydepth.settings import Bounds, OverridesTable, WholeBounds
from anydepth.types import ReleaseMode


class GuardOverrides(BaseModel):
    """The `anydepth` field of a request: what to change of the guard, as far as the operator allows it."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    interval: Annotated[int, Strict(), Field(ge=1, description="Check every N tokens.")] | None = None
    threshold: Annotated[float, Strict(), Field(ge=0, description="Value at which the policy halts.")] | None = None
    policy: Annotated[str, Field(description="Name of a policy that the operator has defined.")] | None = None
    release: ReleaseMode | None = None
    checks: Annotated[bool, Strict()] = Field(False, description="Tell the score of every check.")


def apply_overrides(guard: GuardConfig, wanted: GuardOverrides | None, allowed: OverridesTable) -> GuardConfig:
    """The guard of one request; BadRequest names the option, its value and what is allowed."""
    if wanted is None:
        return guard
    changes: dict[str, Any] = {}
    if wanted.release is not None and wanted.release != guard.release:
        if wanted.release not in allowed.release:
            raise _refused("release", wanted.release, ", ".join([guard.release, *allowed.release]))
        changes["release"] = wanted.release
    if wanted.interval is not None:
        _check_range("interval", wanted.interval, allowed.interval)
        doubling = guard.schedule.doubling if isinstance(guard.schedule, Every) else True
        changes["schedule"] = Every(wanted.interval, doubling)
    if wanted.policy is not None:
        if wanted.policy not in allowed.policies:
            raise _refused("policy", wanted.policy, ", ".join(allowed.policies))
        changes["policy"] = policy_from(allowed.policies[wanted.policy])
    if wanted.threshold is not None:
        _check_range("threshold", wanted.threshold, allowed.threshold)
        try:
            changes["policy"] = with_threshold(changes.get("policy", guard.policy), wanted.threshold)
        except ValueError as error:
            raise BadRequest(f"anydepth.threshold: {error}", "anydepth.threshold") from error
    if wanted.checks and not allowed.checks:
        raise _refused("checks", True, None)
    return guard_config(changes, guard)


def _check_range(option: str, value: float, allowed: Bounds | WholeBounds | None) -> None:
    if allowed is None or not allowed.min <= value <= allowed.max:
        raise _refused(option, value, allowed and f"{allowed.min:.9g} to {allowed.max:.9g}")


def _refused(option: str, value: object, allowed: str | None) -> BadRequest:
    remedy = f"choose {allowed}, or leave it out" if allowed else "leave it out; the operator allows no other"
    return BadRequest(
        f"anydepth.{option} is {value!r}, which this server does not allow; {remedy}", f"anydepth.{option}"
    )
