"""Sites are found and read in models of other families: norms, biases and windows of their own."""

import numpy as np
import pytest
import torch
import transformers

pytest.importorskip("vllm", reason="vllm is not installed here; docs/vllm.md says how to run these tests")

from anydepth import LinearProbe
from tests.tiny import VOCABULARY, tiny_tokenizer
from tests.vllm.engine import monitor
from tests.vllm.model import PROMPTS, WIDTH, Reference, planted_probe

SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": 4,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 512,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
SLIDING = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
FAMILIES = {
    "Qwen3": {},
    "Gemma3Text": {"sliding_window": 32, "layer_types": SLIDING, "query_pre_attn_scalar": 32},
}
READS = ("2.input_layernorm@2", "3.output@content", "1.output@1")


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_transformers(engines, tmp_path, family):
    folder = build(family, tmp_path / "model")
    reference = Reference(folder)
    probe = planted_probe(tmp_path / "probe.safetensors", reference, READS)
    engine = engines(folder=folder, settings={"guard": {"probe": str(probe)}})
    told = engine.answers(PROMPTS[:4], guard=monitor(interval=9), max_tokens=50, ignore_eos=True)
    plain = engine.answers(PROMPTS[:4], guard={"guard": False}, max_tokens=50, ignore_eos=True)
    assert [each.token_ids for each in told] == [each.token_ids for each in plain]
    for answer, messages in zip(told, PROMPTS, strict=False):
        checks = {each["depth"]: each["score"] for each in answer.report["timeline"]}
        wanted = reference.scores(LinearProbe.load(probe), engine.ids(messages), answer.token_ids, list(checks))
        assert checks == pytest.approx(wanted, abs=1e-3)
        assert np.ptp(list(checks.values())) > 1e-3
    engine.verified()


def build(family, folder):
    """A random model of the family in float32."""
    torch.manual_seed(1)
    config = getattr(transformers, f"{family}Config")(**SMALL, **FAMILIES[family])
    name = family.removesuffix("Text") + "ForCausalLM"
    model = getattr(transformers, name)(config).to(torch.float32).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(4)
        else:
            parameter.data.uniform_(0.3, 1.2)
    model.save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(folder)
    return folder
