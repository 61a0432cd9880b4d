"""Answers under way on a Transformers model: decode by windows, fork, read."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from transformers import StopStringCriteria

from anydepth.backends.protocol import CONTENT, CheckPoint, Read, Site, sites_of
from anydepth.backends.transformers.branch import Branch
from anydepth.backends.transformers.endings import Endings
from anydepth.backends.transformers.fork import can_rewind, fork, select_rows
from anydepth.backends.transformers.read import captured, to_numpy
from anydepth.errors import UnsupportedModel
from anydepth.templates.template import Prompt
from anydepth.types import Decoded

if TYPE_CHECKING:
    from anydepth.backends.transformers.backend import TransformersBackend


@dataclass(slots=True)
class _Row:
    """One answer of the batch."""

    prompt: Prompt
    depth: int
    end_tokens: int = 0
    live: bool = True


Method = TypeVar("Method", bound=Callable[..., Any])


def _alone(method: Method) -> Method:
    """Run a step of a session while no other thread runs one on the same model."""

    @wraps(method)
    def step(self: "TransformersSession", *args: Any, **kwargs: Any) -> Any:
        with self._backend.lock:
            return method(self, *args, **kwargs)

    return step  # pyright: ignore[reportReturnType]


class TransformersSession:
    """A batch of answers under way; implements `anydepth.backends.protocol.Session`.

    The prompts are padded on the left. `generate` samples the first token in the same forward pass that fills the
    cache, exactly as an unguarded call does. The token is kept (`_ahead`) until the flow decodes it, so that the checks
    of depth 0 and of the prefill come before it at no pass of their own.
    """

    def __init__(
        self,
        backend: "TransformersBackend",
        prompts: Sequence[Prompt],
        *,
        budget: int,
        seed: int | None,
        options: dict[str, Any],
    ) -> None:
        self._backend, self._model, self._options = backend, backend.model, options
        self._rows = [_Row(prompt, prompt.prefill) for prompt in prompts]
        self._ids, self._mask = _left_pad([prompt.ids for prompt in prompts], backend.pad_id, self._model.device)
        self._prompt_length, self._budget = self._ids.shape[1], budget
        self._cache = backend.new_cache(self._prompt_length + budget, options)
        self._cached = 0
        self._base_cache, self._base_cached = None, 0
        self._ahead = False
        self._ended: list[bool] = [False] * len(prompts)
        self._start_states: dict[tuple[Read, ...], np.ndarray] = {}
        self._rng_state = None
        if seed is not None:
            with seeded(seed, self._model.device):
                self._rng_state = _random_state(self._model.device)
        self._text_criteria = self._stop_criteria()

    @property
    def rows(self) -> int:
        """How many answers the session holds."""
        return len(self._rows)

    # -- decoding ------------------------------------------------------------------------------------------------------

    @_alone
    def decode(self, n: int) -> list[Decoded]:
        """Decode up to `n` more tokens for every live row; see `Session.decode`."""
        if n < 1:
            raise ValueError(f"decode({n}): ask for at least one token")
        self._prefill(())
        begin = self._visible
        if self._ahead:
            self._ahead = False
            n -= 1
        n = min(n, self._prompt_length + self._budget - self._ids.shape[1])
        if n and not any(self._ended):
            self._generate(n)
        full = self._ids.shape[1] >= self._prompt_length + self._budget
        fresh = self._ids[:, begin:].tolist()
        return [self._hand_out(row, fresh[row], full) for row in range(self.rows)]

    def drop(self, row: int) -> None:
        """Forget a halted row; it stays in the batch, so that the others decode as if nothing had happened."""
        self._rows[row].live = False
        self._ended[row] = False

    def current(self, row: int) -> CheckPoint:
        """The point at which `row` can be checked now."""
        return CheckPoint(row, self._rows[row].depth)

    def close(self) -> None:
        """Free the cache; the session cannot be used afterwards."""
        self._cache = self._base_cache = None
        self._start_states.clear()

    @property
    def _visible(self) -> int:
        """Columns of `_ids` that have been handed out (or are the prompt)."""
        return self._ids.shape[1] - self._ahead

    def _hand_out(self, index: int, fresh: list[int], full: bool) -> Decoded:
        row = self._rows[index]
        if not row.live:
            return Decoded(())
        ended, self._ended[index] = self._ended[index], False
        row.end_tokens = int(ended and fresh[-1] in self._backend.end_tokens(self._options))
        row.depth += len(fresh) - row.end_tokens
        row.live = not (ended or full)
        return Decoded(tuple(fresh), "stop" if ended else "length" if full else None, row.end_tokens)

    def _prefill(self, sites: tuple[Site, ...]) -> dict[Site, torch.Tensor]:
        """Fill the cache and sample the first token, once; the states of the prompt at `sites` if this did it."""
        if self._cached:
            return {}
        with captured(self._model, sites, stop=False) as seen:
            self._generate(1)
        self._ahead = True
        return {site: torch.cat(parts, 1) for site, parts in seen.items()}

    def _generate(self, n: int) -> None:
        inputs = self._backend.inputs
        begin = 0 if inputs.slices_history else self._cached
        ids, mask = self._ids[:, begin:], self._mask[:, begin:]
        options = self._options
        if self._cached and options.get("begin_suppress_tokens") is not None:
            options = {**options, "begin_suppress_tokens": None}
        live = [row.live for row in self._rows]
        endings = Endings(self._backend.end_tokens(options), self._text_criteria, live, self._ids[:, :begin])
        with self._own_randomness():
            out = self._backend.generate(ids, mask, self._cache, n, endings, options)
        fresh = out[:, ids.shape[1] :]
        self._ids = torch.cat([self._ids, fresh], 1)
        self._mask = torch.cat([self._mask, torch.ones_like(fresh)], 1)
        self._cached = self._ids.shape[1] - 1  # the last token sampled has not been fed yet
        self._ended = endings.ended.tolist()

    def _stop_criteria(self) -> list[Any]:
        strings = self._options.get("stop_strings", self._model.generation_config.stop_strings)
        self._options["stop_strings"] = None  # `generate` would want the tokenizer, and take the model's own
        criteria: list[Any] = list(self._options.pop("stopping_criteria", None) or ())
        if strings:
            criteria.append(StopStringCriteria(self._backend.tokenizer, strings))
        return criteria

    @contextmanager
    def _own_randomness(self) -> Iterator[None]:
        """Give this session a random stream of its own, if it was seeded: sessions then cannot disturb each other."""
        if self._rng_state is None:
            yield
            return
        cpu, cuda = self._rng_state
        with seeded(0, self._model.device):
            torch.set_rng_state(cpu)
            if cuda is not None:
                torch.cuda.set_rng_state(cuda, self._model.device)
            yield
            self._rng_state = _random_state(self._model.device)

    # -- checks --------------------------------------------------------------------------------------------------------

    @_alone
    def hidden_states(self, points: Sequence[CheckPoint], reads: Sequence[Read]) -> np.ndarray:
        """Make all `reads` for each point in one forward pass; see `Session.hidden_states`."""
        out = np.empty((len(points), len(reads), self._backend.identity.hidden_size), np.float32)
        later = [place for place, point in enumerate(points) if point.depth > 0]
        for place in set(range(len(points))) - set(later):
            out[place] = self._states_at_start(tuple(reads))[points[place].row]
        if later:
            self._prefill(())
            sites = sites_of(reads)
            probe_ids = self._backend.header.ids[: max(read.token for read in reads) + 1]
            unfed = int(any(read.token == CONTENT for read in reads))
            for branch in self._branches(points, later, self._reading_cache(sites), at_least=unfed):
                first = branch.tail.shape[1]
                states = self._backend.read_branch(branch.append(probe_ids), sites)
                for index, read in enumerate(reads):
                    out[branch.places, index] = to_numpy(states[read.site][:, first + read.token])
        return out

    @_alone
    def look_ahead(
        self, points: Sequence[CheckPoint], max_new_tokens: int, decided: Callable[[str], bool]
    ) -> list[str]:
        """Greedy text after the header, on a fork; see `Session.look_ahead`."""
        self._prefill(())
        texts = [""] * len(points)
        for branch in self._header_branches(points):
            for place, text in zip(
                branch.places, self._backend.continue_branch(branch, max_new_tokens, decided), strict=True
            ):
                texts[place] = text
        return texts

    @_alone
    def next_token_logprobs(self, points: Sequence[CheckPoint]) -> np.ndarray:
        """Log-probabilities after the whole header; see `Session.next_token_logprobs`."""
        self._prefill(())
        parts: dict[int, np.ndarray] = {}
        for branch in self._header_branches(points):
            logprobs = to_numpy(self._backend.next_logprobs(branch))
            parts.update(zip(branch.places, logprobs, strict=True))
        return np.stack([parts[place] for place in range(len(points))])

    def _header_branches(self, points: Sequence[CheckPoint]) -> Iterator[Branch]:
        """Branches that end with the header and, where the template has channels, with the way into the answer."""
        later = [place for place, point in enumerate(points) if point.depth > 0]
        for place in sorted(set(range(len(points))) - set(later)):
            row = points[place].row
            yield self._branch_at_start(row, place).append(self._backend.template.answer_ids(self._rows[row].prompt))
        for branch in self._branches(points, later, self._cache) if later else ():
            yield branch.append(self._backend.header.ids + self._backend.header.answer_ids)

    def _branches(
        self, points: Sequence[CheckPoint], places: list[int], source: Any, *, at_least: int = 0
    ) -> Iterator[Branch]:
        """Fork the rows of these points at their current depth; rows with as many unfed tokens share a branch.

        `at_least` many tokens of the text are left to be fed: their states are wanted too.
        """
        groups: dict[int, list[int]] = {}
        for place in places:
            point, row = points[place], self._rows[points[place].row]
            if point.depth != row.depth:
                raise ValueError(f"row {point.row} is at depth {row.depth}; it cannot be read at depth {point.depth}")
            groups.setdefault(max(self._visible - row.end_tokens - self._cached, 0), []).append(place)
        for unfed, group in groups.items():
            rows = [points[place].row for place in group]
            cache = fork(source) if rows == list(range(self.rows)) else select_rows(source, rows)
            again = max(at_least - unfed, 0)
            if again:
                self._rewind(cache, again)
            history = slice(0, self._cached - again)
            tail = self._ids[rows, self._cached - again : self._cached + unfed]
            yield Branch(group, cache, tail, self._mask[rows, history], self._ids[rows, history])

    def _rewind(self, cache: Any, count: int) -> None:
        """Take the last `count` tokens out of a fork."""
        if not can_rewind(cache):
            raise UnsupportedModel(
                f"{self._backend.identity.name} has a cache that cannot be rewound, so the last token before an "
                "end of turn cannot be read again; use a probe that reads header tokens only"
            )
        cache.crop(-count)

    def _reading_cache(self, sites: tuple[Site, ...]) -> Any:
        """The cache that hidden states are read from: the decoding one, or one kept by an adapter's base weights."""
        if not self._backend.reads_base_weights:
            return self._cache
        if self._base_cache is None:
            self._base_cache = self._backend.new_cache(self._prompt_length + self._budget, {})
        if self._base_cached < self._cached:
            ids, mask = self._ids[:, self._base_cached : self._cached], self._mask[:, : self._cached]
            self._backend.read_tokens(ids, self._base_cache, mask, sites)
            self._base_cached = self._cached
        return self._base_cache

    def _branch_at_start(self, row: int, place: int) -> Branch:
        """Fork one row where its answer begins: rewind the cache if it can be, else start from the prompt again."""
        prompt = self._rows[row].prompt
        assert self._cache is not None
        if can_rewind(self._cache):
            keep = self._prompt_length - prompt.prefill - 1  # the last prompt token is fed again, for its logits
            twin = fork(self._cache) if self.rows == 1 else select_rows(self._cache, [row])
            twin.crop(keep - self._cached)
            tail = self._ids[[row], keep : keep + 1]
            return Branch([place], twin, tail, self._mask[[row], :keep], self._ids[[row], :keep])
        tail = torch.tensor([prompt.ids[: prompt.start]], device=self._ids.device)
        return Branch([place], None, tail, tail[:, :0], tail[:, :0])

    def _states_at_start(self, reads: tuple[Read, ...]) -> np.ndarray:
        """States at depth 0, float32 `[rows, reads, hidden_size]`: the prompt's header, seen as the cache filled."""
        if reads not in self._start_states:
            # Through the base weights the prompt is read in a pass of its own: the adapter is on while the cache is
            # filled.
            seen = self._prefill(() if self._backend.reads_base_weights else sites_of(reads))
            found = [self._state_at_start(row, seen, reads) for row in range(self.rows)]
            self._start_states[reads] = np.stack(found)
        return self._start_states[reads]

    def _state_at_start(self, row: int, seen: dict[Site, torch.Tensor], reads: tuple[Read, ...]) -> np.ndarray:
        prompt, header = self._rows[row].prompt, self._backend.header
        first = self._backend.template.start_index(prompt, 0)
        begin = prompt.start if first is None else first
        places = [
            begin - 1 if read.token == CONTENT else self._backend.template.start_index(prompt, read.token)
            for read in reads
        ]
        offset = self._prompt_length - len(prompt.ids)
        if not seen or None in places:
            # The template's generation prompt lacks the read token, or other sites were read first: an own pass.
            ids, offset = prompt.ids[: prompt.start], 0
            if None in places:
                ids += header.ids[: max(read.token for read in reads) + 1]
                places = [prompt.start + read.token for read in reads]
            tail = torch.tensor([ids], device=self._ids.device)
            branch = Branch([row], None, tail, tail[:, :0], tail[:, :0])
            seen, row = self._backend.read_branch(branch, sites_of(reads)), 0
        return np.stack(
            [to_numpy(seen[read.site][row, offset + (place or 0)]) for read, place in zip(reads, places, strict=True)]
        )


def _left_pad(rows: Sequence[Sequence[int]], pad_id: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


@contextmanager
def seeded(seed: int | None, device: Any) -> Iterator[None]:
    """Run with the random state of `torch.manual_seed(seed)`, then put the old one back; None changes nothing."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _random_state(device: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None
