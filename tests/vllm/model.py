"""A tiny random model that vLLM's CPU attention takes, and a probe on several states of it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from anydepth import LinearProbe
from anydepth.backends.checkpoint_identity import identify
from anydepth.backends.protocol import WHOLE, Read, Site
from anydepth.detectors import ProbeCard
from anydepth.templates.template import ChatTemplate
from tests.tiny import VOCABULARY, tiny_tokenizer

READS = (
    "2.input_layernorm@2", "1.output@content", "3.post_attention_layernorm@3", "2.input_layernorm@0",
    "2.input_layernorm@mean", "1.self_attn@mean5", "3.mlp@mean2",
)  # fmt: skip
"""Several blocks, modules and tokens, the last one before the header among them, and means over the answer."""

WIDTH = 64
PROMPTS = [[{"role": "user", "content": f"w{n} w{n + 7} w{3 * n}"}] for n in range(1, 33)]


def build(
    folder: Path,
    family: str = "Llama",
    config: str = "LlamaConfig",
    *,
    spare: int = 0,
    tied: bool = False,
    **options: Any,
) -> Path:
    """Write a random model with heads of 32, by default a Llama, and its tokenizer; its next tokens are not uniform.

    It has `spare` embeddings of no token.
    """
    torch.manual_seed(0)
    settings = getattr(transformers, config)(
        vocab_size=VOCABULARY + spare, hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=4,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, max_position_embeddings=512, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, tie_word_embeddings=tied, **options,
    )  # fmt: skip
    model = getattr(transformers, f"{family}ForCausalLM")(settings).to(torch.float32).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(5)
        else:
            parameter.data.uniform_(0.5, 1.5)  # else all norms are ones and the fingerprint is every tiny model's
    model.generation_config.do_sample = False
    model.save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(folder)
    return folder


class Reference:
    """The model in Transformers, read in the plainest way: one forward pass a depth, the header behind the text."""

    def __init__(self, folder: Path) -> None:
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.template = ChatTemplate(transformers.AutoTokenizer.from_pretrained(folder))
        self.identity = identify(str(folder), self.model.config)

    def states(self, ids, depth, reads) -> np.ndarray:
        """States at the end of `ids`, `[reads, hidden_size]`; at depth 0 `ids` end with the header themselves."""
        header = self.template.header.ids
        text = tuple(ids[: -len(header)]) if depth == 0 and tuple(ids[-len(header) :]) == header else tuple(ids)
        seen: dict[Site, torch.Tensor] = {}

        def hook(site):
            def note(module, inputs, output):
                seen[site] = (output[0] if isinstance(output, tuple) else output).detach().reshape(-1, WIDTH)

            return note

        hooks = [self._module(read.site).register_forward_hook(hook(read.site)) for read in reads]
        with torch.no_grad():
            self.model(torch.tensor([text + header]))
        for each in hooks:
            each.remove()
        return np.stack([self._state(seen[read.site], read, len(text), depth) for read in reads])

    def _state(self, states: torch.Tensor, read: Read, end: int, depth: int) -> np.ndarray:
        """One read of a pass over a text of `end` tokens, the last `depth` of them the answer, and the header."""
        if not read.is_mean:
            return states[end + read.token].numpy()
        count = max(depth, 1) if read.token == WHOLE else -read.token
        return (states[end - min(depth, -read.token) : end].sum(0) / count).numpy()

    def _module(self, site: Site) -> torch.nn.Module:
        block = self.model.model.layers[site.block]
        return block if site.module == "output" else getattr(block, site.module)

    def scores(self, probe, prompt_ids, answer_ids, depths) -> dict[int, float]:
        """Scores of a probe at depths of a finished answer."""
        ids = tuple(prompt_ids) + tuple(answer_ids)
        start = len(prompt_ids)
        states = np.stack([self.states(ids[: start + depth], depth, probe.reads) for depth in depths])
        return {depth: score.value for depth, score in zip(depths, probe.score_each(states), strict=True)}


def planted_probe(path: Path, reference: Reference, reads: tuple[str, ...] = READS) -> Path:
    """Write a probe whose scores over random answers lie around one half, and spread."""
    return _plant(path, reference, tuple(map(Read.parse, reads)))


def _plant(path: Path, reference: Reference, reads: tuple[Read, ...]) -> Path:
    rng = np.random.default_rng(13)
    states = []
    for messages in PROMPTS:
        ids = reference.template.prompt(messages).ids
        answer = tuple(int(each) for each in rng.integers(9, VOCABULARY, 60))
        states += [reference.states((*ids, *answer[:depth]), depth, reads) for depth in (0, 1, 16, 60)]
    weight = rng.standard_normal((len(reads), WIDTH))
    logits = (np.stack(states) * weight).sum((1, 2))
    scale = 1.5 / logits.std()
    card = ProbeCard(
        model=reference.identity,
        header_ids=reference.template.header.ids,
        reads=reads,
        template_digest=reference.template.digest,
        policy={"name": "threshold", "threshold": 1.0},
    )
    LinearProbe((weight * scale).astype(np.float32), float(-np.median(logits) * scale), card).save(path)
    return path
