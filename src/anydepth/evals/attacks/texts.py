"""Read the words of the attacks."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from anydepth.files import packaged_toml


@cache
def wording(section: str) -> Mapping[str, Any]:
    """One section of `data/attacks.toml`, whose comments say what the keys mean."""
    return packaged_toml("attacks.toml")[section]
