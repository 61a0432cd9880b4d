#!/usr/bin/env bash
# repeng finds its last layer's direction in states behind the final norm, and adds it before the norm.
#
# Guess: the direction of each layer is found in the states that this layer gives, which are those that it is added to.
# What happens: the states are those of `output_hidden_states`, whose last entry has gone through the model's final
#   norm, whereas the direction is added to the last block's output. The norm's weights scale each dimension, so that the
#   two directions differ. By default the last layer is among those that are trained.
# Versions: torch 2.13.0, transformers 4.57.6, repeng 0.4.0, numpy 1.26.4, scikit-learn 1.9.1; Python 3.11
# Output seen on 2026-11-29 (cosine, without its sign, to the direction that PCA finds in the states named):
#   layer 1: its own output 1.00
#   layer 2, the last: its own output 0.22, behind the final norm 1.00
# Exit status: 0 as long as it behaves so, 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile torch==2.13.0
"$work/venv/bin/pip" install -q --no-compile transformers==4.57.6 repeng==0.4.0 numpy==1.26.4 scikit-learn==1.9.1
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - 2>"$work/log" <<'PYTHON' || { tail -n 20 "$work/log" >&2; exit 1; }
import string

import numpy as np
import torch
from repeng import ControlVector, DatasetEntry
from sklearn.decomposition import PCA
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3,
    )
).eval()
model.model.norm.weight.data = torch.randn(32)  # a trained norm's weights are not all 1
vocabulary = {letter: number for number, letter in enumerate([*string.ascii_letters, "."])}
tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocabulary, [])), pad_token=".")
pairs = [DatasetEntry(positive=f"{letter}yes", negative=f"{letter}no") for letter in "abcdefgh"]
vector = ControlVector.train(model, tokenizer, pairs, batch_size=1)

places = {1: model.model.layers[1], 2: model.model.layers[2], "norm": model.model.norm}
states = {place: [] for place in places}
for place, module in places.items():

    def keep(module, inputs, output, kept=states[place]):
        kept.append((output[0] if isinstance(output, tuple) else output)[0, -1].numpy())

    module.register_forward_hook(keep)
with torch.no_grad():
    for pair in pairs:
        for text in (pair.positive, pair.negative):
            model(tokenizer(text, return_tensors="pt").input_ids)


def cosine(layer, place):
    """Cosine of the layer's direction and the one in the place's states, without its sign."""
    kept = np.stack(states[place])
    [found] = PCA(n_components=1).fit(kept[::2] - kept[1::2]).components_
    return abs(float(found @ vector.directions[layer]))


own, last, behind = cosine(1, 1), cosine(2, 2), cosine(2, "norm")
print(f"layer 1: its own output {own:.2f}")
print(f"layer 2, the last: its own output {last:.2f}, behind the final norm {behind:.2f}")
raise SystemExit(not (own > 0.999 and behind > 0.999 and last < 0.9))
PYTHON
