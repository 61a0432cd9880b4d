#!/usr/bin/env bash
# A decoder's sequence-classification head reads the last token that is not the pad id, whatever the mask says.
#
# Guess: a guard or reward model of the kind `...ForSequenceClassification` gives the logits of the last token that the
#   attention mask keeps.
# What happens: the mask is for attention only. The place read is that of the last id other than `pad_token_id`. Where
#   the pad token is the end-of-turn token too, a text that ends with this token is read one token early. Tokens at the
#   end that are masked out are read if they are not the pad id.
# Versions: torch 2.13.0, transformers 5.24.0; Python 3.11
# Output seen on 2026-11-29 (place that the logits are those of, counted from 0):
#   4 tokens, the last one an end of turn: 3
#   the same, where the end of turn is the pad id too: 2
#   5 tokens, of which the mask keeps 3: 4
# Exit status: 0 as long as it behaves so, 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile torch==2.13.0
"$work/venv/bin/pip" install -q --no-compile transformers==5.24.0
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PYTHON'
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

END, PAD = 3, 4


@torch.no_grad()
def place(ids, mask, pad):
    """Index of the token whose logits the head gives."""
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, pad_token_id=pad,
        )
    ).eval()
    row = {"input_ids": torch.tensor([ids]), "attention_mask": torch.tensor([mask])}
    of_each = model.score(model.model(**row).last_hidden_state)[0]
    return (of_each - model(**row).logits).abs().sum(-1).argmin().item()


found = [
    place([5, 6, 7, END], [1, 1, 1, 1], PAD),
    place([5, 6, 7, END], [1, 1, 1, 1], END),
    place([5, 6, 7, 8, 9], [1, 1, 1, 0, 0], PAD),
]
print(f"4 tokens, the last one an end of turn: {found[0]}")
print(f"the same, where the end of turn is the pad id too: {found[1]}")
print(f"5 tokens, of which the mask keeps 3: {found[2]}")
raise SystemExit(found != [3, 2, 4])
PYTHON
