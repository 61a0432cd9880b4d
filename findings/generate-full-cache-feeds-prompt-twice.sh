#!/usr/bin/env bash
# `generate` feeds the prompt again over a cache that holds all of it.
#
# Guess: `generate` with a cache that holds the whole prompt either gives the plain answer or raises an error, as
#   there is no token left to feed.
# What happens: it feeds the whole prompt once more behind itself and answers the doubled text, without a warning;
#   with one token less in the cache it is right.
# Versions: torch 2.13.0, transformers 5.23.0; Python 3.11
# Output seen on 2026-11-28:
#   no cache: [41, 47, 33]; 7 of 8 tokens cached: [41, 47, 33], cache ends with 10 tokens; all 8 cached: [31, 2, 13], cache ends with 18 tokens
# Exit status: 0 as long as it behaves so, 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile torch==2.13.0
"$work/venv/bin/pip" install -q --no-compile transformers==5.23.0
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, initializer_range=0.5, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)
model = LlamaForCausalLM(config).eval()
prompt = torch.arange(5, 13)[None]
options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}


def continued(cached):
    cache = DynamicCache(config=config)
    with torch.no_grad():
        model(prompt[:, :cached], past_key_values=cache)
    answer = model.generate(prompt, past_key_values=cache, **options)[0, 8:].tolist()
    return answer, cache.get_seq_length()


plain = model.generate(prompt, **options)[0, 8:].tolist()
seven, eight = continued(7), continued(8)
print(f"no cache: {plain}; 7 of 8 tokens cached: {seven[0]}, cache ends with {seven[1]} tokens; "
      f"all 8 cached: {eight[0]}, cache ends with {eight[1]} tokens")
raise SystemExit(0 if seven == (plain, 10) and eight[0] != plain and eight[1] == 18 else 1)
PYTHON
