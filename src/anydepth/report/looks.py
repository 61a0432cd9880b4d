"""Which colour and marker a name has."""

from collections.abc import Iterable
from itertools import count

from anydepth.report.palette import SERIES, unlike

Key = tuple[str, ...]
"""What tells a series apart from others."""


class Looks:
    """Gives every name of a kind the same look all over a report."""

    def __init__(self) -> None:
        self._known: dict[str, dict[Key, int]] = {}

    def of(self, kind: str, keys: Iterable[Key]) -> dict[Key, int]:
        """The numbers of these keys; a new one gets a free number whose colour and marker no other of them has."""
        known = self._known.setdefault(kind, {})
        wanted = list(dict.fromkeys(keys))
        for key in wanted:
            if key not in known:
                beside = [known[each] for each in wanted if each in known]
                free = (number for number in count() if number not in known.values())
                known[key] = next(number for number in free if len(beside) >= len(SERIES) or unlike(number, beside))
        return {key: known[key] for key in wanted}

    def kind_of(self, keys: set[Key], otherwise: str) -> str:
        """The kind that has all these names already, so that one name looks the same on every chart; or `otherwise`."""
        return next((kind for kind, known in self._known.items() if keys <= known.keys()), otherwise)
