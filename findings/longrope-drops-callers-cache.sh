#!/usr/bin/env bash
# `generate` of Phi-3 with longrope leaves the caller's cache behind.
#
# Guess: the cache passed to `generate` holds the whole text but its last token afterwards, and is the one that comes
#   back.
# What happens: where the text grows past original_max_position_embeddings, `generate` goes on in a new cache; the
#   caller's stays at that length.
# Versions: torch 2.13.0, transformers 5.23.0; Python 3.11
# Output seen on 2026-11-28:
#   text 22 tokens; the caller's cache holds 16; the returned cache holds 21 and is the caller's: False
# Exit status: 0 as long as it behaves so, 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile torch==2.13.0
"$work/venv/bin/pip" install -q --no-compile transformers==5.23.0
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import torch
from transformers import DynamicCache, Phi3Config, Phi3ForCausalLM

torch.manual_seed(0)
rope = {
    "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 16,
    "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
}
config = Phi3Config(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=512, original_max_position_embeddings=16, rope_parameters=rope,
    pad_token_id=0, bos_token_id=1, eos_token_id=2,
)
model = Phi3ForCausalLM(config).eval()
mine = DynamicCache(config=config)
out = model.generate(
    torch.arange(5, 17)[None], past_key_values=mine, max_new_tokens=10, do_sample=False, eos_token_id=None,
    return_dict_in_generate=True,
)
theirs = out.past_key_values
print(f"text {out.sequences.shape[1]} tokens; the caller's cache holds {mine.get_seq_length()}; "
      f"the returned cache holds {theirs.get_seq_length()} and is the caller's: {theirs is mine}")
raise SystemExit(0 if theirs is not mine and mine.get_seq_length() == 16 else 1)
PYTHON
