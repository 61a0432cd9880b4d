"""Open the upstream of a proxy as `[upstream]` of guard.toml describes it."""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from anydepth.api_keys import key_for
from anydepth.apis.api_backend import ApiBackend
from anydepth.apis.provider import require_free
from anydepth.detectors import Detector, Rethink, cascade_without_probe, detector_named
from anydepth.errors import ConfigError
from anydepth.extras import require
from anydepth.files import read_text
from anydepth.guard import Guard
from anydepth.prices import Prices
from anydepth.server.engine.api_engine import ApiEngine
from anydepth.settings import Settings
from anydepth.templates.template import ChatTemplate
from anydepth.upstream_settings import UpstreamTable


def open_client(upstream: UpstreamTable) -> Any:
    """The client of the upstream, `openai.OpenAI` or `anthropic.Anthropic`; no request is made.

    Raises:
        ConfigError: The key is missing or empty, or `request` has a field that the guard sets itself.
        MissingExtra: The client's package is not installed.
    """
    require_free(upstream.request)
    options = {"api_key": api_key(upstream), "timeout": upstream.timeout_seconds, "max_retries": upstream.retries}
    if upstream.api == "anthropic":
        client = require("anthropic", extra="apis", at_least=(2, 0)).Anthropic
        return client(base_url=str(upstream.url).rstrip("/").removesuffix("/v1"), **options)
    return require("openai", extra="apis", at_least=(2, 0)).OpenAI(base_url=upstream.url, **options)


def api_key(upstream: UpstreamTable) -> str:
    """The key for the upstream; `none` for a host that needs none.

    Raises:
        ConfigError: The variable or file that is named has no key, or this host needs one.
    """
    if upstream.key_file is not None:
        name = f"[upstream] key_file {upstream.key_file}"
        lines = [line.strip() for line in read_text(Path(upstream.key_file), name).splitlines() if line.strip()]
        if len(lines) != 1:
            raise ConfigError(f"{name} has {len(lines)} lines with text; write the key alone into it")
        return lines[0]
    host = urlsplit(str(upstream.url)).hostname or ""
    return key_for(host, upstream.key_env, "--key-env or [upstream] key_env")


def open_engine(settings: Settings, client: Any) -> ApiEngine:
    """Try the upstream, and make the engine over it.

    Args:
        settings: What the operator decided; `[upstream]` has a url and a model.
        client: The client of the upstream.

    Raises:
        CapabilityError: No fresh turn can be asked for there; the message has the remedy.
        ProviderError: The trial failed.
        ModelError: The tokenizer for capability raw cannot be loaded, or has no usable chat template.
    """
    upstream, limits = settings.upstream, settings.limits
    model, prices = str(upstream.model), upstream.prices
    backend = ApiBackend(
        client,
        model,
        capability=upstream.capability,
        between=upstream.between,
        template=_template(upstream),
        request=upstream.request,
        greedy=upstream.greedy,
        limit_field=upstream.limit_field,
        stream_usage=upstream.stream_usage,
        prices=None if prices is None else Prices(prices.prompt, prices.completion),
    )
    guard = Guard.from_backend(backend, _detector(settings), **settings.guard.guard_options())
    return ApiEngine(
        guard, model=upstream.name or model, live=limits.live, queue=limits.queue, timeout=limits.timeout_seconds
    )


def _detector(settings: Settings) -> Detector:
    name, look_ahead = settings.guard.detector, Rethink(max_new_tokens=settings.upstream.look_ahead)
    if (external := settings.external.options()) is not None:
        return cascade_without_probe(look_ahead, external)
    return (None if name == "rethink" else detector_named(name)) or look_ahead


def _template(upstream: UpstreamTable) -> ChatTemplate | None:
    if upstream.tokenizer is None:
        return None
    transformers = require("transformers", extra="transformers")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(upstream.tokenizer)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the tokenizer {upstream.tokenizer!r} cannot be loaded ({str(error)[:200]}); give a hub id or a folder"
        ) from error
    return ChatTemplate(tokenizer, name=upstream.tokenizer, template_kwargs=upstream.template_kwargs)
