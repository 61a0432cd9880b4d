"""The options that several commands share, and the objects they describe."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from anydepth.config import OVER_PROBE, check_detector_name, external_named, guard_config
from anydepth.errors import ConfigError
from anydepth.policy import Policy, policy_from
from anydepth.schedule import Every
from anydepth.templates.rendering import checked_kwargs
from anydepth.types import OnError, ReleaseMode

PolicyName = Literal["threshold", "k_of_n", "ewma", "cusum"]
DtypeName = Literal["auto", "fast", "float32", "bfloat16", "float16"]
RideName = Literal["never", "auto", "always"]
CheckPrefillName = Literal["inside", "end"]
EngineName = Literal["transformers", "vllm"]

# what makes an option of the panel "The guard", of the panel "The model", and the option of where results go
guard = partial(typer.Option, rich_help_panel="The guard")
model = partial(typer.Option, rich_help_panel="The model")
output = partial(typer.Option, "--output", "-o")

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Hugging Face id (org/name) or folder of a chat model.")]
Probe = Annotated[
    Path | None,
    guard("--probe", metavar="PATH", help="A probe file or probe folder. Default: the one shipped for this model."),
]
Detector = Annotated[
    str,
    guard(
        "--detector",
        help="How a check is read: `probe` (a linear probe on a hidden state), `rethink` (look ahead for a refusal), "
        "`rethink-score` (how likely a refusal is, one forward pass), `cascade` (the probe, and where it is unsure a "
        "second detector, as `anydepth calibrate --cascade` has set them), or `package.module:class` of your own.",
    ),
]
External = Annotated[
    str | None,
    guard(
        "--external",
        metavar="[FORM:]MODEL@URL",
        help="A guard model behind an OpenAI-compatible endpoint, which a cascade asks where it is still unsure. FORM: "
        "`question`, `turns`, `moderations`, or by the model's name. Its key: OPENAI_API_KEY, for api.openai.com only.",
    ),
]
PolicyOption = Annotated[
    PolicyName | None,
    guard(
        "--policy", help="How the scores of one answer become a halt. Default: what the detector was calibrated with."
    ),
]
Threshold = Annotated[
    float | None, guard("--threshold", help="Halt at this value (0 to 1). Default: the policy's own.")
]
Interval = Annotated[
    int | None,
    guard("--interval", help="Check every N tokens, more often at the start. Default: 25.", show_default=False),
]
Release = Annotated[
    ReleaseMode,
    guard("--release", help="`hold`: no token leaves unchecked; `eager`: send, then check; `monitor`: never halt."),
]
OnErrorOption = Annotated[
    OnError, guard("--on-error", help="What a failed check does: `closed` halts, `open` lets it go on.")
]
Refusal = Annotated[
    str | None,
    guard("--refusal", metavar="TEXT", help="Text in place of what is withheld. Default: I can't help with that."),
]
CheckPrefill = Annotated[
    CheckPrefillName | None,
    guard(
        "--check-prefill",
        help="Where a forced start of the answer is checked: `inside`, at the scheduled depths within it too (the "
        "default), or at its `end` only.",
    ),
]
Adapter = Annotated[str | None, model("--adapter", metavar="PATH", help="A PEFT (LoRA) adapter to load on top.")]
Dtype = Annotated[
    DtypeName,
    model(
        "--dtype", help="Number format of the weights. `auto`: the checkpoint's; `fast`: what this CPU is fastest in."
    ),
]
Device = Annotated[str | None, model("--device", help="Where to run, e.g. `cuda:0`. Default: the CPU.")]
Ride = Annotated[
    RideName,
    model(
        "--ride",
        help="Whether checks ride in the decode step and not on a fork of the cache: `never`, `auto` where the cache "
        "allows it, or `always`.",
    ),
]
Revision = Annotated[str | None, model("--revision", help="Branch, tag or commit of a hub model.")]
TemplateKwargs = Annotated[
    list[str] | None,
    model(
        "--template-kwarg",
        metavar="NAME=VALUE",
        help="A variable of the model's chat template, e.g. `enable_thinking=false`; may be given again. VALUE is "
        "JSON, or else text.",
    ),
]
EngineArgs = Annotated[
    list[str] | None,
    model(
        "--engine-arg",
        metavar="NAME=VALUE",
        help="An option of `vllm.LLM` for --engine vllm, e.g. `tensor_parallel_size=2`; may be given again.",
    ),
]


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Which model to load, and how; what the engine does not take is refused before a model is loaded.

    Attributes:
        model: Hub id or folder.
        adapter: PEFT adapter.
        dtype: Number format of the weights.
        device: Where Transformers runs it.
        revision: Of a hub model.
        engine: What runs it.
        engine_args: `NAME=VALUE`, options of `vllm.LLM`.
        template_kwargs: Variables for the chat template.
        ride: Whether checks ride in the decode steps of Transformers.
    """

    model: str
    adapter: str | None = None
    dtype: DtypeName = "auto"
    device: str | None = None
    revision: str | None = None
    engine: EngineName = "transformers"
    engine_args: tuple[str, ...] = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    ride: RideName = "never"

    def __post_init__(self) -> None:
        for name, value in (("--adapter", self.adapter), ("--device", self.device)):
            if self.engine == "vllm" and value is not None:
                raise ConfigError(f"{name} {value} does not apply to --engine vllm; drop it")
        if self.engine == "vllm" and self.dtype == "fast":
            raise ConfigError("--dtype fast does not apply to --engine vllm; name a format, or leave it at auto")
        if self.engine == "vllm" and self.ride != "never":
            raise ConfigError(f"--ride {self.ride} does not apply to --engine vllm, whose checks ride anyway; drop it")
        if self.engine_args and self.engine != "vllm":
            raise ConfigError(f"--engine-arg {self.engine_args[0]} goes with --engine vllm")
        self.engine_options()
        checked_kwargs(self.template_kwargs)

    def engine_options(self) -> dict[str, Any]:
        """The options of `vllm.LLM`; a value that is JSON is read as such, any other is text."""
        return _named_values("--engine-arg", self.engine_args, "max_model_len=4096")


