"""Run nanoGCG on a guarded model, with the guard's probe in its loss where that is wanted.

nanoGCG's own steps are kept: the gradient at the one-hot suffix, the draw of candidates, the buffer. Replaced are the
two places that run the model, because Transformers 5 takes no list of tensors as a cache. The prompt is the one that
the guard is given: nanoGCG would delete the BOS token wherever the template writes it, which may be before every turn.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from nanogcg import gcg
from torch.nn.functional import cross_entropy, one_hot, softplus
from transformers.cache_utils import Cache

from anydepth.backends.protocol import CONTENT, Read
from anydepth.backends.transformers.backend import TransformersBackend
from anydepth.backends.transformers.fork import fork, select_rows
from anydepth.backends.transformers.randomness import seeded
from anydepth.backends.transformers.read import captured
from anydepth.evals.attacks.gcg import START, Budget, Evasion, Suffix, Told

_log = logging.getLogger("nanogcg")
_log.setLevel(logging.ERROR)  # it logs the suffixes


class _Tokenizer:
    """The model's tokenizer as nanoGCG uses it, with the prompts of the guard's template."""

    bos_token = None  # the template writes it where it belongs

    def __init__(self, backend: TransformersBackend) -> None:
        self._backend, self._own = backend, backend.tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def __call__(self, text: Any, **options: Any) -> Any:
        return self._own(text, **{**options, "add_special_tokens": False})

    def apply_chat_template(self, messages: Any, **_: Any) -> str:
        """The text of the prompt that the guard makes of `messages`."""
        return self._backend.template.text(messages)


class Search(gcg.GCG):
    """One search at a time; the tables of allowed tokens are made once."""

    def __init__(self, backend: TransformersBackend, budget: Budget, evasion: Evasion | None, told: Told) -> None:
        self._backend, self._budget, self._evasion, self._told = backend, budget, evasion, told
        config = gcg.GCGConfig(
            num_steps=budget.steps,
            optim_str_init=START,
            search_width=budget.width,
            batch_size=budget.batch,
            topk=budget.top,
            early_stop=evasion is None,
        )
        super().__init__(backend.model, _Tokenizer(backend), config)  # pyright: ignore[reportArgumentType]
        self.not_allowed_ids = self._forbidden()
        self._header = backend.header.ids[: max((read.token for read in self._reads), default=CONTENT) + 1]
        header = torch.tensor([self._header], dtype=torch.long, device=backend.model.device)
        self._header_embeds = self.embedding_layer(header).detach()
        self._at_start = self._offsets()
        self._begun = None

    @property
    def _reads(self) -> tuple[Read, ...]:
        return self._evasion.probe.reads if self._evasion else ()

    @property
    def _table(self) -> torch.Tensor:
        """Embedding of each token."""
        return cast("torch.Tensor", self.embedding_layer.weight)

    @property
    def _prefix(self) -> Cache:
        """What comes before the suffix; nanoGCG fills it."""
        return cast("Cache", self.prefix_cache)

    def find(self, request: str, target: str, seed: int) -> Suffix:
        """The best suffix for `request`; see `find_suffix`."""
        self._begun, self.stop_flag = None, False
        ids = self.tokenizer(target)["input_ids"][: self._budget.target]
        with self._backend.lock, seeded(seed, self.model.device), self._steps_told():
            found = self.run([{"role": "user", "content": request}], self._backend.decode_text(ids))
        start = found.losses[0] if self._begun is None else self._begun
        if start <= found.best_loss:
            return Suffix(START, start, start, len(found.losses))
        return Suffix(found.best_string, float(found.best_loss), start, len(found.losses))

    # -- the two places at which nanoGCG runs the model ----------------------------------------------------------------

    def compute_token_gradient(self, optim_ids: torch.Tensor) -> torch.Tensor:
        """Gradient of the loss at the one-hot form of `optim_ids` `[1, n]`: `[1, n, vocab_size]`."""
        weight = self._table
        chosen = one_hot(optim_ids, num_classes=len(weight)).to(self.model.device, self.model.dtype)
        chosen.requires_grad_()
        embeds = torch.cat([chosen @ weight, self.after_embeds, self.target_embeds], 1)
        loss = self._loss(embeds, fork(self._prefix))
        return torch.autograd.grad([loss.sum()], [chosen])[0]

    def compute_candidates_loss(self, search_batch_size: int, input_embeds: torch.Tensor) -> torch.Tensor:
        """Loss of each row of `input_embeds` `[b, t, hidden_size]`, a few rows at a time."""
        with torch.no_grad():
            parts = [
                self._loss(rows, select_rows(self._prefix, [0] * len(rows)))
                for rows in input_embeds.split(search_batch_size)
            ]
        losses = torch.cat(parts)
        if self._begun is None:
            self._begun = float(losses[0])
        return losses

    def _loss(self, embeds: torch.Tensor, cache: Any) -> torch.Tensor:
        """Loss of each row: how unlikely the target is, and what the probe makes of it."""
        wanted = self.target_ids.shape[1]
        header = self._header_embeds.expand(len(embeds), -1, -1)
        options: dict[str, Any] = {self._backend.inputs.cache_name: cache, "use_cache": True}
        if self._backend.inputs.keeps_logits:
            options["logits_to_keep"] = wanted + 1 + header.shape[1]
        sites = tuple(dict.fromkeys(read.site for read in self._reads))
        with captured(self.model, sites, stop=False) as seen:
            output = self.model(inputs_embeds=torch.cat([embeds, header], 1), **options)
        logits = output.logits[:, -(wanted + 1 + header.shape[1]) :][:, :wanted]
        labels = self.target_ids.expand(len(embeds), -1)
        losses = cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="none")
        if self.config.early_stop and bool((logits.argmax(-1) == labels).all(1).any()):
            self.stop_flag = True
        loss = losses.view(len(embeds), -1).mean(1)
        if self._evasion is None:
            return loss
        end = embeds.shape[1]
        states = {site: torch.cat(parts, 1) for site, parts in seen.items()}
        at_start = self._logit(states, [end - wanted - offset for offset in self._at_start])
        behind = self._logit(states, [end + read.token for read in self._reads])
        return loss + self._evasion.weight * (softplus(at_start) + softplus(behind)) / 2

    def _logit(self, states: dict[Any, torch.Tensor], places: list[int]) -> torch.Tensor:
        """The probe's logit of each row, with one place in the row a read."""
        assert self._evasion is not None
        probe = self._evasion.probe
        weight = torch.tensor(probe.weight, device=self.model.device)
        total = torch.full((), probe.bias, device=self.model.device)
        for read, place, direction in zip(self._reads, places, weight, strict=True):
            total = total + states[read.site][:, place].float() @ direction
        return total

    # -- facts of the model --------------------------------------------------------------------------------------------

    def _offsets(self) -> list[int]:
        """How far before the end of the prompt each read of depth 0 is."""
        prompt = self._backend.template.prompt("request")
        places = [self._backend.template.position(prompt, read.token) for read in self._reads]
        # Where the generation prompt lacks the read token, depth 0 is read behind it; its end comes closest.
        return [1 if place is None else prompt.start - place for place in places]

    def _forbidden(self) -> torch.Tensor:
        """Ids that a user cannot type: other scripts and control characters (nanoGCG's), and every control token."""
        tokenizer = self._backend.tokenizer
        beyond = range(tokenizer.vocab_size, len(self._table))
        special = [*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder, *beyond]
        own = self.not_allowed_ids.tolist() if self.not_allowed_ids is not None else []
        return torch.tensor(sorted({*own, *special}), device=self.model.device)

    @contextmanager
    def _steps_told(self) -> Iterator[None]:
        """Count steps where nanoGCG would draw a bar of its own."""
        bar = gcg.tqdm

        def counted(steps: range) -> Iterator[int]:
            for done, step in enumerate(steps):
                self._told(done, len(steps))
                yield step

        gcg.tqdm = counted  # pyright: ignore[reportAttributeAccessIssue]
        try:
            yield
        finally:
            gcg.tqdm = bar
