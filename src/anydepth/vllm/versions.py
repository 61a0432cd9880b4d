"""Say which versions of vLLM the plugin works with."""

from anydepth.errors import ConfigError
from anydepth.extras import require

SUPPORTED = ("0.32", "0.33")
"""The two newest minor versions; `anydepth.vllm.internals.CHECKED` says how the plugin was checked on each."""


def check_version(version: str | None = None) -> str:
    """Return the version of the installed vLLM; ConfigError with the remedy if it is not a supported one.

    Args:
        version: The version to check; the installed one by default.
    """
    found = version if version is not None else str(require("vllm", extra="vllm").__version__)
    minor = ".".join(found.split("+")[0].split(".")[:2])
    if minor not in SUPPORTED:
        raise ConfigError(
            f"vLLM is {found}; this version of anydepth guards vLLM {', '.join(f'{each}.*' for each in SUPPORTED)}, "
            f"whose internals it builds on; run: pip install 'vllm=={SUPPORTED[-1]}.*', or use a newer anydepth"
        )
    return found
