#!/usr/bin/env bash
# PEFT's `modules_to_save` copies the object behind a forward hook: a probe registered before is told no more.
#
# Guess: a forward hook on `lm_head` goes on reporting to its object when the model gets an adapter that also trains
#   `lm_head`, as the hooks on blocks and on LoRA's own targets do.
# What happens: `lm_head` is deep-copied, and its hooks with it. A function stays the same function, but a bound method
#   is copied together with its object, so that the copy is told and the caller's object is not. Within
#   `disable_adapter()` the original module runs, and the caller's object is told again.
# Versions: torch 2.13.0, transformers 5.24.0, peft 0.21.2; Python 3.11
# Output seen on 2026-11-29 (calls that were told: before the adapter, with it, with it disabled):
#   method of an object, on lm_head: 1, 0, 1
#   function, on lm_head: 1, 1, 1
#   method of an object, on a block: 1, 1, 1
#   method of an object, on a target of LoRA: 1, 1, 1
# Exit status: 0 as long as it behaves so, 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile torch==2.13.0
"$work/venv/bin/pip" install -q --no-compile transformers==5.24.0 peft==0.21.2
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )
).eval()
ids = torch.arange(5, 13)[None]


class Probe:
    def __init__(self):
        self.told = 0

    def hook(self, module, inputs, output):
        self.told += 1


by_function = Probe()
probes = {
    "method of an object, on lm_head": Probe(),
    "function, on lm_head": by_function,
    "method of an object, on a block": Probe(),
    "method of an object, on a target of LoRA": Probe(),
}
names = list(probes)
block = model.model.layers[0]
model.lm_head.register_forward_hook(probes[names[0]].hook)
model.lm_head.register_forward_hook(lambda module, inputs, output: by_function.hook(module, inputs, output))
block.register_forward_hook(probes[names[2]].hook)
block.mlp.down_proj.register_forward_hook(probes[names[3]].hook)
calls = {name: [] for name in names}


def count(run):
    before = {name: probe.told for name, probe in probes.items()}
    run(ids)
    for name, probe in probes.items():
        calls[name].append(probe.told - before[name])


with torch.no_grad():
    count(model)
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules=["down_proj"], modules_to_save=["lm_head"])).eval()
    count(tuned)
    with tuned.disable_adapter():
        count(tuned)
for name in names:
    print(f"{name}: {', '.join(map(str, calls[name]))}")
raise SystemExit(calls != {name: [1, 0, 1] if name == names[0] else [1, 1, 1] for name in names})
PYTHON