def template_variables(given: Sequence[str] | None) -> dict[str, Any]:
    """Return the variables that `--template-kwarg` gives; ConfigError if one is not `NAME=VALUE`.

    `False` is Python, not JSON. As text it would be true for a template, so it is refused.
    """
    found = _named_values("--template-kwarg", given or (), "enable_thinking=false")
    for name, value in found.items():
        if value in ("True", "False", "None"):
            json_value = {"True": "true", "False": "false", "None": "null"}[value]
            raise ConfigError(f"--template-kwarg {name}={value} would be a text; write {name}={json_value}")
    return found


def _named_values(option: str, given: Sequence[str], example: str) -> dict[str, Any]:
    """The values of an option `NAME=VALUE`; a value that is JSON is read as such, any other is text."""
    found: dict[str, Any] = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"{option} is {each!r}; write NAME=VALUE, e.g. {example}")
        with suppress(ValueError):
            value = json.loads(value)
        found[name] = value
    return found


@dataclass(frozen=True, slots=True)
class Guarding:
    """Which guard a command puts on its model: the options of the panel "The guard" that commands have in common."""

    probe: Probe = None
    detector: Detector = "probe"
    policy: PolicyOption = None
    threshold: Threshold = None
    interval: Interval = None
    external: External = None

    def options(self, **more: Any) -> "GuardOptions":
        """The `GuardOptions` of these and `more`; ConfigError if they do not go together."""
        given = (self.probe, self.detector, self.policy, self.threshold, self.interval, self.external)
        return GuardOptions(*given, **more)


@dataclass(frozen=True, slots=True)
class GuardOptions(Guarding):
    """Which guard to put on it; what is wrong in itself is refused before a model is loaded."""

    release: ReleaseMode | None = None
    on_error: OnError | None = None
    refusal: str | None = None
    check_prefill: CheckPrefillName | None = None

    def __post_init__(self) -> None:
        check_detector_name(self.detector)
        if self.probe is not None and self.detector not in OVER_PROBE:
            raise ConfigError(
                f"--probe {self.probe} goes with --detector probe or cascade, not with --detector {self.detector}; "
                "drop one"
            )
        if self.probe is not None and not self.probe.exists():
            raise ConfigError(f"--probe {self.probe}: there is no such file or probe folder")
        if self.external is not None and self.detector != "cascade":
            raise ConfigError(
                f"--external {self.external} goes with --detector cascade, not with {self.detector}; drop one"
            )
        self.external_options()
        if self.threshold is not None and self.policy is None:
            policy_from({"name": "cusum", "threshold": self.threshold})  # refuses what no policy takes
        guard_config(self.guard_options())

    @property
    def band(self) -> None:
        """None: on the command line a cascade has the band that its probe was calibrated for."""
        return None

    def external_options(self) -> dict[str, Any] | None:
        """The arguments of an `ExternalGuard`; None if there is none."""
        return None if self.external is None else external_named(self.external)

    def guard_options(self) -> dict[str, Any]:
        """Return the options of the guard by their names in `GuardConfig`; None where the command line says nothing."""
        return {
            "policy": self.build_policy(),
            "schedule": None if self.interval is None else Every(self.interval),
            "release": self.release,
            "on_error": self.on_error,
            "refusal": self.refusal,
            "prefill": self.check_prefill,
        }

    def build_policy(self) -> Policy | None:
        """Return the policy that the options name in full, or None if the detector's own is wanted."""
        if self.policy is None:
            return None
        return policy_from({"name": self.policy} | ({} if self.threshold is None else {"threshold": self.threshold}))


def part_of(text: str) -> tuple[int, int]:
    """Return which part of how many `--part` means; ConfigError if it means none."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ConfigError(f"--part is {text!r}; write 0/4 for the first of four parts, 3/4 for the last")
    return int(index), int(count)


def part_name(part: tuple[int, int]) -> str:
    """Return what a part is called in the names of files; nothing for the whole."""
    index, count = part
    return "" if count == 1 else f"{index}-of-{count}"
