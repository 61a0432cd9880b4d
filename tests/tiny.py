"""Tiny random models of every supported family, and a tokenizer for them."""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 256

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Words and lines, 256 of them, with a ChatML template."""
    special = ["<pad>", "<bos>", "<|im_end|>", "<|im_start|>", "<unk>"]
    words = ["\n", "system", "user", "assistant", *(f"w{n}" for n in range(VOCABULARY - 9))]
    vocabulary = {token: index for index, token in enumerate([*special, *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed")]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<|im_end|>", unk_token="<unk>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = CHATML
    return tokenizer


CALLING = (
    "{% if tools %}<|im_start|>system\ncall as <tool_call>{{ tools[0]['function']['name'] }}</tool_call><|im_end|>\n"
    "{% endif %}" + CHATML
)
"""ChatML for tools, in the format that Hermes and Qwen have for calls."""

SPELLING = 264
"""Size of the vocabulary of `spelling_tokenizer`."""


def spelling_tokenizer() -> PreTrainedTokenizerFast:
    """The 256 bytes as tokens, which can spell any text, and markers of calls; with the template `CALLING`."""
    special = ["<pad>", "<bos>", "<|im_end|>", "<|im_start|>", "<unk>", "<spare>"]
    markers = ["<tool_call>", "</tool_call>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({token: id for id, token in enumerate([*special, *markers, *letters])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in markers])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<|im_end|>", unk_token="<unk>"
    )
    tokenizer.chat_template = CALLING
    return tokenizer


def _mla() -> dict[str, Any]:
    return {
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
        "n_shared_experts": 1,
    }


def _mamba2() -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "state_size": 8,
        "num_heads": 8,
        "head_dim": 8,
        "expand": 2,
        "n_groups": 1,
        "chunk_size": 16,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def _falcon_h1() -> dict[str, Any]:
    return {
        **_SMALL,
        "mamba_d_ssm": 64,
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_n_groups": 1,
        "mamba_d_state": 8,
        "mamba_chunk_size": 16,
    }


def _jamba() -> dict[str, Any]:
    return {
        **_SMALL,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 8,
        "use_mamba_kernels": False,
    }


def _qwen3_next() -> dict[str, Any]:
    return {
        **_SMALL,
        **_EXPERTS,
        "head_dim": 8,
        "shared_expert_intermediate_size": 16,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "layer_types": ["linear_attention", "full_attention"] * 2,
    }


def _gemma3() -> dict[str, Any]:
    layers = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    return {**_SMALL, "head_dim": 8, "sliding_window": 24, "layer_types": layers}


def _gpt_oss() -> dict[str, Any]:
    return {**_SMALL, "head_dim": 8, "sliding_window": 24, "num_local_experts": 4, "num_experts_per_tok": 2}


def _rwkv() -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "context_length": 512,
        "attention_hidden_size": 32,
    }


FAMILIES: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "Llama": ("Llama", lambda: _SMALL),
    "Mistral (sliding window)": ("Mistral", lambda: {**_SMALL, "sliding_window": 24, "head_dim": 8}),
    "Gemma-2": ("Gemma2", lambda: {**_SMALL, "head_dim": 8, "sliding_window": 24}),
    "Gemma-3": ("Gemma3", _gemma3),
    "Qwen2": ("Qwen2", lambda: _SMALL),
    "Qwen3": ("Qwen3", lambda: {**_SMALL, "head_dim": 8}),
    "Qwen3-MoE": ("Qwen3Moe", lambda: {**_SMALL, **_EXPERTS, "head_dim": 8}),
    "Mixtral": ("Mixtral", lambda: {**_SMALL, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "Phi-3": ("Phi3", lambda: {**_SMALL, "sliding_window": None}),
    "gpt-oss": ("GptOss", _gpt_oss),
    "DeepSeek-V3 (MLA)": ("DeepseekV3", lambda: {**_SMALL, **_mla()}),
    "Mamba-2": ("Mamba2", _mamba2),
    "Falcon-H1 (hybrid)": ("FalconH1", _falcon_h1),
    "Jamba (hybrid)": ("Jamba", _jamba),
    "RWKV": ("Rwkv", _rwkv),
    "Qwen3-Next (linear attention)": ("Qwen3Next", _qwen3_next),
}  # fmt: skip


def tiny_model(family: str, vocabulary: int = VOCABULARY) -> Any:
    """A random model of `family` in float32, with a generation config that never ends a turn by itself."""
    name, options = FAMILIES[family]
    config_name = {"Gemma3": "Gemma3TextConfig"}.get(name, f"{name}Config")
    torch.manual_seed(0)
    config = getattr(transformers, config_name)(**{**options(), "vocab_size": vocabulary})
    model = getattr(transformers, f"{name}ForCausalLM")(config).to(torch.float32).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(4)  # random models are nearly uniform; this spreads their next-token distribution
    return model
