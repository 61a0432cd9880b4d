#!/usr/bin/env bash
# A callable for `custom_generate` is not given the streamer of the call, and nobody ends the streamer.
#
# Guess: a callable with the arguments of the library's own loop, `streamer` among them, gets the streamer, or the call is
#   refused.
# What happens: the streamer gets the prompt, then nothing, not even end(). `generate` throws away what it had collected
#   for a loop (streamer, synced_gpus) where custom_generate is a callable. A folder for custom_generate gets them all.
# Versions: torch 2.13.0, transformers 5.24.0; Python 3.11
# Output seen on 2026-11-29:
#   plain:    streamer got 1 prompt and 3 tokens, ended: True
#   callable: streamer got 1 prompt and 0 tokens, ended: False; the callable saw streamer None
#   folder:   the function saw streamer Notes
# Exit status: 0 as long as it behaves so, 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile torch==2.13.0
"$work/venv/bin/pip" install -q --no-compile transformers==5.24.0
mkdir -p "$work/repo/custom_generate"
cat > "$work/repo/custom_generate/generate.py" <<'PY'
def generate(model, **arguments):
    return type(arguments["streamer"]).__name__
PY
HF_HUB_OFFLINE=1 HF_MODULES_CACHE="$work/modules" "$work/venv/bin/python" - "$work/repo" <<'PY'
import sys

import torch
from transformers import GenerationMixin, LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=2, pad_token_id=0, eos_token_id=None,
)
model = LlamaForCausalLM(config).eval()
ids = torch.tensor([[1, 2, 3]])


class Notes:
    def __init__(self):
        self.puts, self.ended = [], False

    def put(self, value):
        self.puts.append(value)

    def end(self):
        self.ended = True


def loop(model, input_ids, streamer=None, **arguments):
    seen.append(streamer)
    return GenerationMixin._sample(model, input_ids, streamer=streamer, **arguments)


def call(**more):
    notes = Notes()
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, streamer=notes, **more)
    return out, f"streamer got 1 prompt and {len(notes.puts) - 1} tokens, ended: {notes.ended}"


seen = []
out, plain = call()
print("plain:   ", plain)
same, told = call(custom_generate=loop)
print("callable:", told + f"; the callable saw streamer {seen[0]}")
name, _ = call(custom_generate=sys.argv[1], trust_remote_code=True)
print("folder:   the function saw streamer", name)
expected = plain.endswith("3 tokens, ended: True") and told.endswith("0 tokens, ended: False")
sys.exit(not (expected and seen == [None] and name == "Notes" and torch.equal(out, same)))
PY
