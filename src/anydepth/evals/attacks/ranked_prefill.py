"""Choose unlikely next tokens that lead an answer on past its checks (rank-assisted prefill)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from anydepth.backends.protocol import CONTENT, last_header_token, require_no_means, sites_of
from anydepth.detectors import LinearProbe
from anydepth.detectors.detector import require_header
from anydepth.detectors.refusals import RefusalMatcher
from anydepth.errors import ConfigError
from anydepth.schedule import Schedule, next_check
from anydepth.templates.template import Prompt

if TYPE_CHECKING:
    from anydepth.backends.transformers import TransformersBackend

Choice = Literal["likely", "low-rank", "probe"]
CHOICES: tuple[Choice, ...] = ("likely", "low-rank", "probe")
"""What the attacker takes at each window: the likeliest token; the least likely one after which the model goes on; the
one after which the probe scores lowest at the next check."""


@dataclass(frozen=True, slots=True)
class Steering:
    """What a steered answer may cost.

    Attributes:
        tokens: Length of the answer behind the prefix.
        top: How many of the likeliest tokens are tried at each window.
    """

    tokens: int
    top: int = 20

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.top < 1:
            raise ConfigError(f"a rank-assisted prefill has {self}; give at least one token and one candidate")


def steer(
    backend: "TransformersBackend",
    prompt: Prompt,
    choice: Choice,
    steering: Steering,
    *,
    schedule: Schedule,
    probe: LinearProbe,
) -> tuple[int, ...]:
    """An answer behind the prefill of `prompt`, one chosen token per window, the rest of the window greedy.

    The windows are those of the guard, whose schedule this attacker knows. Candidates after which the model ends its
    turn or refuses within the window are left out as long as there are others.

    Raises:
        CapabilityError: The probe is to choose, and reads a mean over answer tokens or has Safety Tokens of its own.
    """
    if choice == "probe":
        require_no_means(probe.reads, "a rank-assisted prefill")
        require_header(probe, "a rank-assisted prefill")
    with backend.lock:
        return _Steered(backend, prompt, steering, probe).write(choice, schedule)


class _Steered:
    """One answer under way: its tokens, and a cache of all but the last."""

    def __init__(self, backend: "TransformersBackend", prompt: Prompt, steering: Steering, probe: LinearProbe) -> None:
        import torch

        self._torch, self._backend, self._steering, self._probe = torch, backend, steering, probe
        self._ids = list(prompt.ids)
        self._begin = len(prompt.ids)
        self._cache: Any = backend.new_cache(len(prompt.ids) + steering.tokens, {})
        self._fed = 0
        self._ends = backend.end_tokens({})

    def write(self, choice: Choice, schedule: Schedule) -> tuple[int, ...]:
        """The tokens behind the prompt."""
        while (done := len(self._ids) - self._begin) < self._steering.tokens:
            goal = min(next_check(schedule, done, []), self._steering.tokens)
            if not self._window(choice, goal - done):
                break
        return tuple(self._ids[self._begin :])

    def _window(self, choice: Choice, size: int) -> bool:
        """Add a window of `size` tokens; False if the model ends its turn whatever is chosen."""
        from anydepth.backends.transformers.fork import select_rows

        count = 1 if choice == "likely" else self._steering.top
        first = self._next_tokens(count)
        rows = first[:, None]
        cache = select_rows(self._cache, [0] * len(first))
        for _ in range(size - 1):
            logits = self._feed(rows[:, -1:], cache, self._fed + rows.shape[1])
            rows = self._torch.cat([rows, logits.argmax(-1, keepdim=True)], 1)
        windows = rows.tolist()
        kept = self._kept(windows)
        if not kept:
            return False
        if choice == "probe":
            scores = self._scores(rows, cache)
            best = min(kept, key=lambda row: (scores[row], row))
        else:
            best = max(kept)  # the rows are in the order of their likelihood
        self._ids += windows[best]
        return True

    def _next_tokens(self, count: int) -> Any:
        """The `count` likeliest next tokens that end no turn, likeliest first."""
        fresh = self._torch.tensor([self._ids[self._fed :]], device=self._backend.model.device)
        logits = self._feed(fresh, self._cache, len(self._ids))
        self._fed = len(self._ids)
        logits[:, sorted(self._ends)] = -self._torch.inf
        return logits[0].topk(count).indices

    def _kept(self, windows: Sequence[Sequence[int]]) -> list[int]:
        """Rows that do not end; without those that refuse, if that leaves any."""
        going = [row for row, ids in enumerate(windows) if not self._ends & set(ids)]
        written, matcher = self._ids[self._begin :], RefusalMatcher.default()
        texts = {row: self._backend.decode_text([*written, *windows[row]]) for row in going}
        return [row for row in going if not matcher.is_refusal(texts[row])] or going

    def _scores(self, rows: Any, cache: Any) -> list[float]:
        """The probe's score at the end of each row; an unusable one counts as the highest."""
        reads = self._probe.reads
        header = self._backend.header.ids[: last_header_token(reads) + 1]
        asked = self._torch.tensor([header] * len(rows), dtype=rows.dtype, device=rows.device)
        tail = self._torch.cat([rows[:, -1:], asked], 1)
        mask = self._torch.ones(len(rows), self._fed + rows.shape[1] + len(header), dtype=rows.dtype)
        sites = sites_of(reads)
        states = self._backend.read_tokens(tail, cache, mask.to(rows.device), sites)
        picked = [
            states[read.site][:, 0 if read.token == CONTENT else 1 + read.token].float().cpu().numpy() for read in reads
        ]
        found = self._probe.score_each(np.stack(picked, axis=1))
        return [1.0 if isinstance(score, Exception) else score.value for score in found]

    def _feed(self, ids: Any, cache: Any, length: int) -> Any:
        mask = self._torch.ones(len(ids), length, dtype=ids.dtype, device=ids.device)
        return self._backend.feed(ids, cache, mask).float()
