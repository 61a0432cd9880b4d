"""Say what is read of an answer, where and at which depths."""

from dataclasses import dataclass, field

import numpy as np

from anydepth.backends.protocol import Site
from anydepth.errors import ConfigError
from anydepth.schedule import Every, Schedule


@dataclass(frozen=True, slots=True)
class CollectPlan:
    """What to read of each answer.

    Attributes:
        sites: Where to read; the forward pass ends at the highest.
        tokens: What to read, as `Read.token`: header tokens, -1 for the last token before the header, and means over
            answer tokens; None is all header tokens and -1.
        schedule: At which depths; it must not look at scores.
        longest: Tokens of an answer to read at most; None is all of it.
        suffix: What to append: `header`, or one of the controls `newline`, `random`, `user`.
        split: What to call these answers in the store: `train`, or the name of a held-out file.
        view: In which context to read an answer: `own`, or `shadow` for a neutral user turn.
        embeddings: Trained Safety Tokens, float32 `[tokens, hidden_size]`, to append in the place of the header; then
            `tokens` are indices among them.
        part: (i, n) takes every n-th group of answers from the i-th on: several processes share one store.
    """

    sites: tuple[Site, ...]
    tokens: tuple[int, ...] | None = None
    schedule: Schedule = field(default_factory=Every)
    longest: int | None = None
    suffix: str = "header"
    split: str = "train"
    view: str = "own"
    part: tuple[int, int] = (0, 1)
    embeddings: np.ndarray | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not self.sites:
            raise ConfigError("sites is empty; name at least one place to read, e.g. Site(18)")
        for name, values in (("sites", self.sites), ("tokens", self.tokens)):
            if values is not None and (not values or len(set(values)) < len(values)):
                raise ConfigError(f"{name} is {', '.join(map(str, values)) or 'empty'}; name each once")
        if not getattr(self.schedule, "fixed", False):
            raise ConfigError(f"schedule is {self.schedule}, which looks at scores; give Every(...) or Listed(...)")
        if self.longest is not None and self.longest < 1:
            raise ConfigError(f"longest is {self.longest}; it counts tokens and must be at least 1")
        if self.view not in ("own", "shadow"):
            raise ConfigError(f"view is {self.view!r}; choose own or shadow")
        if self.embeddings is not None and self.suffix != "header":
            raise ConfigError(f"suffix is {self.suffix!r}, and embeddings are given; append one of them")
        index, count = self.part
        if not 0 <= index < count:
            raise ConfigError(f"part is {index}/{count}; the first of four parts is 0/4, the last 3/4")

    @property
    def reading(self) -> str:
        """At which depths and how far an answer is read: with its text and the view, all that decides its states."""
        return reading_of(self.schedule, self.longest)


def reading_of(schedule: Schedule, longest: int | None) -> str:
    """How an answer is read at the depths of `schedule`, `longest` tokens at most (None: all of it), as one text."""
    return f"{schedule}, {'whole' if longest is None else f'longest {longest}'}"
