"""Finished answers whose texts were run once, ready for Safety Tokens behind their depths, with a gradient.

The text does not see the tokens behind it. So a gradient with respect to these needs the tokens' own rows and the cache
of the text, and no gradient through the text.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from anydepth.backends.protocol import FinishedAnswer, Site
from anydepth.backends.transformers.fork import fork
from anydepth.backends.transformers.header_copies import copies
from anydepth.backends.transformers.packed import run_texts
from anydepth.backends.transformers.passes import Passes
from anydepth.backends.transformers.read import read
from anydepth.backends.transformers.soft_tokens import fed_instead


class CachedTexts:
    """A batch of finished answers, whose prompts and answers were run up to one site.

    Args:
        passes: The model.
        answers: Answers of about the same length, each read at its depths.
        site: Where states are read.

    Raises:
        UnsupportedModel: The model cannot take the packed pass.
        PromptError: A depth is outside its answer, or a text does not fit the context.
    """

    def __init__(self, passes: Passes, answers: Sequence[FinishedAnswer], site: Site) -> None:
        self._passes, self._site = passes, site
        with passes.lock, passes.reading_weights():
            self._length, self._cache, _ = run_texts(passes, answers, (site,))
        ends = [torch.tensor([each.prompt.start + depth for depth in each.depths]) for each in answers]
        self._ends = pad_sequence(ends, batch_first=True)
        counts = torch.tensor([len(each.depths) for each in answers])
        self._real = torch.arange(self._ends.shape[1])[None, :] < counts[:, None]

    @property
    def size(self) -> int:
        """Memory that the cache takes, in bytes."""
        tensors = (each for layer in self._cache.layers for each in vars(layer).values())
        return sum(each.numel() * each.element_size() for each in tensors if isinstance(each, torch.Tensor))

    def states(self, embeddings: torch.Tensor, *, gradient: bool = True) -> torch.Tensor:
        """State of the last of `embeddings` `[tokens, hidden_size]` behind each depth of each answer.

        Float32 `[depths of all answers, hidden_size]`, in the order of the answers and their depths. With `gradient`
        a loss of them can be followed back to `embeddings`, and to nothing of the model.
        """
        passes, count = self._passes, len(embeddings)
        tokens = passes.stand_ins(embeddings)
        with passes.lock, passes.reading_weights(), weights_frozen(passes.model):
            inputs = copies(passes, fork(self._cache), self._ends, tokens, self._length)
            with fed_instead(passes.model, embeddings, range(self._ends.shape[1] * count)):
                found = read(passes.model, (self._site,), inputs, gradient=gradient)[self._site]
        last = found.unflatten(1, (self._ends.shape[1], count))[:, :, -1]
        return last[self._real.to(last.device)].float()


@contextmanager
def weights_frozen(model: nn.Module) -> Iterator[None]:
    """Ask for no gradient of the model's weights inside the context."""
    asked = [each for each in model.parameters() if each.requires_grad]
    for each in asked:
        each.requires_grad_(False)
    try:
        yield
    finally:
        for each in asked:
            each.requires_grad_(True)
