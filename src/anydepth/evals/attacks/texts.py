"""Read the words of the attacks."""

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any


@cache
def wording(section: str) -> Mapping[str, Any]:
    """One section of `data/attacks.toml`, whose comments say what the keys mean."""
    text = (resources.files("anydepth") / "data" / "attacks.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)[section]
