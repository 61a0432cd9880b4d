"""Find the provider of a client."""

from typing import Any

from anydepth.apis.anthropic_client import AnthropicClient
from anydepth.apis.openai_client import OpenAIClient
from anydepth.apis.provider import Provider
from anydepth.errors import ConfigError


def provider_of(client: Any, model: str, limit_field: str | None, stream_usage: bool) -> Provider:
    """The provider of a client, by the package that the client is of."""
    kinds = {each.__module__.partition(".")[0] for each in type(client).__mro__}
    name = type(client).__name__
    if not isinstance(model, str) or not model:
        raise ConfigError(f"model is {model!r}; give its name")
    if kinds & {"openai", "anthropic"} and not any(each.__name__.startswith("Async") for each in type(client).__mro__):
        if "openai" in kinds:
            return OpenAIClient(client, model, limit_field=limit_field, stream_usage=stream_usage)
        return AnthropicClient(client, model)
    raise ConfigError(f"client is a {name}; give an openai.OpenAI or an anthropic.Anthropic (not an async one)")
