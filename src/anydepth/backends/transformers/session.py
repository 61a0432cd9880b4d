"""Answers under way on a Transformers model: decode by windows, fork, read."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from anydepth.backends.conversed import Conversed
from anydepth.backends.protocol import CONTENT, CheckPoint, Read, Site, sites_of
from anydepth.backends.transformers.answer_states import AnswerSpan, AnswerStates
from anydepth.backends.transformers.branch import Branch
from anydepth.backends.transformers.endings import Endings, take_criteria
from anydepth.backends.transformers.fork import can_rewind, fork, select_rows
from anydepth.backends.transformers.inputs import left_pad
from anydepth.backends.transformers.kept_texts import KeptText
from anydepth.backends.transformers.passes import Passes
from anydepth.backends.transformers.randomness import RandomStream
from anydepth.backends.transformers.read import captured, to_numpy
from anydepth.backends.transformers.session_row import SessionRow, later
from anydepth.errors import UnsupportedModel
from anydepth.templates.template import Prompt
from anydepth.types import Decoded


class TransformersSession:
    """A batch of answers under way; implements `anydepth.backends.protocol.Session`.

    The prompts are padded on the left. `generate` samples the first token in the pass that fills the cache, as an
    unguarded call does; it is kept (`_ahead`) until the flow decodes it, after the checks of depth 0 and of the
    prefill. Once a mean has been read, its site's states are kept as the cache fills (see `AnswerStates`).

    Attributes:
        passes: The model, and the passes that are run on it.
        cache: The KV cache that the answers are decoded on; None once the session is closed.
        way: How a check reads: on a `fork` of the cache, or as one that can `ride` in the decode step.
    """

    way = "fork"

    def __init__(
        self, passes: Passes, prompts: Sequence[Prompt], *, budget: int, seed: int | None, options: dict[str, Any]
    ) -> None:
        self.passes, self._model, self._options = passes, passes.model, options
        self._rows = [SessionRow(prompt, prompt.prefill) for prompt in prompts]
        texts = [torch.tensor(prompt.ids) for prompt in prompts]
        self._ids = left_pad(texts, passes.pad_id).to(self._model.device)
        self._mask = left_pad([torch.ones_like(text) for text in texts], 0).to(self._model.device)
        self._prompt_length, self._budget = self._ids.shape[1], budget
        self._starts = [self._prompt_length - prompt.prefill for prompt in prompts]  # columns, one a row
        self.cache: Any = passes.new_cache(self._prompt_length + budget, options)
        self._cached, self._base_cached, self._base_sites = 0, 0, frozenset[Site]()
        self._base_cache: Any = None
        self._kept: AnswerStates | None = None
        self._ahead, self._ended = False, [False] * len(prompts)
        self._start_states: dict[tuple[Read, ...], np.ndarray] = {}
        self._randomness = RandomStream(seed, self._model.device)
        self._end_tokens = passes.end_tokens(options)
        self._text_criteria = take_criteria(self._options, passes.model.generation_config, passes.tokenizer)

    @property
    def rows(self) -> int:
        """How many answers the session holds."""
        return len(self._rows)

    # -- decoding ------------------------------------------------------------------------------------------------------

    def decode(self, n: int) -> list[Decoded]:
        """Decode up to `n` more tokens for every live row; see `Session.decode`."""
        if n < 1:
            raise ValueError(f"decode({n}): ask for at least one token")
        with self.passes.lock:
            self._prefill(())
            begin = self._visible
            n = min(n - self._ahead, self._prompt_length + self._budget - self._ids.shape[1])
            self._ahead = False
            if n and not any(self._ended):
                self._advance(n)
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

    def fork_at(self, row: int) -> Branch:
        """A fork of `row` at its depth; what is run on it does not disturb the answer."""
        self._prefill(())
        (branch,) = self._branches({0: self.current(row)}, self.cache)
        return branch

    def kept_text(self) -> KeptText | None:
        """What the cache that states are read from holds; None if no other text can go on from it."""
        cache, count, sites = self.cache, self._cached, None
        if self.passes.reads_base_weights:
            cache, count, sites = self._base_cache, self._base_cached, self._base_sites
        return KeptText.of(self._ids[0, :count].tolist(), cache, self._kept, sites) if self.rows == 1 else None

    def close(self) -> None:
        """Free the cache, but for what `Passes.kept` takes over; the session cannot be used afterwards."""
        self.passes.kept.end(self)
        self.cache = self._base_cache = self._kept = None
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
        row.end_tokens = int(ended and fresh[-1] in self._end_tokens)
        row.depth += len(fresh) - row.end_tokens
        row.live = not (ended or full)
        return Decoded(tuple(fresh), "stop" if ended else "length" if full else None, row.end_tokens)

    def _prefill(self, sites: tuple[Site, ...]) -> dict[Site, torch.Tensor]:
        """Fill the cache and sample the first token, once; the states of the prompt at `sites` if this did it."""
        if self._cached:
            return {}
        seen = self._advance(1, sites)
        self._ahead = True
        return {site: torch.cat(parts, 1) for site, parts in seen.items()}

    def _advance(self, n: int, sites: tuple[Site, ...] = ()) -> dict[Site, list[torch.Tensor]]:
        """Decode `n` tokens; the states at `sites` of what is fed, one tensor a pass. Those of answers are kept."""
        begin = self._cached
        kept = None if self.passes.reads_base_weights else self._kept_up_to(begin)
        wanted = tuple(dict.fromkeys((*sites, *(kept.sites if kept else ()))))
        with captured(self._model, wanted, stop=False) as seen:
            self._generate(n)
        if kept is not None and kept.end == begin:
            kept.add(seen, self._cached)
        return {site: seen[site] for site in sites}

    def _generate(self, n: int) -> None:
        inputs = self.passes.inputs
        begin = 0 if inputs.slices_history else self._cached
        ids, mask = self._ids[:, begin:], self._mask[:, begin:]
        options = self._options
        if self._cached and options.get("begin_suppress_tokens") is not None:
            options = {**options, "begin_suppress_tokens": None}
        live = [row.live for row in self._rows]
        endings = Endings(self._end_tokens, self._text_criteria, live, self._ids[:, :begin])
        with self._randomness.use():
            out, cache = self._window(ids, mask, n, endings, options)
        if cache is not self.cache:  # the text was run anew, from its first token on
            self.cache = cache
            self._forget()
        self._append(out[:, ids.shape[1] :])
        self._ended = endings.ended.tolist()

    def _window(self, ids: torch.Tensor, mask: torch.Tensor, n: int, stop: Any, options: dict[str, Any]) -> Any:
        return self.passes.generate(ids, mask, self.cache, n, stop, options)

    def _append(self, fresh: torch.Tensor) -> None:
        self._ids = torch.cat([self._ids, fresh], 1)
        self._mask = torch.cat([self._mask, torch.ones_like(fresh)], 1)
        self._cached = self._ids.shape[1] - 1  # the last token has not been fed yet

    # -- checks --------------------------------------------------------------------------------------------------------

    def hidden_states(
        self, points: Sequence[CheckPoint], reads: Sequence[Read], *, embeddings: np.ndarray | None = None
    ) -> np.ndarray:
        """Make all `reads` for each point in one forward pass; see `EmbeddingSession.hidden_states`."""
        found: list[Any] = [None] * len(points)
        means = sites_of(read for read in reads if read.is_mean)
        with self.passes.lock:
            self._keep(means)
            for place, point in enumerate(points):
                if not point.depth and embeddings is not None:
                    found[place] = self._behind_prompt(point.row, reads, embeddings)
                elif not point.depth:
                    found[place] = self._states_at_start(tuple(reads))[point.row]
            if beyond := later(points):
                self._prefill(())
                source = self._reading_cache(sites_of(reads))
                if means:
                    self._catch_up()
                unfed = int(any(read.token == CONTENT for read in reads))
                for branch in self._branches(beyond, source, at_least=unfed):
                    rows = [points[place].row for place in branch.places]
                    branch.spread(self.passes.read_header(branch, reads, self._span(rows), embeddings), found)
        return np.stack(found)

    def look_ahead(
        self, points: Sequence[CheckPoint], max_new_tokens: int, decided: Callable[[str], bool]
    ) -> list[str]:
        """Greedy text after the header, on a fork; see `Session.look_ahead`."""
        return self._after_header(points, lambda branch: self.passes.continue_branch(branch, max_new_tokens, decided))

    def next_token_logprobs(self, points: Sequence[CheckPoint]) -> np.ndarray:
        """Log-probabilities after the whole header; see `Session.next_token_logprobs`."""
        return np.stack(self._after_header(points, lambda branch: to_numpy(self.passes.next_logprobs(branch))))

    def conversations(self, points: Sequence[CheckPoint]) -> list[Conversed]:
        """The messages and the answer so far of each point, as text."""
        rows, begins, decode = self._rows, self._starts, self.passes.decode_text
        return [rows[p.row].conversed(self._ids[p.row, begins[p.row] :], p.depth, decode) for p in points]

    def _after_header(self, points: Sequence[CheckPoint], find: Callable[[Branch], Iterable[Any]]) -> list[Any]:
        """What `find` gives behind the header and, where the template has channels, the way into the answer."""
        found: list[Any] = [None] * len(points)
        header = self.passes.header
        with self.passes.lock:
            self._prefill(())
            for place, point in enumerate(points):
                if not point.depth:
                    whole = self.passes.template.answer_ids(self._rows[point.row].prompt)
                    (found[place],) = find(self._branch_at_start(point.row).append(whole))
            for branch in self._branches(later(points), self.cache):
                branch.spread(find(branch.append(header.ids + header.answer_ids)), found)
        return found

    def _branches(self, points: Mapping[int, CheckPoint], source: Any, *, at_least: int = 0) -> Iterator[Branch]:
        """Fork the rows of these points at their current depth; rows with as many unfed tokens share a branch.

        `at_least` many tokens of the text are left to be fed: their states are wanted too.
        """
        groups: dict[int, list[int]] = {}
        for place, point in points.items():
            row = self._rows[point.row]
            if point.depth != row.depth:
                raise ValueError(f"row {point.row} is at depth {row.depth}; it cannot be read at depth {point.depth}")
            groups.setdefault(max(self._visible - row.end_tokens - self._cached, 0), []).append(place)
        for unfed, group in groups.items():
            rows = [points[place].row for place in group]
            again = max(at_least - unfed, 0)
            history = slice(0, self._cached - again)
            tail = self._ids[rows, self._cached - again : self._cached + unfed]
            cache = self._fork(source, rows, again)
            yield Branch(group, cache, tail, self._mask[rows, history], self._ids[rows, history])

    def _fork(self, source: Any, rows: list[int], again: int) -> Any:
        """A fork of these rows of a cache, the last `again` tokens taken out."""
        cache = fork(source) if rows == list(range(self.rows)) else select_rows(source, rows)
        if again and not can_rewind(cache):
            raise UnsupportedModel(
                f"the cache of {self.passes.identity.name} cannot be rewound, so the last token before an end of turn "
                "cannot be read again; use a probe that reads header tokens only"
            )
        if again:
            cache.crop(-again)
        return cache

    def _reading_cache(self, sites: tuple[Site, ...]) -> Any:
        """The cache that hidden states are read from: the decoding one, or one kept by an adapter's base weights."""
        if not self.passes.reads_base_weights:
            return self.cache
        wanted = self._base_sites.union(sites)  # the passes so far may have ended below a site that is new
        if wanted != self._base_sites or self.passes.inputs.starts_anew(self._base_cached, self._cached):
            self._base_cache, self._base_cached = self.passes.new_cache(self._prompt_length + self._budget, {}), 0
            self._forget()
        if self._base_cached < self._cached:
            ids, mask = self._ids[:, self._base_cached : self._cached], self._mask[:, : self._cached]
            kept = self._kept_up_to(self._base_cached)
            self._base_sites = frozenset()  # a pass that fails leaves the cache between two tokens
            every = wanted.union(kept.sites if kept else ())
            states = self.passes.read_tokens(ids, self._base_cache, mask, tuple(every))
            if kept is not None:
                kept.add({site: [each] for site, each in states.items()}, self._cached)
            self._base_cached, self._base_sites = self._cached, wanted
        return self._base_cache

    # -- means over answer tokens --------------------------------------------------------------------------------------

    def _keep(self, sites: tuple[Site, ...]) -> None:
        """From here on, keep the states of the answers at `sites` too."""
        there = self._kept.sites if self._kept is not None else ()
        if not set(sites) <= set(there):
            every, takes_back = dict.fromkeys((*there, *sites)), self._ids.device.type == "mps"
            self._kept = AnswerStates(every, min(self._starts), takes_back=takes_back)

    def _forget(self) -> None:
        """Drop the states that are kept: other passes have taken the place of those they were read in."""
        if self._kept is not None:
            self._kept.clear()

    def _kept_up_to(self, column: int) -> AnswerStates | None:
        """What is kept, if it goes up to `column`, so that what is fed next can be added."""
        return self._kept if self._kept is not None and self._kept.end == column else None

    def _catch_up(self) -> None:
        """Run the text once more, in a pass of its own, if a mean is first read when the cache was filled already."""
        assert self._kept is not None
        if self._kept.end < self._cached:
            ids, mask = self._ids[:, : self._cached], self._mask[:, : self._cached]
            states = self.passes.read_tokens(ids, self.passes.new_cache(self._cached, {}), mask, self._kept.sites)
            self._kept.clear()
            self._kept.add({site: [each] for site, each in states.items()}, self._cached)

    def _span(self, rows: Sequence[int]) -> AnswerSpan:
        """Where the answers of these rows begin, and what is kept of them."""
        return AnswerSpan(tuple(self._starts[row] for row in rows), tuple(rows), self._kept)

    # -- depth 0 -------------------------------------------------------------------------------------------------------

    def _branch_at_start(self, row: int, *, anew: bool = False) -> Branch:
        """Fork one row where its answer begins: rewind the cache if it can be, else, or `anew`, run the prompt."""
        prompt = self._rows[row].prompt
        keep = self._prompt_length - prompt.prefill - 1  # the last prompt token is fed again, for its logits
        if not anew and can_rewind(self.cache) and not self.passes.inputs.starts_anew(keep, self._cached):
            twin = fork(self.cache) if self.rows == 1 else select_rows(self.cache, [row])
            twin.crop(keep - self._cached)
            tail = self._ids[[row], keep : keep + 1]
            return Branch([0], twin, tail, self._mask[[row], :keep], self._ids[[row], :keep])
        return Branch.fresh(prompt.ids[: prompt.start], self._ids.device)

    def _behind_prompt(self, row: int, reads: Sequence[Read], embeddings: np.ndarray) -> np.ndarray:
        """States of `embeddings` behind the whole generation prompt, float32 `[reads, hidden_size]`."""
        self._prefill(())
        branch = self._branch_at_start(row, anew=self.passes.reads_base_weights)
        return self.passes.read_header(branch, reads, AnswerSpan((branch.length,)), embeddings)[0]

    def _states_at_start(self, reads: tuple[Read, ...]) -> np.ndarray:
        """States at depth 0, float32 `[rows, reads, hidden_size]`: the prompt's header, seen as the cache filled."""
        if reads not in self._start_states:
            # Through base weights the prompt is read in a pass of its own: the adapter is on as the cache is filled.
            single = tuple(read for read in reads if not read.is_mean)
            found = np.zeros((self.rows, len(reads), self.passes.identity.hidden_size), np.float32)  # means of no token
            if single:
                seen = self._prefill(() if self.passes.reads_base_weights else sites_of(single))
                states = [self._state_at_start(row, seen, single) for row in range(self.rows)]
                found[:, [not read.is_mean for read in reads]] = np.stack(states)
            self._start_states[reads] = found
        return self._start_states[reads]

    def _state_at_start(self, row: int, seen: dict[Site, torch.Tensor], reads: tuple[Read, ...]) -> np.ndarray:
        prompt = self._rows[row].prompt
        places = [self.passes.template.position(prompt, read.token) for read in reads]
        offset = self._prompt_length - len(prompt.ids)
        if not seen or None in places:
            branch = Branch.fresh(prompt.ids[: prompt.start], self._ids.device)
            if None in places:  # the template's generation prompt lacks the read token
                return self.passes.read_header(branch, reads, AnswerSpan((branch.length,)))[0]
            # other sites were read as the cache filled
            seen, row, offset = self.passes.read_branch(branch, sites_of(reads)), 0, 0
        return np.stack(
            [to_numpy(seen[read.site][row, offset + (place or 0)]) for read, place in zip(reads, places, strict=True)]
        )
