"""Search for suffixes with GCG (arXiv 2307.15043), with the guard's probe in the loss where that is wanted.

A step takes the gradient of the loss at the one-hot suffix, draws suffixes that differ from it in one token, one of
those with the best gradient at its place, and goes on with the best of them. The prompt is the guard's own; what comes
before the suffix is run once, and its cache forked.
"""

from typing import Any, cast

import torch
from torch.nn.functional import cross_entropy, one_hot, softplus

from anydepth.backends.protocol import last_header_token, require_no_means, sites_of
from anydepth.backends.transformers.backend import TransformersBackend
from anydepth.backends.transformers.fork import fork, select_rows
from anydepth.backends.transformers.randomness import seeded
from anydepth.backends.transformers.read import captured
from anydepth.detectors.detector import require_header
from anydepth.errors import ConfigError
from anydepth.evals.attacks.gcg import START, Budget, Evasion, Suffix, Told

_PLACE = "{suffix}"


class Search:
    """One search at a time; the table of allowed tokens is made once."""

    def __init__(self, backend: TransformersBackend, budget: Budget, evasion: Evasion | None, told: Told) -> None:
        self._backend, self._budget, self._evasion, self._told = backend, budget, evasion, told
        self._model, self._tokenizer = backend.model, backend.tokenizer
        self._reads = evasion.probe.reads if evasion else ()
        require_no_means(self._reads, "a search for a suffix that evades the probe")
        require_header(evasion and evasion.probe, "a search for a suffix that evades the probe")
        self._embedding = self._model.get_input_embeddings()
        self._table = cast("torch.Tensor", self._embedding.weight)  # of each token, `[vocab_size, hidden_size]`
        self._forbidden = self._untypable()
        self._header = backend.header.ids[: last_header_token(self._reads) + 1]
        self._at_start = self._offsets()

    def find(self, request: str, target: str, seed: int) -> Suffix:
        """The best suffix for `request`; see `find_suffix`."""
        with self._backend.lock, seeded(seed, self._model.device):
            self._begin(request, target)
            current, text = self._ids(START), START
            start = best = float(self._losses(current)[0])
            made = 0
            for made in range(1, self._budget.steps + 1):
                self._told(made - 1, self._budget.steps)
                tried = self._drawn(current)
                losses = self._losses(tried)
                current = tried[losses.argmin()][None]
                if (loss := float(losses.min())) < best:
                    best, text = loss, self._tokenizer.decode(current[0])
                if self._reached:
                    break
        return Suffix(text, best, start, made)

    def _begin(self, request: str, target: str) -> None:
        before, after = self._backend.template.text([{"role": "user", "content": request + _PLACE}]).rsplit(_PLACE, 1)
        with torch.no_grad():
            output = self._model(input_ids=self._ids(before), use_cache=True)
        self._prefix = getattr(output, self._backend.inputs.cache_name)
        self._after, self._target = self._ids(after), self._ids(target)[:, : self._budget.target]
        self._reached = False

    def _ids(self, text: str) -> torch.Tensor:
        """Token ids, `[1, tokens]`."""
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return torch.tensor([ids], dtype=torch.long, device=self._model.device)

    def _drawn(self, current: torch.Tensor) -> torch.Tensor:
        """Suffixes that differ from `current` `[1, n]` in one token, `[at most width, n]`.

        Raises:
            ConfigError: None keeps its tokens when its text is read again.
        """
        chosen = one_hot(current, num_classes=len(self._table)).to(self._model.device, self._model.dtype)
        chosen.requires_grad_()
        loss = self._loss(chosen @ self._table, fork(self._prefix))
        gradient = torch.autograd.grad([loss.sum()], [chosen])[0][0]
        gradient[:, self._forbidden] = float("inf")
        top = min(self._budget.top, len(self._table) - len(self._forbidden))
        best = (-gradient).topk(top, dim=1).indices
        width, rows = self._budget.width, torch.arange(self._budget.width, device=self._model.device)
        places = torch.randint(current.shape[1], (width,), device=self._model.device)
        found = current.repeat(width, 1)
        found[rows, places] = best[places, torch.randint(top, (width,), device=self._model.device)]
        kept = [row for row in found if torch.equal(self._ids(self._tokenizer.decode(row))[0], row)]
        if not kept:
            raise ConfigError(
                f"no suffix keeps its tokens in the tokenizer of {self._backend.identity.name} when it is read again; "
                "GCG cannot attack this model, leave the attack out"
            )
        return torch.stack(kept)

    def _losses(self, suffixes: torch.Tensor) -> torch.Tensor:
        """Loss of each suffix `[b, n]`, a few at a time."""
        with torch.no_grad():
            parts = [
                self._loss(self._embedding(rows), select_rows(self._prefix, [0] * len(rows)))
                for rows in suffixes.split(self._budget.batch)
            ]
        return torch.cat(parts)

    def _loss(self, suffixes: torch.Tensor, cache: Any) -> torch.Tensor:
        """Loss of each suffix, embedded `[b, n, hidden_size]`: how unlikely the target is, and the probe's part."""
        wanted, rows = self._target.shape[1], len(suffixes)
        header = torch.tensor([self._header], dtype=torch.long, device=self._model.device)
        behind = self._embedding(torch.cat([self._after, self._target, header], 1)).detach()
        embeds = torch.cat([suffixes, behind.expand(rows, -1, -1)], 1)
        end = embeds.shape[1] - len(self._header)
        options: dict[str, Any] = {self._backend.inputs.cache_name: cache, "use_cache": True}
        if self._backend.inputs.keeps_logits:
            options["logits_to_keep"] = wanted + 1 + len(self._header)
        with captured(self._model, sites_of(self._reads), stop=False) as seen:
            output = self._model(inputs_embeds=embeds, **options)
        logits = output.logits[:, -(wanted + 1 + len(self._header)) :][:, :wanted]
        labels = self._target.expand(rows, -1)
        losses = cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="none").view(rows, -1).mean(1)
        if self._evasion is None:
            self._reached |= bool((logits.argmax(-1) == labels).all(1).any())
            return losses
        states = {site: torch.cat(parts, 1) for site, parts in seen.items()}
        at_start = self._logit(states, [end - wanted - offset for offset in self._at_start])
        at_end = self._logit(states, [end + read.token for read in self._reads])
        return losses + self._evasion.weight * (softplus(at_start) + softplus(at_end)) / 2

    def _logit(self, states: dict[Any, torch.Tensor], places: list[int]) -> torch.Tensor:
        """The probe's logit of each row, with one place in the row per read."""
        assert self._evasion is not None
        probe = self._evasion.probe
        weight = torch.tensor(probe.weight, device=self._model.device)
        total = torch.full((), probe.bias, device=self._model.device)
        for read, place, direction in zip(self._reads, places, weight, strict=True):
            total = total + states[read.site][:, place].float() @ direction
        return total

    def _offsets(self) -> list[int]:
        """How far before the end of the prompt each read of depth 0 is."""
        prompt = self._backend.template.prompt("request")
        places = [self._backend.template.position(prompt, read.token) for read in self._reads]
        # Where the generation prompt lacks the read token, depth 0 is read behind it; its end comes closest.
        return [1 if place is None else prompt.start - place for place in places]

    def _untypable(self) -> torch.Tensor:
        """Ids that a user cannot type: other scripts, control characters and every control token."""
        known = range(self._tokenizer.vocab_size)
        texts = self._tokenizer.batch_decode([[token] for token in known])
        odd = [token for token, text in zip(known, texts, strict=True) if not (text.isascii() and text.isprintable())]
        beyond = range(self._tokenizer.vocab_size, len(self._table))
        control = [*self._tokenizer.all_special_ids, *self._tokenizer.added_tokens_decoder, *beyond]
        return torch.tensor(sorted({*odd, *control}), device=self._model.device)
