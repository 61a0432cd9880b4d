#!/usr/bin/env bash
# A minor release of Transformers renames `past_key_values` of `forward`.
#
# Guess: from 5.23 to 5.24 the arguments of a model's `forward` keep their names, so that `inspect.signature` tells
#   whether it takes a cache.
# What happens: the signature shows `cache` only; `past_key_values` is still taken, with a FutureWarning, but
#   `inspect.signature` does not show it.
# Versions: torch 2.13.0, transformers 5.24.0; Python 3.11
# Output seen on 2026-11-28:
#   in the signature: past_key_values False, cache True; passed by its old name the cache holds 4 tokens; the output has past_key_values: True; warnings: ['FutureWarning']
# Exit status: 0 as long as it behaves so, 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile torch==2.13.0
"$work/venv/bin/pip" install -q --no-compile transformers==5.24.0
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import inspect
import warnings

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
)
model = LlamaForCausalLM(config).eval()
names = list(inspect.signature(model.forward).parameters)
old = DynamicCache(config=config)
with warnings.catch_warnings(record=True) as seen, torch.no_grad():
    warnings.simplefilter("always")
    out = model(torch.arange(5, 9)[None], past_key_values=old)
print(f"in the signature: past_key_values {'past_key_values' in names}, cache {'cache' in names}; "
      f"passed by its old name the cache holds {old.get_seq_length()} tokens; "
      f"the output has past_key_values: {getattr(out, 'past_key_values', None) is not None}; "
      f"warnings: {sorted({w.category.__name__ for w in seen})}")
raise SystemExit(0 if "past_key_values" not in names and "cache" in names and old.get_seq_length() == 4 else 1)
PYTHON
