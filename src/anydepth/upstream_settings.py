"""Read `[upstream]` of `guard.toml`: the API that a proxy guards, and what does not go together with one."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Protocol

from pydantic import AfterValidator, BaseModel, Field, model_validator

from anydepth.settings_table import Count, Name, PricesTable, Table, Url
from anydepth.templates.rendering import checked_kwargs

LIVE = 16
"""Default of `[limits] live` with an upstream: an answer there waits for others, and holds no KV cache."""

_WITHOUT_WEIGHTS = ("probe",)
"""Detectors that need more of a model than what it writes."""


def _says_something(text: str) -> str:
    if not text.strip():
        raise ValueError("give the text of a short user message")
    return text


class UpstreamTable(Table):
    """`[upstream]`: the API that `anydepth proxy` guards by look-ahead. Without a url there is none."""

    url: Url | None = Field(
        None, description="Where the API is, e.g. https://api.openai.com/v1 or https://api.anthropic.com."
    )
    api: Literal["openai", "anthropic"] = Field(
        "openai", description="Its form: openai (chat completions) or anthropic (Messages)."
    )
    model: Name | None = Field(None, description="Name of the model there.")
    name: Name | None = Field(None, description="Name of the model for clients; default: the one there.")
    key_env: Name | None = Field(
        None, description="Environment variable with the API key; default: OPENAI_API_KEY or ANTHROPIC_API_KEY."
    )
    key_file: Name | None = Field(None, description="File with the API key, instead of a variable.")
    capability: Literal["auto", "closes", "between", "raw"] = Field(
        "auto", description="How a fresh turn is asked for; auto finds it out at the start."
    )
    between: Annotated[str, AfterValidator(_says_something)] = Field(
        "Continue.", description="Text of the user message of capability between."
    )
    tokenizer: Name | None = Field(None, description="Hub id or folder of the model's tokenizer, for capability raw.")
    template_kwargs: Annotated[dict[str, Any], AfterValidator(checked_kwargs)] = Field(
        {}, description="Variables of the chat template, for capability raw."
    )
    look_ahead: Count = Field(20, description="Longest look-ahead, in the provider's tokens.")
    request: dict[str, Any] = Field(
        {}, description='Further fields of every request, e.g. {reasoning_effort = "none"}.'
    )
    greedy: bool | None = Field(
        None, description="Whether look-aheads ask for temperature 0; default: with openai, not with anthropic."
    )
    limit_field: Literal["max_tokens", "max_completion_tokens"] | None = Field(
        None, description="The field that limits a reply (openai); default: by the host."
    )
    stream_usage: bool = Field(True, description="Ask streams for their usage (openai).")
    prices: PricesTable | None = Field(None, description="E.g. {prompt = 0.5, completion = 2.0}, per million tokens.")
    timeout_seconds: Annotated[float, Field(gt=0)] = Field(60, description="Longest silence of the upstream.")
    retries: Annotated[int, Field(ge=0, le=10)] = Field(2, description="Times that a failed request is made again.")

    @model_validator(mode="after")
    def _fits_together(self) -> "UpstreamTable":
        if (self.capability == "raw") != (self.tokenizer is not None):
            raise ValueError('capability = "raw" and tokenizer go together; give both, or neither')
        if self.template_kwargs and self.capability != "raw":
            raise ValueError('template_kwargs go with capability = "raw"; drop them')
        if self.key_env is not None and self.key_file is not None:
            raise ValueError("key_env and key_file are both given; drop one")
        if self.api == "anthropic":
            if self.capability == "raw":
                raise ValueError('capability = "raw" needs a completions endpoint, which api = "anthropic" has not')
            if self.limit_field is not None:
                raise ValueError('limit_field goes with api = "openai"; drop it')
        return self


class Proxied(Protocol):
    """The tables of `guard.toml` that an upstream may contradict."""

    @property
    def model(self) -> BaseModel:
        """`[model]`."""
        ...

    @property
    def guard(self) -> Any:
        """`[guard]`."""
        ...

    @property
    def external(self) -> Any:
        """`[external]`."""
        ...

    @property
    def tools(self) -> Any:
        """`[tools]`."""
        ...

    @property
    def reasoning(self) -> BaseModel:
        """`[reasoning]`."""
        ...


def proxied_tables(tables: Any) -> Any:
    """The parsed tables of a file, with the defaults that differ where there is an upstream.

    The detector is Rethink there, and `LIVE` answers may be under way.
    """
    if not isinstance(tables, Mapping):
        return tables
    upstream = tables.get("upstream")
    if not isinstance(upstream, Mapping) or upstream.get("url") is None:
        return tables
    changed = dict(tables)
    for name, key, value in (("guard", "detector", "rethink"), ("limits", "live", LIVE)):
        table = changed.get(name, {})
        if isinstance(table, Mapping):
            changed[name] = {key: value, **table}
    return changed


def require_consistent(settings: Proxied) -> None:
    """ValueError if a table asks for what a model behind an API does not have; the message has the remedy."""
    guard = settings.guard
    if keys := _changed(settings.model):
        raise ValueError(f"[model] {', '.join(keys)}: no model is loaded beside an [upstream]; drop one of the two")
    if guard.probe is not None or guard.detector in _WITHOUT_WEIGHTS:
        what = f"detector = {guard.detector!r}" if guard.probe is None else f"probe = {guard.probe!r}"
        raise ValueError(
            f"[guard] {what}: a model behind an [upstream] has no states to read; leave it out, or take "
            'detector = "rethink"'
        )
    if guard.detector == "cascade" and (settings.external.url is None or guard.band is not None):
        raise ValueError(
            "[guard] detector = 'cascade': behind an [upstream] it is a look-ahead and then the guard model of "
            "[external]; give [external] url and model, and no band"
        )
    if settings.tools.format not in ("auto", "none"):
        raise ValueError(f"[tools] format = {settings.tools.format!r}: calls cannot be guarded behind an [upstream]")
    if settings.tools.gate:
        raise ValueError("[tools] gate = true: calls cannot be gated behind an [upstream]; drop it")
    if not settings.tools.keep:
        raise ValueError("[tools] keep = false: an [upstream] keeps its caches itself; drop it")
    if _changed(settings.reasoning):
        raise ValueError("[reasoning] release: thoughts of an [upstream] never leave; drop it")


def _changed(table: BaseModel) -> list[str]:
    """Keys of a table whose values are not the defaults."""
    fields = type(table).model_fields
    return [
        name for name, each in fields.items() if getattr(table, name) != each.get_default(call_default_factory=True)
    ]
