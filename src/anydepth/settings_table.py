"""What the tables of `guard.toml` have in common."""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

_URL = re.compile(r"https?://[^\s/?#@]+(/[^\s?#]*)?")


def _without_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("a character of it is NUL, which no name can have; leave it out")
    return value


def _checked_url(url: str) -> str:
    if not _URL.fullmatch(url):
        raise ValueError("give http:// or https://, a host and a path, without a user, a key or a query in it")
    return url


Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(min_length=1), AfterValidator(_without_nul)]
"""Name of something outside, e.g. a file or a host. An empty one would stand for a folder, or for every host."""

Url = Annotated[Name, AfterValidator(_checked_url)]
"""Address of an API."""


class Table(BaseModel):
    """A table of the file; a key that it does not have is an error, not a silent typing mistake.

    Values are of the declared kind: `true` is not the number 1, which as a threshold would halt nothing, and
    neither NaN nor an infinity is a limit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class PricesTable(Table):
    """What a provider charges per million tokens."""

    prompt: float = Field(ge=0)
    completion: float = Field(ge=0)
