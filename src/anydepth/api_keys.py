"""Find the key for an endpoint in the environment."""

import os

from anydepth.errors import ConfigError

KEYS = {"api.openai.com": "OPENAI_API_KEY", "api.anthropic.com": "ANTHROPIC_API_KEY"}
"""Host -> the variable with its key. No other host gets these keys unless a variable is named."""

NO_KEY = "none"
"""What a host gets that needs no key."""


def key_for(host: str, variable: str | None, remedy: str) -> str:
    """The key for `host`, out of the environment variable that is named, or of the host's own; else `NO_KEY`.

    Args:
        host: Host name of the endpoint.
        variable: Name of the environment variable, if the operator names one.
        remedy: How to name one, e.g. `--key-env`, for the message.

    Raises:
        ConfigError: The variable is not set, or is empty.
    """
    variable = variable or KEYS.get(host)
    if variable is None:
        return NO_KEY
    if not (key := os.environ.get(variable, "").strip()):
        state = "set and empty" if variable in os.environ else "not set"
        raise ConfigError(
            f"the environment variable {variable} is {state}; set it to the key for {host}, or name another with "
            f"{remedy}"
        )
    return key
