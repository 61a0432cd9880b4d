#!/usr/bin/env bash
# The `min_token_index` of steering-vectors counts within each forward pass: with a cache the answer is not steered.
#
# Guess: `apply(model, min_token_index=8)` around `generate` with a prompt of 8 tokens steers the answer and leaves the
#   prompt alone, with a KV cache as without one.
# What happens: the index is one into the states of the pass. With a cache each new token is a pass of its own, with
#   index 0, so that nothing is steered, and no warning is given. Without a cache the answer is steered. From index 0 on
#   both are steered alike.
# Versions: torch 2.13.0, transformers 4.57.6, steering-vectors 0.12.2; Python 3.11
# Output seen on 2026-11-29 (tokens of the answer that the vector changes, of 8):
#   from index 0: with a cache 8, without a cache 8
#   from index 8: with a cache 0, without a cache 6
# Exit status: 0 as long as it behaves so, 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile torch==2.13.0
"$work/venv/bin/pip" install -q --no-compile transformers==4.57.6 steering-vectors==0.12.2
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import torch
from steering_vectors import SteeringVector
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3, bos_token_id=None, eos_token_id=None,
    )
).eval()
vector = SteeringVector({0: 5 * torch.randn(32)}, "decoder_block")
prompt = torch.arange(5, 13)[None]


def answer(cached):
    ids = model.generate(prompt, max_new_tokens=8, do_sample=False, use_cache=cached, pad_token_id=0)
    return ids[0, prompt.shape[1] :]


def changed(index, cached):
    plain = answer(cached)
    with vector.apply(model, min_token_index=index):
        return (answer(cached) != plain).sum().item()


found = {index: [changed(index, cached) for cached in (True, False)] for index in (0, 8)}
for index, (cached, uncached) in found.items():
    print(f"from index {index}: with a cache {cached}, without a cache {uncached}")
raise SystemExit(not (found[0][0] == found[0][1] > 0 and found[8][0] == 0 and found[8][1] > 0))
PYTHON
