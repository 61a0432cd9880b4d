"""Read `guard.toml`: what an operator decides about a guarded engine."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from anydepth.config import check_band, check_detector_name
from anydepth.errors import ConfigError
from anydepth.external_settings import ExternalTable
from anydepth.files import read_toml
from anydepth.policy import Policy, policy_from
from anydepth.schedule import Adaptive, Every, Schedule
from anydepth.settings_table import Count, Name, Table
from anydepth.templates.rendering import checked_kwargs
from anydepth.types import OnError, ReleaseMode
from anydepth.upstream_settings import UpstreamTable, proxied_tables, require_consistent

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s?#@A-Z]+")
"""What browsers send as `Origin`: lower case, no path, no slash at the end."""


__all__ = ["Settings", "load_settings", "parse_settings", "settings_schema"]


def _checked_policy(record: dict[str, str | int | float]) -> dict[str, str | int | float]:
    policy_from(record)  # a ConfigError is a ValueError: pydantic reports it with the key
    return record


def _checked_band(band: list[float]) -> list[float]:
    check_band(*band)
    return band


def _says_something(refusal: str) -> str:
    if not refusal.strip():
        raise ValueError("clients take an answer without text for a fault; write a sentence")
    return refusal


PolicyRecord = Annotated[dict[str, str | int | float], AfterValidator(_checked_policy)]


class ModelTable(Table):
    """`[model]`: what to load. The command line's MODEL and options come first."""

    path: Name | None = Field(None, description="Hub id or folder of the model.")
    name: Name | None = Field(None, description="Name that clients use; default: the hub id, or the folder's name.")
    adapter: Name | None = Field(None, description="PEFT adapter to load on top.")
    dtype: Literal["auto", "fast", "float32", "bfloat16", "float16"] = "auto"
    device: Name | None = Field(None, description="Where to run, e.g. cuda:0; default: the CPU.")
    revision: Name | None = Field(None, description="Commit, tag or branch of a hub model.")
    template_kwargs: Annotated[dict[str, Any], AfterValidator(checked_kwargs)] = Field(
        {}, description="Variables of the chat template: {enable_thinking = false}."
    )
    ride: Literal["never", "auto", "always"] = Field(
        "never", description="Whether checks ride in the decode step: never, auto where the cache allows it, or always."
    )


class GuardTable(Table):
    """`[guard]`: how answers are guarded."""

    detector: Annotated[str, AfterValidator(check_detector_name)] = Field(
        "probe",
        description="probe, rethink, rethink-score, cascade, or package.module:class of a detector of your own.",
    )
    probe: Name | None = Field(None, description="Probe file; default: the one shipped for the model.")
    band: Annotated[list[float], Field(min_length=2, max_length=2), AfterValidator(_checked_band)] | None = Field(
        None, description="Where a cascade is unsure, e.g. [0.2, 0.8]; default: what the probe was calibrated for."
    )
    policy: PolicyRecord | None = Field(
        None, description='E.g. {name = "ewma", alpha = 0.5, threshold = 0.7}; default: what the probe was fitted with.'
    )
    interval: Count = Field(25, description="Check every N tokens.")
    doubling: bool = Field(True, description="Check after 1, 2, 4, 8, 16 tokens as well.")
    adaptive: dict[str, int | float] | None = Field(
        None, description="Instead of `interval`: {closest = 5, widest = 50, alert = 0.3, rise = 0.15}."
    )
    release: ReleaseMode = Field("hold", description="hold: nothing leaves unchecked; eager; monitor: never halts.")
    on_error: OnError = Field("closed", description="A failed check halts the answer (closed) or not (open).")
    prefill: Literal["inside", "end"] = Field(
        "inside", description="Check a client's prefill at the depths inside it too (probes only), or at its end only."
    )
    refusal: Annotated[str, AfterValidator(_says_something)] = Field(
        "I can't help with that.", description="Text in place of what is withheld."
    )

    @property
    def threshold(self) -> float | None:
        """None: in the file a threshold is part of a policy."""
        return None

    def guard_options(self) -> dict[str, Any]:
        """The options of the guard by their names in `GuardConfig`; no policy where the detector's own is wanted."""
        own = ("release", "on_error", "prefill", "refusal")
        return {"policy": self.build_policy(), "schedule": self.build_schedule()} | {n: getattr(self, n) for n in own}

    @model_validator(mode="after")
    def _schedule_exists(self) -> "GuardTable":
        if self.adaptive is not None and "interval" in self.model_fields_set:
            raise ValueError("interval and adaptive are both given; drop one")
        self.build_schedule()
        return self

    @model_validator(mode="after")
    def _band_is_of_a_cascade(self) -> "GuardTable":
        if self.band is not None and self.detector != "cascade":
            raise ValueError(f'band goes with detector = "cascade", not with {self.detector!r}; drop one')
        return self

    def build_policy(self) -> Policy | None:
        """The policy, or None for the detector's own."""
        return None if self.policy is None else policy_from(self.policy)

    def build_schedule(self) -> Schedule:
        """At which depths answers are checked."""
        if self.adaptive is None:
            return Every(self.interval, self.doubling)
        try:
            return Adaptive(**self.adaptive)  # pyright: ignore[reportArgumentType] checked by Adaptive itself
        except TypeError as error:
            raise ValueError(f"adaptive takes closest, widest, alert and rise: {error}") from error


