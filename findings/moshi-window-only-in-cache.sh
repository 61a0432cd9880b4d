#!/usr/bin/env bash
# Moshi has a sliding window with a cache only.
#
# Guess: `use_cache=False` is slower and gives the same logits, up to rounding.
# What happens: the uncached pass attends to the whole text, the cached one to the last sliding_window tokens, from
#   the second new token on.
# Versions: torch 2.13.0, transformers 5.23.0; Python 3.11
# Output seen on 2026-11-28:
#   logits with cache against without: first token off by 0.00000, second by 10.79
# Exit status: 0 as long as it behaves so, 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile torch==2.13.0
"$work/venv/bin/pip" install -q --no-compile transformers==5.23.0
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import torch
from transformers import MoshiConfig, MoshiForCausalLM

torch.manual_seed(0)
config = MoshiConfig(
    vocab_size=64, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, ffn_dim=64,
    max_position_embeddings=512, sliding_window=4, initializer_range=0.5, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)
model = MoshiForCausalLM(config).eval()
prompt = torch.arange(5, 25)[None]
options = {"max_new_tokens": 2, "do_sample": False, "eos_token_id": None, "return_dict_in_generate": True, "output_logits": True}
cached = model.generate(prompt, use_cache=True, **options)
whole = model.generate(prompt, use_cache=False, **options)
offs = [(a - b).abs().max().item() for a, b in zip(cached.logits, whole.logits, strict=True)]
same = cached.sequences[0, 20] == whole.sequences[0, 20]
print(f"logits with cache against without: first token off by {offs[0]:.5f}, second by {offs[1]:.2f}")
raise SystemExit(0 if same and offs[0] < 1e-3 and offs[1] > 0.1 else 1)
PYTHON
