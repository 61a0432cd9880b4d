"""Keep the prefix cache from hiding tokens that have to be computed."""

from typing import Any


class Shortened:
    """A request as the prefix cache is to see it: one whose cached part ends before position `limit`."""

    def __init__(self, request: Any, limit: int) -> None:
        self._request, self.num_tokens = request, limit + 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)