class BlockedTable(Table):
    """`[blocked]`: what clients get in place of an answer that was halted."""

    style: Literal["answer", "error"] = Field(
        "answer",
        description="answer: status 200 with released text and refusal; error: status 400, if nothing has left yet.",
    )


class ReasoningTable(Table):
    """`[reasoning]`: thoughts are guarded like the answer; here they can only be released later, or never."""

    release: Literal["as_answer", "whole", "hidden"] = Field(
        "as_answer",
        description="as_answer: by the answer's own rule; whole: once all of it was checked; hidden: never.",
    )


class ToolsTable(Table):
    """`[tools]`: how tool calls are found in an answer."""

    format: str = Field("auto", description='A row of toolcalls.toml, "auto" (by the chat template) or "none".')
    gate: bool = Field(False, description="Judge each call by the check right after it alone, before calls leave.")
    keep: bool = Field(
        True, description="Keep caches of ended answers in the room of live ones, so that gates are cheap."
    )


class WholeBounds(Table):
    """A range of whole numbers."""

    min: Count
    max: Count


class Bounds(Table):
    """A range of numbers."""

    min: float = Field(ge=0)
    max: float


class OverridesTable(Table):
    """`[overrides]`: what a request's `anydepth` field may change. Nothing, unless it is listed here."""

    interval: WholeBounds | None = None
    threshold: Bounds | None = None
    policies: dict[str, PolicyRecord] = Field({}, description="Policies that a client may choose by name.")
    release: list[ReleaseMode] = Field([], description="Release modes that a client may choose.")
    checks: bool = Field(False, description="Clients may ask for every score; that helps whoever probes the guard.")

    @field_validator("interval", "threshold")
    @classmethod
    def _in_order(cls, value: Any) -> Any:
        if value is not None and value.min > value.max:
            raise ValueError(f"min ({value.min}) is above max ({value.max})")
        return value


class LimitsTable(Table):
    """`[limits]`: what one request, and all of them, may use."""

    body_bytes: Count = 1_000_000
    messages: Count = 256
    choices: Annotated[int, Field(ge=1, le=128)] = Field(8, description="Largest `n`.")
    max_tokens: Count = Field(4096, description="Longest answer a client may ask for.")
    default_max_tokens: Count = Field(512, description="Longest answer where the client does not say.")
    live: Count = Field(4, description="Answers generated at the same time; each has a KV cache.")
    queue: Annotated[int, Field(ge=0)] = Field(32, description="Answers that may wait; more get 429.")
    timeout_seconds: Annotated[float, Field(gt=0)] = Field(
        300, description="Longest an answer may take, queue included."
    )
    grace_seconds: Annotated[float, Field(ge=0)] = Field(30, description="Time to finish answers after SIGTERM.")


class HttpTable(Table):
    """`[http]`: where to listen and who may use the server."""

    host: Name = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    api_key_env: Name = Field("ANYDEPTH_API_KEY", description="Environment variable with the API key, if it is set.")
    api_key_file: Name | None = Field(None, description="File with one API key a line.")
    public_metrics: bool = Field(False, description="/metrics needs no API key.")
    cors_origins: list[str] = Field(
        [], description='Origins whose pages may use the server from a browser, e.g. "https://chat.example.org".'
    )

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: list[str]) -> list[str]:
        for origin in value:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is no origin; write https://HOST or https://HOST:PORT with no path, or *")
        return value


class AuditTable(Table):
    """`[audit]`: a record of every answer that accounts for every token."""

    kind: Literal["none", "jsonl"] = "none"
    path: Name = "audit.jsonl"
    max_bytes: Annotated[int, Field(ge=4096)] = Field(100_000_000, description="A file is rotated at this size.")
    keep: Annotated[int, Field(ge=1, le=999_999)] = Field(10, description="Rotated files that are kept.")
    sync: bool = Field(False, description="Each record is on the disk before its tokens leave: it outlives the power.")
    on_error: OnError = Field("closed", description="If it cannot be written: closed stops the answers, open goes on.")
    text: bool = Field(False, description="Keep the messages and the released text as well.")

    @field_validator("kind", mode="before")
    @classmethod
    def _no_database(cls, value: Any) -> Any:
        if value == "sqlite":
            raise ValueError('databases are not written any more; take "jsonl" and a path that has no database yet')
        return value

    @field_validator("path")
    @classmethod
    def _is_a_file(cls, value: str) -> str:
        if value.startswith("sqlite:") or Path(value).suffix in (".sqlite", ".sqlite3", ".db"):
            raise ValueError("databases are not written any more; give a file of JSON lines, e.g. audit.jsonl")
        return value


