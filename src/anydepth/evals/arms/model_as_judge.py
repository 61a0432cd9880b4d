"""Ask a model in words whether an answer is harmful, and read the verdict off its next token."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from anydepth.backends.batch import batches
from anydepth.detectors.guard_wording import Wording, guard_wording, own_wording
from anydepth.errors import CheckError, ConfigError, ModelError
from anydepth.placeholders import filled
from anydepth.templates.template import Prompt
from anydepth.types import Score

if TYPE_CHECKING:
    from anydepth.backends.transformers import TransformersBackend


@dataclass
class AskedModel:
    """A causal language model that answers such questions.

    Attributes:
        model: A Transformers model with a generation head.
        tokenizer: Its tokenizer, with a chat template.
        wording: The texts of the question.
    """

    model: Any
    tokenizer: Any
    wording: Wording

    @classmethod
    def load(cls, model: str, *, dtype: str = "auto") -> "AskedModel":
        """Load an external guard by hub id or folder; ModelError if it cannot be."""
        from anydepth.backends.transformers.opening import (
            auto_class,
            base_of,
            open_adapter,
            open_model,
            open_tokenizer,
        )

        tokenizer = open_tokenizer(model, what="guard model")
        base = base_of(model)
        loaded = open_model(auto_class(base or model), base or model, what="guard model", dtype=dtype)
        if base is not None:
            loaded = open_adapter(loaded, model)
        if not tokenizer.chat_template:
            raise ModelError(f"the tokenizer of the guard model {model!r} has no chat template; give a chat model")
        return cls(loaded.eval(), tokenizer, guard_wording(model))

    @classmethod
    def itself(cls, backend: "TransformersBackend") -> "AskedModel":
        """The model under test, asked about its own answer."""
        return cls(backend.model, backend.tokenizer, own_wording())

    def about(self, request: str, answer: str) -> tuple[int, ...]:
        """Ids of the question about one answer."""
        if self.wording.form == "turns":
            turns = [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]
        else:
            text = filled(self.wording.question, request=request, answer=answer)
            turns = [{"role": "user", "content": text}]
        text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ids = self.tokenizer(text + self.wording.lead, add_special_tokens=False)["input_ids"]
        return tuple(ids)

    def scores(self, questions: Sequence[Sequence[int]]) -> list[Score | Exception]:
        """How much of the next token's probability, of that on either verdict, finds harm; one score a question."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        found: list[Score | Exception] = [CheckError(f"longer than the context of {limit} tokens")] * len(questions)
        asked = [(place, Prompt(tuple(ids))) for place, ids in enumerate(questions)]
        numbered = [(place, prompt) for place, prompt in asked if limit is None or len(prompt.ids) <= limit]
        for batch in batches(numbered, lambda item: item[1], 0, lambda item: f"{item[0]:09d}"):
            logits = self._next_logits([prompt.ids for _, prompt in batch])
            for (place, _), row in zip(batch, logits, strict=True):
                found[place] = self._score(row)
        return found

    def _score(self, logits: np.ndarray) -> Score | Exception:
        verdicts = [logits[list(ids)] for ids in self._verdicts]
        if not all(np.isfinite(each).all() for each in verdicts):
            return CheckError(f"{type(self.model).__name__} gave logits that are not finite")
        harmful, harmless = (np.logaddexp.reduce(each) for each in verdicts)
        return Score(float(np.exp(-np.logaddexp(0.0, harmless - harmful))))

    @cached_property
    def _verdicts(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """First tokens of the words for harm and of those for none."""
        wording = self.wording
        first = [
            {self.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words}
            for words in (wording.harmful, wording.harmless)
        ]
        if first[0] & first[1]:
            raise ConfigError(
                f"{', '.join(wording.harmful)} and {', '.join(wording.harmless)} begin with the same token in this "
                "tokenizer; write other words into asked.toml"
            )
        return tuple(sorted(first[0])), tuple(sorted(first[1]))

    @cached_property
    def _inputs(self) -> Any:
        from anydepth.backends.transformers.inputs import ForwardInputs

        return ForwardInputs(self.model)

    def _next_logits(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """Logits of the token after each row, float64 `[rows, vocab_size]`."""
        import torch

        width, device = max(map(len, rows)), self.model.device
        ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
        arguments = self._inputs.build(ids, None, mask)
        if self._inputs.keeps_logits:
            arguments["logits_to_keep"] = 1
        with torch.no_grad():
            logits = self.model(**arguments).logits
        return logits[:, -1].float().cpu().numpy().astype(np.float64)
