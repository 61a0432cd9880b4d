"""How a guard behaves, apart from its model and its detector."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any, Literal

from anydepth.errors import ConfigError
from anydepth.flow import Plan, check_modes
from anydepth.policy import Policy, Threshold
from anydepth.schedule import Every, Schedule
from anydepth.types import OnError, ReleaseMode

EAGER_CHUNK = 4
"""Tokens decoded at a time where they are sent before their check: a stream that moves, at little cost a call."""


@dataclass(frozen=True, slots=True)
class GuardConfig:
    """Options of a guard.

    Attributes:
        policy: When the scores of an answer halt it.
        schedule: At which depths an answer is checked.
        release: `hold` (nothing leaves unchecked), `eager` (send, then check) or `monitor` (never halt).
        on_error: What a failed check does: `closed` halts the answer, `open` goes on and says so in the verdict.
        refusal: What the user reads instead of the rest of a halted answer.
        prefill: Where a client's prefill is checked: `inside` (at the scheduled depths within it as well: one packed
            pass more, for detectors that read hidden states) or `end` (at its end only).
    """

    policy: Policy = Threshold()
    schedule: Schedule = Every()
    release: ReleaseMode = "hold"
    on_error: OnError = "closed"
    refusal: str = "I can't help with that."
    prefill: Literal["inside", "end"] = "inside"

    def __post_init__(self) -> None:
        check_modes(self.release, self.on_error)
        for name, method in (("policy", "statistic"), ("schedule", "next_after")):
            value = getattr(self, name)
            if isinstance(value, type) or not callable(getattr(value, method, None)):
                raise ConfigError(f"{name} is {value!r}, not a {name}; give e.g. Threshold(0.5) or Every(25)")
        if self.prefill not in ("inside", "end"):
            raise ConfigError(f"prefill is {self.prefill!r}; choose inside (at the scheduled depths) or end")
        if not isinstance(self.refusal, str) or not self.refusal.strip():
            raise ConfigError(f"refusal is {self.refusal!r}; a halted answer must say something")

    def plan(self, *, max_new_tokens: int, prefill: int, whole: bool = False, gated: bool = False) -> Plan:
        """The plan of one answer's flow; a `whole` answer leaves once it has ended without a halt. See `Plan`."""
        return Plan(
            schedule=self.schedule,
            policy=self.policy,
            max_new_tokens=max_new_tokens,
            prefill=prefill,
            release=self.release,
            on_error=self.on_error,
            chunk=None if whole or self.release == "hold" else EAGER_CHUNK,
            whole=whole,
            gated=gated,
        )


OPTIONS = tuple(field.name for field in fields(GuardConfig))
"""Names of the options of a guard."""


def guard_config(options: Mapping[str, Any], base: GuardConfig | None = None) -> GuardConfig:
    """Build a guard's options: the one place where Python, guard.toml, the command line and a request come together.

    Args:
        options: Values by the names in `OPTIONS`; None leaves an option as `base` has it.
        base: What holds where no option is given; the defaults of `GuardConfig` without it.

    Raises:
        ConfigError: There is no such option, or it cannot have the value.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if unknown := sorted(given.keys() - set(OPTIONS)):
        raise ConfigError(f"a guard has no option {', '.join(unknown)}; its options are {', '.join(OPTIONS)}")
    return replace(base or GuardConfig(), **given)


def with_own_policy(base: GuardConfig, detector: object) -> GuardConfig:
    """`base` with the policy that `detector` was calibrated with, if it has one."""
    return guard_config({"policy": getattr(detector, "policy", None)}, base)


BUILT_IN_DETECTORS = ("probe", "rethink", "rethink-score", "cascade")
OVER_PROBE = ("probe", "cascade")
"""Those that are made of a probe."""
_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def check_detector_name(name: str) -> str:
    """Return `name` if it can name a detector: a built-in one, or `package.module:class`; nothing is imported.

    Raises:
        ConfigError: It cannot.
    """
    if name in BUILT_IN_DETECTORS or _REFERENCE.fullmatch(name):
        return name
    raise ConfigError(
        f"detector is {name!r}; choose {', '.join(BUILT_IN_DETECTORS)}, or name one of your own as package.module:class"
    )


_EXTERNAL = re.compile(r"(?:(?P<form>auto|question|turns|moderations):)?(?P<model>.+)@(?P<url>https?://.+)")


def external_named(spec: str) -> dict[str, str]:
    """What `[FORM:]MODEL@URL` says: `model`, `url`, and `form` if it is there; ConfigError for another text."""
    if (found := _EXTERNAL.fullmatch(spec)) is None:
        raise ConfigError(
            f"the external guard is {spec!r}; write [FORM:]MODEL@URL, e.g. my-guard@http://localhost:8001/v1 or "
            "moderations:my-model@https://api.example.org/v1"
        )
    return {name: value for name, value in found.groupdict().items() if value is not None}


def check_band(low: float, high: float) -> tuple[float, float]:
    """Return the band of a cascade if 0 <= low < high <= 1; ConfigError if not."""
    numbers = all(isinstance(value, Real) and not isinstance(value, bool) for value in (low, high))
    if not numbers or not 0 <= low < high <= 1:  # NaN is in no range
        raise ConfigError(f"low is {low!r} and high is {high!r}; they must keep 0 <= low < high <= 1")
    return float(low), float(high)