class LoggingTable(Table):
    """`[logging]`: JSON lines on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    log_text: bool = Field(False, description="Write prompts, answers and error texts into the log.")


class ConsoleTable(Table):
    """`[console]`: the page for people at `/`. It can ask for nothing that `[overrides]` does not allow."""

    enabled: bool = Field(True, description="Serve the page.")
    compare: bool = Field(
        True, description='Offer the unguarded answer beside the guarded one, if `release` allows "monitor".'
    )


class Settings(Table):
    """A whole `guard.toml`. Every table and key may be left out."""

    model: ModelTable = ModelTable()  # pyright: ignore[reportCallIssue]
    guard: GuardTable = GuardTable()  # pyright: ignore[reportCallIssue]
    blocked: BlockedTable = BlockedTable()  # pyright: ignore[reportCallIssue]
    reasoning: ReasoningTable = ReasoningTable()  # pyright: ignore[reportCallIssue]
    tools: ToolsTable = ToolsTable()  # pyright: ignore[reportCallIssue]
    overrides: OverridesTable = OverridesTable()  # pyright: ignore[reportCallIssue]
    limits: LimitsTable = LimitsTable()  # pyright: ignore[reportCallIssue]
    http: HttpTable = HttpTable()  # pyright: ignore[reportCallIssue]
    audit: AuditTable = AuditTable()  # pyright: ignore[reportCallIssue]
    logging: LoggingTable = LoggingTable()  # pyright: ignore[reportCallIssue]
    console: ConsoleTable = ConsoleTable()  # pyright: ignore[reportCallIssue]
    upstream: UpstreamTable = UpstreamTable()  # pyright: ignore[reportCallIssue]
    external: ExternalTable = ExternalTable()  # pyright: ignore[reportCallIssue]

    @model_validator(mode="before")
    @classmethod
    def _of_a_proxy(cls, tables: Any) -> Any:
        return proxied_tables(tables)

    @model_validator(mode="after")
    def _fits_together(self) -> "Settings":
        if self.external.url is not None and self.guard.detector != "cascade":
            kind = self.guard.detector
            raise ValueError(f'[external] goes with [guard] detector = "cascade", not {kind!r}; drop one')
        if self.upstream.url is not None:
            require_consistent(self)
        return self


def load_settings(path: Path) -> Settings:
    """Read a `guard.toml`; paths in it are taken from the folder it is in.

    Raises:
        ConfigError: The file cannot be read, or has a key or value that it cannot have; the message names each one.
    """
    settings = parse_settings(read_toml(path), origin=str(path))
    return _anchored(settings, path.resolve().parent)


def parse_settings(table: Mapping[str, Any], *, origin: str = "guard.toml") -> Settings:
    """Build settings from a parsed guard.toml; ConfigError names every key that is wrong."""
    try:
        return Settings.model_validate(table)
    except ValidationError as error:
        raise ConfigError(f"{origin}: " + "; ".join(_complaints(error))) from error


def settings_schema() -> dict[str, Any]:
    """The JSON Schema of `guard.toml`, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Settings.model_json_schema()}


_IDS = (("model", "path"), ("upstream", "tokenizer"))
_PATHS = (*_IDS, ("guard", "probe"), ("http", "api_key_file"), ("upstream", "key_file"), ("audit", "path"))


def _anchored(settings: Settings, folder: Path) -> Settings:
    """Take relative paths from the file's folder; a model's or tokenizer's only if it is there, else it is an id."""
    anchored = {}
    for name, key in _PATHS:
        table = anchored.get(name, getattr(settings, name))
        path = getattr(table, key)
        if path is not None and ((name, key) not in _IDS or (folder / path).exists()):
            anchored[name] = table.model_copy(update={key: str(folder / path)})
    return settings.model_copy(update=anchored)


def _complaints(error: ValidationError) -> list[str]:
    """One sentence per key; of a value that may be of several kinds, what the last of them lacks."""
    found: dict[str, str] = {}
    for each in error.errors(include_url=False):
        place = each["loc"][:-1] if each["loc"][-1:] in (("str",), ("int",), ("float",)) else each["loc"]
        found |= {(key := ".".join(map(str, place))): _complaint(key, each)}
    return list(found.values())


def _complaint(key: str, error: Mapping[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        return f"there is no key {key!r}; see `anydepth config schema`"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{key} is {error['input']!r}: {message[:1].lower()}{message[1:]}" if key else message
