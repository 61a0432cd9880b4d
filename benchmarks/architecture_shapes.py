"""Tiny random models of every causal language model of Transformers, from their configuration classes alone."""

import dataclasses
from typing import Any

import torch
import transformers
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 256

_SIZES: dict[int, str] = {
    VOCABULARY: "vocab_size vocab_size_per_layer_input decoder_vocab_size unpadded_vocab_size ngram_vocab_size_base",
    512: "index_topk max_position_embeddings max_seq_len n_positions n_ctx max_target_positions context_length",
    48: "intermediate_size ffn_dim ffn_hidden_size decoder_ffn_dim encoder_ffn_dim dff dim_ff feed_forward_size "
    "d_inner intermediate_size_mlp shared_intermediate_size dense_intermediate_size",
    32: "hidden_size d_model n_embd emb_dim attention_hidden_size dim_model embedding_size embedding_dim "
    "input_embedding_size output_embedding_size cross_attention_hidden_size lru_width pronunciation_embed_dim "
    "shape_embed_dim mamba_intermediate_size hc_lowrank dim_model_base",
    24: "sliding_window sliding_window_size window_size local_attention attention_window_size keep_window_size",
    16: "moe_intermediate_size expert_ffn_hidden_size shared_expert_intermediate_size kv_lora_rank q_lora_rank "
    "shared_experts_intermediate_size moe_shared_expert_intermediate_size state_size mamba_d_state ssm_state_size "
    "chunk_size mamba_chunk_size block_size attention_chunk_size o_lora_rank router_hidden_size adapter_rank "
    "rel_extent loop_gate_rank laurel_rank rotary_dim num_buckets relative_max_distance split_ngram_parts "
    "make_ngram_vocab_size_divisible_by ngram_heads local_attn_chunk_length lsh_attn_chunk_length",
    8: "head_dim qk_nope_head_dim v_head_dim qk_rope_head_dim attention_head_dim linear_key_head_dim kv_channels "
    "linear_value_head_dim index_head_dim indexer_head_dim swa_head_dim mamba_head_dim mamba_d_head dim_head d_head "
    "attention_head_size linear_head_dim hidden_size_per_layer_input d_rel prompt_length prompt_types "
    "segment_types gated_norm_rank position_bias_num_buckets query_pre_attn_scalar mamba_dt_rank index_block_size",
    4: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_decoder_layers num_blocks "
    "num_encoder_layers num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads "
    "attention_heads num_decoder_attention_heads num_encoder_attention_heads num_experts num_local_experts "
    "n_routed_experts linear_num_value_heads linear_num_heads swa_num_attention_heads moe_num_experts "
    "index_n_heads indexer_n_heads zero_expert_num",
    2: "num_key_value_heads num_kv_heads num_experts_per_tok linear_num_key_heads swa_num_key_value_heads moe_topk "
    "index_topk_blocks max_window_layers top_k_experts indexer_kv_heads heads_per_ngram",
    1: "n_group topk_group n_shared_experts first_k_dense_replace num_shared_experts moe_num_shared_experts "
    "mamba_n_groups n_groups bos_token_id decoder_start_token_id cls_token_id",
    0: "pad_token_id num_kv_shared_layers",
}
_FIELDS = {name: value for value, names in _SIZES.items() for name in names.split()} | {
    "eos_token_id": 2,
    "sep_token_id": 2,
    "forced_eos_token_id": None,
    "is_decoder": True,
    "is_encoder_decoder": False,
    "use_cache": True,
    "use_mamba_kernels": False,
    "attn_dropout": 0.0,
}

_PATTERNS = ("layer_types", "mlp_layer_types", "layers_block_type", "block_types")
_TEXT = ("text_config", "decoder", "decoder_config", "thinker_config")

_TWO = ["sliding_attention", "full_attention"] * 2
_ROPE = {"rope_type": "default", "rope_theta": 1e4}

