"""Keep the prefix cache from hiding tokens that have to be computed."""

from typing import Any


class PrefixLimit:
    """A request as the prefix cache is to see it: one whose cached part ends before position `limit`."""

    def __init__(self, request: Any, limit: int) -> None:
        self._request, self.num_tokens = request, min(limit + 1, request.num_tokens)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)
