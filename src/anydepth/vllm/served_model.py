"""The facts that a probe and the guard need of the model that vLLM serves."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from anydepth.backends.checkpoint_identity import identify
from anydepth.backends.protocol import Capability, ModelIdentity, Site
from anydepth.errors import ModelError, UnsupportedModel
from anydepth.extras import require
from anydepth.templates.template import ChatTemplate, Header


class ServedModel:
    """The facts that detectors are bound to: the part of `Backend` that needs no forward pass.

    Args:
        config: vLLM's `ModelConfig`, or whatever has its attributes.
        template_kwargs: Variables for the chat template.
        adapter: Whether requests may name a LoRA adapter, which the engine then runs them with.

    Raises:
        ModelError: There is no tokenizer.
        TemplateError: There is no chat template.
    """

    capabilities = frozenset(
        {
            Capability.HIDDEN_STATES,
            Capability.LOOK_AHEAD,
            Capability.NEXT_TOKEN,
            Capability.EMBEDDINGS,
            Capability.CONVERSATION,
        }
    )

    def __init__(self, config: Any, template_kwargs: Mapping[str, Any] | None = None, *, adapter: bool = False) -> None:
        self._config = config
        self.adapter = adapter
        if config.skip_tokenizer_init:
            raise ModelError("the engine has no tokenizer; the guard needs one, drop --skip-tokenizer-init")
        transformers = require("transformers", extra="vllm")
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
            config.tokenizer, revision=config.tokenizer_revision, trust_remote_code=config.trust_remote_code
        )
        self.template = ChatTemplate(self.tokenizer, name=str(config.model), template_kwargs=template_kwargs)

    @cached_property
    def _identity(self) -> ModelIdentity:
        return identify(str(self._config.model), self._config.hf_config, self._config.revision)

    @property
    def identity(self) -> ModelIdentity:
        """Which model this is, from the checkpoint's files."""
        return self._identity

    @property
    def quantization_config(self) -> Any:
        """How the weights are quantised: what the checkpoint says, or else what vLLM was told; None if they are not."""
        if (config := getattr(self._config.hf_config, "quantization_config", None)) is not None:
            return config
        method = getattr(self._config, "quantization", None)
        return None if method is None else {"quant_method": str(method)}

    @property
    def header(self) -> Header:
        """The Safety Tokens of the chat template."""
        return self.template.header

    @property
    def end_token_ids(self) -> frozenset[int]:
        """Tokens that end a turn: vLLM's own end of sequence and those of the generation config."""
        found = (self._config.try_get_generation_config() or {}).get("eos_token_id")
        listed = found if isinstance(found, list) else [found]
        return frozenset(int(each) for each in [*listed, self.tokenizer.eos_token_id] if each is not None)

    def spare_ids(self, count: int) -> tuple[int, ...]:
        """The last `count` ids of the embedding table, none of which is a token of the tokenizer.

        A single one may also be the first id behind the table, which vLLM itself takes for no token (it pads with it).

        Raises:
            UnsupportedModel: The table has not so many ids besides the tokenizer's.
        """
        rows, known = self._config.get_vocab_size(), max(self.tokenizer.get_vocab().values()) + 1
        if rows - known < count:
            if count == 1:
                return (rows,)
            raise UnsupportedModel(
                f"{count} trained Safety Tokens need ids that are no tokens; the embedding table has {rows} rows, and "
                f"the tokenizer's ids go to {known - 1}; train a single token, use --engine transformers, or give a "
                "probe that reads the template's header"
            )
        return tuple(range(rows - count, rows))

    def check_site(self, site: Site) -> None:
        """Raise UnsupportedModel if there is no such block; the worker, which has the model, checks its modules."""
        if not 0 <= site.block < self.identity.num_layers:
            raise UnsupportedModel(
                f"site {site} is outside the model, which has blocks 0 to {self.identity.num_layers - 1}"
            )

    def first_token_ids(self, texts: Sequence[str]) -> list[int]:
        """The first token of each text as the start of an answer."""
        return [self.tokenizer.encode(text, add_special_tokens=False)[0] for text in texts]

    def decode_text(self, token_ids: Sequence[int]) -> str:
        """Text of `token_ids`, special tokens left out."""
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
