#!/usr/bin/env bash
# Jamba forgets what the cache holds when several tokens are fed over it.
#
# Guess: feeding 4 tokens and then 4 more over the cache gives the logits of feeding all 8 at once.
# What happens: the Mamba layers start a chunk of several tokens from an empty state, without an error or a warning;
#   fed one token at a time over the same cache the logits are right.
# Versions: torch 2.13.0, transformers 5.23.0; Python 3.11
# Output seen on 2026-11-28:
#   largest logit 8.25; 4 tokens, then 4 singly: off by 0.00001; 4 + 4: off by 11.05
# Exit status: 0 as long as it behaves so, 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile torch==2.13.0
"$work/venv/bin/pip" install -q --no-compile transformers==5.23.0
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import torch
from transformers import DynamicCache, JambaConfig, JambaForCausalLM

torch.manual_seed(0)
config = JambaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, initializer_range=0.5, num_experts=2, num_experts_per_tok=1, attn_layer_period=2,
    attn_layer_offset=1, mamba_d_state=8, mamba_dt_rank=8, use_mamba_kernels=False,
)
model = JambaForCausalLM(config).eval()
ids = torch.arange(5, 13)[None]


@torch.no_grad()
def fed(sizes):
    cache = DynamicCache(config=config)
    parts = ids.split(sizes, dim=1)
    return torch.cat([model(part, past_key_values=cache, use_cache=True).logits for part in parts], dim=1)


whole = fed([8])
singly = (fed([4, 1, 1, 1, 1]) - whole).abs().max().item()
chunk = (fed([4, 4]) - whole).abs().max().item()
print(f"largest logit {whole.abs().max():.2f}; 4 tokens, then 4 singly: off by {singly:.5f}; 4 + 4: off by {chunk:.2f}")
raise SystemExit(0 if singly < 1e-3 and chunk > 1 else 1)
PYTHON