# What one model type needs besides.
_OWN: dict[str, dict[str, Any]] = {
    "mamba2": {"num_heads": 8, "n_groups": 1},
    "bamba": {"mamba_n_heads": 8, "attn_layer_indices": [1, 3]},
    "codegen": {"rotary_dim": 4},
    "ernie4_5_moe": {"moe_k": 2},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {"mamba_n_heads": 8, "layer_types": ["mamba", "attention"] * 2},
    "zaya": {"num_experts_per_tok": 1},
    "reformer": {"axial_pos_embds": False},
    "cohere_compass_text": {"layer_types": _TWO, "rope_parameters": dict.fromkeys(_TWO, _ROPE)},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "gemma4_unified": {"vocab_size_per_layer_input": VOCABULARY},
    "dots3_note_text": {"shared_experts_intermediate_size": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "qwen4_exp_text": {"indexer_budget": 64, "indexer_compress_ratio": 4, "indexer_kv_heads": 1, "hc_lowrank": 8},
    "dory": {"n_input_layers": 1, "n_output_layers": 1},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "longcat_flash": {"qk_head_dim": 16},
    "zamba": {"attention_hidden_size": 64, "attention_head_dim": 16, "layers_block_type": ["mamba", "hybrid"] * 2},
    "xmod": {"default_language": "en_XX"},
}

# Other shapes of some types: base type, and the fields that differ.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert+encoder": ("bert", {"is_decoder": False}),
    "big_bird+encoder": ("big_bird", {"is_decoder": False}),
    "megatron-bert+encoder": ("megatron-bert", {"is_decoder": False}),
    "rembert+encoder": ("rembert", {"is_decoder": False}),
    "roformer+encoder": ("roformer", {"is_decoder": False}),
    "falcon+alibi": ("falcon", {"alibi": True}),
    "gemma4_text+shared": ("gemma4_text", {
        "num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2}),
    "minimax_m3_vl_text+sparse": ("minimax_m3_vl_text", {"layer_types": ["full_attention", "minimax_m3_sparse"] * 2}),
    "moshi+wide": ("moshi", {"sliding_window": 512}),
    "phi3+longrope": ("phi3", {"original_max_position_embeddings": 32, "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32,
        "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}, "sliding_window": None}),
    "phimoe+longrope": ("phimoe", {"original_max_position_embeddings": 32, "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32, "short_mscale": 1.0,
        "long_mscale": 1.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}, "sliding_window": None}),
}  # fmt: skip


def model_types() -> list[str]:
    """Every model type of the library's mapping for causal language models."""
    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def _layers(field: Any, owner: type, given: dict[str, Any]) -> Any:
    """Four kinds of layers out of the pattern that the full-size configuration would have."""
    try:
        full = getattr(owner(), field.name)
    except Exception:
        return None
    if not isinstance(full, list) or not full:
        return None
    kinds = list(dict.fromkeys(full))
    return [kinds[index % len(kinds)] for index in range(given.get("num_hidden_layers", 4))]


def tiny_config(config: type, own: dict[str, Any]) -> Any:
    """A configuration of class `config` with small sizes; `own` wins over the rules."""
    fields = dataclasses.fields(config)
    options = {field.name: _FIELDS[field.name] for field in fields if field.name in _FIELDS}
    for field in fields:
        kinds = _layers(field, config, options) if field.name in _PATTERNS else None
        if kinds is not None:
            options[field.name] = kinds
    if "kv_lora_rank" in options and "num_key_value_heads" in options:
        options["num_key_value_heads"] = options["num_attention_heads"]  # latent attention has a key a head
    names = {field.name for field in fields}
    for name, part in (getattr(config, "sub_configs_defaults", None) or {}).items():
        kind = getattr(part, "config_class", part)
        kind = CONFIG_MAPPING[part.model_type] if kind is AutoConfig else kind
        if name in names and dataclasses.is_dataclass(kind):
            model_type = kind.model_type
            mine = {**_OWN.get(model_type, {}), **(own if name in _TEXT else {})}
            options[name] = {**tiny_config(kind, mine).to_dict(), "model_type": model_type}
    if not set(options) & set(_TEXT):
        options.update(own)
    return config(**options)


def build(shape: str) -> Any:
    """A random model in float32 whose generation config never ends a turn by itself."""
    base, more = VARIANTS.get(shape, (shape, {}))
    config = tiny_config(CONFIG_MAPPING[base], {**_OWN.get(base, {}), **more})
    torch.manual_seed(0)
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[base]
    owner = getattr(transformers, name if isinstance(name, str) else name[0], None)
    if owner is None:
        owner = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if not isinstance(config, owner.config_class):  # the text model of a larger one, by itself
        config = config.get_text_config(decoder=True)
    model = owner._from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(4)  # random models are nearly uniform; this spreads their next-token distribution
    model.generation_config.eos_token_id = 2
    model.generation_config.pad_token_id = 0
    model.generation_config.forced_eos_token_id = None
    model.generation_config.encoder_no_repeat_ngram_size = None  # cannot be guarded, and is no matter of architecture
    model.generation_config.use_cache = True
    return model
