#!/usr/bin/env bash
# `generate` masks the pad token inside of a prompt, `forward` does not.
#
# Guess: without an attention mask a single row without padding is attended to in full, as in `forward`.
# What happens: `generate` infers a mask that hides each pad token, also one in the middle of the text (where it may
#   divide documents).
# Versions: torch 2.13.0, transformers 5.23.0; Python 3.11
# Output seen on 2026-11-28:
#   against forward: generate without a mask is off by 4.54, with a mask of ones by 0.00000
# Exit status: 0 as long as it behaves so, 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile torch==2.13.0
"$work/venv/bin/pip" install -q --no-compile transformers==5.23.0
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, initializer_range=0.5, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)
model = LlamaForCausalLM(config).eval()
prompt = torch.tensor([[5, 6, 0, 8, 9, 10]])  # one row, not padded; token 0 divides two documents
options = {"max_new_tokens": 1, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
with torch.no_grad():
    forward = model(prompt).logits[:, -1]
inferred = model.generate(prompt, **options).logits[0]
ones = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options).logits[0]
print(f"against forward: generate without a mask is off by {(inferred - forward).abs().max():.2f}, "
      f"with a mask of ones by {(ones - forward).abs().max():.5f}")
raise SystemExit(0 if (inferred - forward).abs().max() > 1 and torch.allclose(ones, forward, atol=1e-4) else 1)
PYTHON
