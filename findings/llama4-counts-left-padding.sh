#!/usr/bin/env bash
# Llama 4 counts left padding as positions where it tunes the attention's temperature.
#
# Guess: with a correct attention mask a left-padded row gives the logits of the row alone, up to rounding.
# What happens: the temperature of the layers without rotary positions follows the index in the padded row, so padding
#   changes the logits (here floor_scale is 4, to show it in a short text).
# Versions: torch 2.13.0, transformers 5.23.0; Python 3.11
# Output seen on 2026-11-28:
#   left-padded row against the row alone: off by 0.00000 without temperature tuning, by 0.01236 with it
# Exit status: 0 as long as it behaves so, 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile torch==2.13.0
"$work/venv/bin/pip" install -q --no-compile transformers==5.23.0
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import torch
from transformers import Llama4ForCausalLM, Llama4TextConfig

torch.manual_seed(2)
ids = torch.arange(5, 13)[None]
padded = torch.nn.functional.pad(ids, (6, 0), value=0)


def first_logits(tuning):
    torch.manual_seed(2)
    config = Llama4TextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, intermediate_size_mlp=48, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_local_experts=2, num_experts_per_tok=1,
        initializer_range=0.5, pad_token_id=0, bos_token_id=1, eos_token_id=2, attention_chunk_size=64,
        no_rope_layers=[1, 1, 1, 0], attn_temperature_tuning=tuning, floor_scale=4, attn_scale=0.5,
    )
    model = Llama4ForCausalLM(config).eval()
    options = {"max_new_tokens": 1, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    alone = model.generate(ids, **options).logits[0]
    in_batch = model.generate(padded, attention_mask=(padded != 0).long(), **options).logits[0]
    return (alone - in_batch).abs().max().item()


without, tuned = first_logits(False), first_logits(True)
print(f"left-padded row against the row alone: off by {without:.5f} without temperature tuning, by {tuned:.5f} with it")
raise SystemExit(0 if tuned > 100 * without and tuned > 5e-3 else 1)
PYTHON
