"""Train Safety Tokens together with a linear probe on the state of the last one; the model's weights stay as they are.

A text does not see the tokens behind it: its cache is made once, and a gradient runs through the tokens' own rows only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from anydepth.backends.protocol import Site
from anydepth.errors import ConfigError, StoreError
from anydepth.probes.fitting.fit import FitOptions, direction_of
from anydepth.probes.states.collect import batches_of
from anydepth.probes.tokens.token_options import TokenOptions
from anydepth.probes.tokens.training_texts import TrainingText

if TYPE_CHECKING:
    from anydepth.backends.transformers import TransformersBackend
    from anydepth.backends.transformers.cached_texts import CachedTexts


@dataclass(frozen=True, slots=True)
class TrainedTokens:
    """Safety Tokens, and the probe that was trained with them.

    Attributes:
        embeddings: What is fed in the place of the header, float32 `[tokens, hidden_size]`.
        weight: Direction on the state of the last token, float64 `[hidden_size]`, standardisation folded in.
        bias: Its offset.
        losses: Mean loss (binary cross-entropy, weighted) of each epoch; the first is that of the header's own tokens
            and a probe that was fitted on their states.
    """

    embeddings: np.ndarray
    weight: np.ndarray
    bias: float
    losses: tuple[float, ...]


def train_tokens(
    backend: "TransformersBackend",
    texts: Sequence[TrainingText],
    site: Site,
    options: TokenOptions,
    fit_options: FitOptions,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> TrainedTokens:
    """Train the tokens and the probe by gradient descent (Adam) on the recipe's training checks.

    They begin as the last tokens of the header, up to the read token, and as the probe that is fitted on their states.

    Args:
        backend: The model; its weights get no gradient.
        texts: The training answers.
        site: Where the state of the last token is read.
        options: The tokens and the steps.
        fit_options: Regularisation and method of the probe that the training begins with; the penalty on the weight is
            the same while it is trained.
        progress: Called after each batch with (batches done, batches in all).

    Raises:
        ConfigError: There are more tokens than the header has, up to the read token.
        UnsupportedModel: The model cannot take a packed pass (`packed.refusal`).
        StoreError: The loss is not finite, or there are no answers of one of the labels.
    """
    training = _Training(backend, texts, site, options, fit_options)
    total, done = len(training.batches) * (options.epochs + 1), 0

    def told(count: int = 1) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    begun = training.begin(told)
    return training.result((begun, *(training.run(epoch, told) for epoch in range(options.epochs))))


def header_embeddings(backend: "TransformersBackend", count: int) -> np.ndarray:
    """What the embedding table gives for the header's last `count` tokens up to the read token.

    Float32 `[count, hidden_size]`. ConfigError if the header has fewer.
    """
    import torch

    ids = backend.header.probe_ids[-count:]
    if len(ids) < count:
        raise ConfigError(
            f"{count} Safety Tokens are asked for; the header has {len(ids)} up to the read token, which they begin "
            f"as: give 1 to {len(ids)}"
        )
    with torch.no_grad():
        rows = backend.model.get_input_embeddings()(torch.tensor(ids, device=backend.model.device))
    return rows.detach().float().cpu().numpy()


class _Training:
    """The state of one training run."""

    def __init__(
        self,
        backend: "TransformersBackend",
        texts: Sequence[TrainingText],
        site: Site,
        options: TokenOptions,
        fit_options: FitOptions,
    ) -> None:
        import torch

        self._torch: Any = torch
        self._backend, self._site, self._options, self._fit = backend, site, options, fit_options
        self.batches = [[text for text, _ in batch] for batch in batches_of((text, text.answer) for text in texts)]
        self._kept: dict[int, CachedTexts] = {}
        self._room = options.memory
        self._checks = sum(len(text.harmful) for text in texts)
        device = backend.model.device
        self._embeddings = torch.tensor(header_embeddings(backend, options.count), device=device).requires_grad_()
        self._rng = np.random.default_rng(options.seed)

    def begin(self, told: Callable[[], None]) -> float:
        """Fit the probe on the states of the header's own tokens; its loss."""
        torch, found = self._torch, []
        for place in range(len(self.batches)):
            found.append(self._texts(place).states(self._embeddings, gradient=False).cpu().numpy())
            told()
        states = np.concatenate(found)
        if not np.isfinite(states).all():
            raise StoreError("some of the states to train on are not finite; use another dtype")
        self._mean, self._scale = states.mean(0), states.std(0) + 1e-6
        harmful, weights = (
            np.concatenate([getattr(text, name) for batch in self.batches for text in batch])
            for name in ("harmful", "weights")
        )
        states = (states - self._mean) / self._scale
        direction, offset = direction_of(states, harmful, weights, self._fit)
        device = self._embeddings.device
        self._direction = torch.tensor(direction, dtype=torch.float32, device=device).requires_grad_()
        self._offset = torch.tensor(offset, dtype=torch.float32, device=device).requires_grad_()
        size = float(self._embeddings.detach().square().mean().sqrt())
        options = self._options
        groups = [
            {"params": [self._embeddings], "lr": options.rate * size},
            {"params": [self._direction, self._offset], "lr": options.probe_rate},
        ]
        steps = max(1, options.epochs * len(self.batches))
        self._adam = torch.optim.Adam(groups)
        self._decay = torch.optim.lr_scheduler.LambdaLR(self._adam, lambda step: 1 - step / steps)
        signs = np.where(harmful, -1.0, 1.0)
        return float(np.average(np.logaddexp(0, signs * (states @ direction + offset)), weights=weights))

    def run(self, epoch: int, told: Callable[[], None]) -> float:
        """Look at every batch once; the mean loss, each batch's before its step."""
        total = 0.0
        for place in self._rng.permutation(len(self.batches)):
            loss = self._loss(int(place))
            count = sum(len(text.harmful) for text in self.batches[place])
            penalty = self._direction.square().sum() / (2 * self._fit.strength * self._checks)
            self._adam.zero_grad()
            (loss / count + penalty).backward()
            self._adam.step()
            self._decay.step()
            total += float(loss.detach())
            if not np.isfinite(total):
                raise StoreError(
                    f"the loss is not finite in epoch {epoch + 1} of the Safety Tokens' training; give a smaller rate, "
                    "or load the model in float32"
                )
            told()
        return total / self._checks

    def result(self, losses: tuple[float, ...]) -> TrainedTokens:
        """What was trained, on the host."""
        direction = self._direction.detach().cpu().numpy().astype(np.float64) / self._scale
        bias = float(self._offset.detach()) - float(direction @ self._mean)
        return TrainedTokens(self._embeddings.detach().cpu().numpy(), direction, bias, losses)

    def _loss(self, place: int) -> Any:
        """Sum over the checks of a batch of the weighted binary cross-entropy."""
        torch = self._torch
        states = self._texts(place).states(self._embeddings)
        mean, scale = (torch.tensor(each, device=states.device) for each in (self._mean, self._scale))
        logits = ((states - mean) / scale) @ self._direction + self._offset
        harmful, weights = (
            torch.tensor(np.concatenate([getattr(text, name) for text in self.batches[place]]), device=states.device)
            for name in ("harmful", "weights")
        )
        each = torch.nn.functional.binary_cross_entropy_with_logits(logits, harmful.float(), reduction="none")
        return (each * weights.float()).sum()

    def _texts(self, place: int) -> "CachedTexts":
        """The texts of a batch, run once and kept as long as there is room."""
        if place in self._kept:
            return self._kept[place]
        found = self._backend.cached_texts([text.answer for text in self.batches[place]], self._site)
        if found.size <= self._room:
            self._room -= found.size
            self._kept[place] = found
        return found
