#!/usr/bin/env bash
# RecurrentGemma keeps its recurrent state in the modules, not in the cache.
#
# Guess: two deep copies of one cache are independent, so that a look-ahead over the one leaves the other as it was.
# What happens: the recurrent state is an attribute of the layers, so a forward over the copy changes the logits of
#   the next forward over the original.
# Versions: torch 2.13.0, transformers 5.23.0; Python 3.11
# Output seen on 2026-11-28:
#   the same twice: off by 0.00000; after a look-ahead over a deep copy: off by 0.03531
# Exit status: 0 as long as it behaves so, 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile torch==2.13.0
"$work/venv/bin/pip" install -q --no-compile transformers==5.23.0
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import copy

import torch
from transformers import DynamicCache, RecurrentGemmaConfig, RecurrentGemmaForCausalLM

torch.manual_seed(0)
config = RecurrentGemmaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, lru_width=32, attention_window_size=16,
)
model = RecurrentGemmaForCausalLM(config).eval()


@torch.no_grad()
def next_logits(try_another_token):
    cache = DynamicCache(config=config)
    model(torch.arange(5, 9)[None], past_key_values=cache, use_cache=True)
    place = torch.tensor([[4]])
    if try_another_token:  # over a deep copy: nothing is shared with the cache that is used below
        model(torch.tensor([[40]]), past_key_values=copy.deepcopy(cache), use_cache=True, position_ids=place)
    return model(torch.tensor([[9]]), past_key_values=cache, use_cache=True, position_ids=place).logits


again = (next_logits(False) - next_logits(False)).abs().max().item()
disturbed = (next_logits(False) - next_logits(True)).abs().max().item()
print(f"the same twice: off by {again:.5f}; after a look-ahead over a deep copy: off by {disturbed:.5f}")
raise SystemExit(0 if again == 0 and disturbed > 1e-3 else 1)
PYTHON
