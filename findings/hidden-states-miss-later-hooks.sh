#!/usr/bin/env bash
# Whether `hidden_states` show what a forward hook does to a block depends on what was asked for before.
#
# Guess: with `output_hidden_states=True`, `hidden_states[1]` is what block 0 gave and block 1 was given, so that a hook
#   which changes block 0's output (steering, an intervention) is seen there.
# What happens: the states are taken by hooks too. These are registered by the first forward that asks for states, stay
#   for good, and run in the order of registration. A hook registered after that forward changes the logits and all
#   later states, while the states of its own block are told as they were before it.
# Versions: torch 2.13.0, transformers 5.24.0; Python 3.11
# Output seen on 2026-11-29:
#   no states asked for before the hook: hidden_states[1] is off by 0.0 from what block 1 was given
#   states asked for before the hook: hidden_states[1] is off by 1.0 from what block 1 was given
# Exit status: 0 as long as it behaves so, 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile torch==2.13.0
"$work/venv/bin/pip" install -q --no-compile transformers==5.24.0
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import torch
from transformers import LlamaConfig, LlamaForCausalLM

ids = torch.arange(5, 13)[None]


@torch.no_grad()
def off(asked_before):
    """Largest difference between the told states of block 0 and those that block 1 was given."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2,
        )
    ).eval()
    if asked_before:
        model(ids, output_hidden_states=True)
    given = []
    model.model.layers[0].register_forward_hook(lambda block, inputs, states: states + 1)
    model.model.layers[1].register_forward_pre_hook(lambda block, inputs: given.append(inputs[0]))
    told = model(ids, output_hidden_states=True).hidden_states[1]
    return (told - given[0]).abs().max().item()


found = {asked_before: off(asked_before) for asked_before in (False, True)}
for asked_before, difference in found.items():
    when = "states" if asked_before else "no states"
    print(f"{when} asked for before the hook: hidden_states[1] is off by {difference:.1f} from what block 1 was given")
raise SystemExit(not (found[False] == 0 and abs(found[True] - 1) < 1e-3))
PYTHON
