#!/usr/bin/env bash
# `generate` gives RoBERTa other positions than `forward` does.
#
# Guess: the first token of greedy `generate` is the argmax of `forward` on the same prompt.
# What happens: `forward` alone numbers positions from padding_idx + 1, as the model was trained; `generate` passes
#   positions from 0, and another token wins.
# Versions: torch 2.13.0, transformers 5.23.0; Python 3.11
# Output seen on 2026-11-28:
#   next token of forward: 41, of generate: 61; logits of generate are off from forward by 3.80, from forward with positions 0, 1, 2 by 0.00000
# Exit status: 0 as long as it behaves so, 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile torch==2.13.0
"$work/venv/bin/pip" install -q --no-compile transformers==5.23.0
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import torch
from transformers import RobertaConfig, RobertaForCausalLM

torch.manual_seed(0)
config = RobertaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
    max_position_embeddings=64, is_decoder=True, initializer_range=0.5, pad_token_id=1, bos_token_id=0, eos_token_id=2,
)
model = RobertaForCausalLM(config).eval()
ids = torch.arange(5, 13)[None]
with torch.no_grad():
    alone = model(ids).logits[:, -1]
    from_zero = model(ids, position_ids=torch.arange(8)[None]).logits[:, -1]
first = model.generate(
    ids, max_new_tokens=1, do_sample=False, return_dict_in_generate=True, output_logits=True
).logits[0]
print(f"next token of forward: {alone.argmax()}, of generate: {first.argmax()}; logits of generate are off from "
      f"forward by {(first - alone).abs().max():.2f}, from forward with positions 0, 1, 2 by "
      f"{(first - from_zero).abs().max():.5f}")
raise SystemExit(0 if (first - alone).abs().max() > 1 and torch.allclose(first, from_zero, atol=1e-4) else 1)
PYTHON
