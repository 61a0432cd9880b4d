#!/usr/bin/env bash
# `QuantizedCache.crop` removes too little and reports the old length.
#
# Guess: `crop(-n)` takes the last n tokens away, or raises an error; the length is n less afterwards.
# What happens: only the residual that is not yet quantised is cropped, whatever n is, and `get_seq_length` stays as
#   it was.
# Versions: torch 2.13.0, transformers 5.23.0, optimum-quanto 0.2.7; Python 3.11
# Output seen on 2026-11-28:
#   crop(-2): length 10 -> 10; 0 of 2 tokens left in the residual
#   crop(-5): length 10 -> 10; 0 of 2 tokens left in the residual
# Exit status: 0 as long as it behaves so, 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile torch==2.13.0
"$work/venv/bin/pip" install -q --no-compile transformers==5.23.0 optimum-quanto==0.2.7
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import torch
from transformers import LlamaConfig, LlamaForCausalLM, QuantizedCache

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64, hidden_size=256, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2,
)
model = LlamaForCausalLM(config).eval()
lengths = []
for removed in (2, 5):
    cache = QuantizedCache(backend="quanto", config=config, nbits=4, q_group_size=32, residual_length=4)
    with torch.no_grad():
        model(torch.arange(5, 13)[None], past_key_values=cache)  # 8 tokens, quantised
        for token in (13, 14):  # 2 more, kept whole in the residual
            model(torch.tensor([[token]]), past_key_values=cache)
    before = cache.get_seq_length()
    cache.crop(-removed)
    lengths.append((before, cache.get_seq_length(), cache.layers[0].keys.shape[-2]))
    print(f"crop(-{removed}): length {before} -> {lengths[-1][1]}; {lengths[-1][2]} of 2 tokens left in the residual")
raise SystemExit(0 if lengths == [(10, 10, 0), (10, 10, 0)] else 1)
PYTHON
